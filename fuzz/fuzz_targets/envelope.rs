//! A PUB frame: no panic, and what is read is written and read again as the same event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pando_ipc::Envelope;

fuzz_target!(|frame: &[u8]| {
    if let Ok(event) = Envelope::from_frame(frame) {
        assert_eq!(Envelope::from_frame(&event.to_frame()).expect("what we write we read"), event);
    }
});
