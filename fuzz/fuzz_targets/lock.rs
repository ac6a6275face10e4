//! The content of a lock file: no panic, and what is read is written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pando_ipc::LockInfo;

fuzz_target!(|content: &[u8]| {
    if let Ok(info) = serde_json::from_slice::<LockInfo>(content) {
        let again: LockInfo = serde_json::from_str(&info.to_text()).expect("what we write we read");
        assert_eq!(again, info);
        drop(info.doors());
    }
});
