//! Who holds the lock, as far as this host can tell, and how to end it when it holds the lock and does nothing else.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{LockInfo, read_lock_for_path};
use crate::process::{Handle, ProcessId, ProcessState, Signal, executable_of};
use crate::workdir::Workdir;

/// How long a process may take to leave after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_millis(500);
/// How long the kernel may take to end a process after SIGKILL.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// The instance that the lock file names, and the process behind its pid.
///
/// It displays as `inst-A, pid 12, /bin/pando, since …`, with what the process does where that is out of the ordinary,
/// such as `stopped`; with `{:#}` always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What it says of itself.
    pub info: LockInfo,
    /// The program of that pid, when the system tells. Meaningless once the lock is free: pids are reused.
    pub executable: Option<PathBuf>,
    /// What the process does now, when the system tells.
    pub state: Option<ProcessState>,
}

impl Holder {
    /// Looks up the process behind a lock file's pid.
    pub fn new(info: LockInfo) -> Self {
        Self { executable: executable_of(info.pid), state: ProcessState::of(info.pid), info }
    }

    /// Looks up the process of the instance that the lock file of a workdir names; `None` when it names none.
    pub fn of(workdir: &Workdir) -> Option<Self> {
        read_lock_for_path(workdir).ok().map(Self::new)
    }

    /// Returns by which name the process can be ended, or why it cannot.
    pub fn check(&self) -> Result<&ProcessId, EvictError> {
        let pid = self.info.pid;
        match &self.info.process {
            None => Err(EvictError::Unnamed { pid }),
            Some(id) if ProcessId::of(pid).as_ref() == Some(id) => Ok(id),
            Some(_) => Err(EvictError::Another { pid }),
        }
    }

    /// Returns the signals that [`Holder::evict`] would send, in order.
    pub fn means(&self) -> &'static [Signal] {
        match self.state {
            Some(state) if state.is_halted() => &[Signal::KILL],
            _ => &[Signal::TERM, Signal::KILL],
        }
    }

    /// Ends the process and waits until it is gone; returns the signal that did it, or `None` when it had gone before.
    ///
    /// It is ended only when it is the very process that wrote the lock file: same pid, same start, same boot.
    /// SIGTERM first, SIGKILL 500 ms later; a stopped process gets SIGKILL at once.
    pub async fn evict(&self) -> Result<Option<Signal>, EvictError> {
        let id = self.check()?;
        let pid = self.info.pid;
        let failed = |source| EvictError::Signal { pid, source };
        let Some(process) = Handle::open(pid, id).map_err(failed)? else { return Ok(None) };
        let (last, mild) = self.means().split_last().unwrap_or((&Signal::KILL, &[]));
        for signal in mild {
            process.signal(*signal).map_err(failed)?;
            if process.ended(GRACE).await {
                return Ok(Some(*signal));
            }
        }
        process.signal(*last).map_err(failed)?;
        if process.ended(KILLED_WITHIN).await { Ok(Some(*last)) } else { Err(EvictError::Stuck { pid }) }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.info.instance_id, self.info.pid)?;
        if let Some(state) = self.state.filter(|state| f.alternate() || state.is_halted()) {
            write!(f, ", {state}")?;
        }
        if let Some(executable) = &self.executable {
            write!(f, ", {}", executable.display())?;
        }
        write!(f, ", since {}", self.info.started_at.as_datetime().format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Why a holder of the lock was not ended.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The lock file does not say when its process started: an older or another implementation.
    #[error("the lock file does not name its process beyond pid {pid}, which may be another one's by now")]
    Unnamed {
        /// The pid in the lock file.
        pid: u32,
    },
    /// The process of that pid is another one, of this or another container: somebody else inherited the lock.
    #[error("pid {pid} is not the process that wrote the lock file; whoever holds the lock now is another one")]
    Another {
        /// The pid in the lock file.
        pid: u32,
    },
    /// The system refused to signal it.
    #[error("cannot end pid {pid}: {source}")]
    Signal {
        /// The process.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// SIGKILL was sent, but the kernel has not ended it: it waits for a device or a file system.
    #[error("pid {pid} was killed but has not ended: it is blocked on a device or a file system")]
    Stuck {
        /// The process.
        pid: u32,
    },
}
