//! Who holds a workdir's lock, as far as this host can tell.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use pando_ipc::lock::is_held;
use pando_ipc::{LockError, LockInfo, Workdir, read_lock_for_path};

/// The instance that the lock file names, and the program behind its pid.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// What it says of itself.
    pub(crate) info: LockInfo,
    /// The program of that pid, when the system tells. Meaningless once the lock is free: pids are reused.
    pub(crate) executable: Option<PathBuf>,
}

impl Holder {
    /// Looks up the program behind a lock file's pid.
    pub(crate) fn new(info: LockInfo) -> Self {
        let executable = fs::read_link(format!("/proc/{}/exe", info.pid)).ok();
        Self { info, executable }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.info.instance_id, self.info.pid)?;
        if let Some(executable) = &self.executable {
            write!(f, ", {}", executable.display())?;
        }
        write!(f, ", since {}", self.info.started_at.as_datetime().format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

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
