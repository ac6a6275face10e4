//! How a workdir's lock stands.

use std::fs;

use pando_ipc::lock::is_held;
use pando_ipc::{Holder, LockError, LockInfo, Workdir, read_lock_for_path};

/// How the lock of a workdir stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Somebody holds it; `None` when the file does not say who yet.
    Held(Option<Holder>),
    /// Nobody holds it; the file names the last holder, when there was one.
    Free(Option<LockInfo>),
}

impl Standing {
    /// Looks at the lock once, without taking part in the race.
    pub(crate) fn of(workdir: &Workdir) -> Result<Self, LockError> {
        let path = workdir.lock_path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(LockError::Foreign { path });
        }
        let held = is_held(workdir)?;
        let info = read_lock_for_path(workdir).ok();
        Ok(if held { Self::Held(info.map(Holder::new)) } else { Self::Free(info) })
    }
}
