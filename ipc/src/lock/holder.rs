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

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, kill_process};

    use super::*;
    use crate::envelope::Timestamp;
    use crate::lock::try_lock;

    /// A process that lives until it is ended, and no longer than the test.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// Returns such a process with its note.
    fn sleeper() -> (Sleeper, LockInfo) {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let info = LockInfo {
            instance_id: "inst-A".into(),
            pid: child.id(),
            pub_port: 0,
            rpc_port: 0,
            started_at: serde_json::from_str::<Timestamp>("\"2026-11-21T02:52:48.5Z\"").unwrap(),
            epoch: None,
            workdir: None,
            protocol: None,
            version: None,
            endpoints: None,
            process: ProcessId::of(child.id()),
            successor: None,
        };
        (Sleeper(child), info)
    }

    #[test]
    fn the_holder_is_whom_the_lock_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(dir.path()).unwrap();
        assert_eq!(Holder::of(&workdir), None);
        let (_sleeper, info) = sleeper();
        try_lock(&workdir).unwrap().unwrap().advertise(&info).unwrap();
        assert_eq!(Holder::of(&workdir).unwrap().info, info);
    }

    #[test]
    fn only_the_very_process_of_the_note_may_be_ended() {
        let (_sleeper, info) = sleeper();
        let check = |process: Option<ProcessId>| Holder::new(LockInfo { process, ..info.clone() }).check().cloned();
        let own = info.process.clone().unwrap();
        assert_eq!(check(Some(own.clone())).unwrap(), own);
        let earlier = ProcessId { start_ticks: own.start_ticks - 1, ..own };
        assert!(matches!(check(Some(earlier)), Err(EvictError::Another { .. })));
        assert!(matches!(check(None), Err(EvictError::Unnamed { .. })));
    }

    #[tokio::test]
    async fn a_holder_is_asked_first_and_a_halted_one_is_not() {
        let (mut running, info) = sleeper();
        // While it starts it may be blocked on the disk.
        let holder = in_state(info, ProcessState::Sleeping).await;
        assert_eq!(holder.means(), [Signal::TERM, Signal::KILL]);
        // On a machine that is busy enough, it does not leave in time.
        assert!(holder.evict().await.unwrap().is_some());
        assert!(running.0.try_wait().unwrap().is_some());
        assert!(matches!(holder.evict().await, Err(EvictError::Another { .. })));

        let (sleeper, info) = sleeper();
        kill_process(Pid::from_child(&sleeper.0), Signal::STOP).unwrap();
        let stopped = in_state(info, ProcessState::Stopped).await;
        assert_eq!(stopped.means(), [Signal::KILL]);
        assert_eq!(stopped.evict().await.unwrap(), Some(Signal::KILL));
    }

    /// Waits until the process is in a state.
    async fn in_state(info: LockInfo, state: ProcessState) -> Holder {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let holder = Holder::new(info.clone());
            if holder.state == Some(state) {
                return holder;
            }
            assert!(std::time::Instant::now() < deadline, "{holder:#}");
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_holder_is_shown_with_what_it_does_when_that_matters() {
        let (_sleeper, info) = sleeper();
        let show =
            |state| Holder { executable: Some("/bin/pando".into()), state, info: LockInfo { pid: 12, ..info.clone() } };
        let (sleeps, stands) = (show(Some(ProcessState::Sleeping)), show(Some(ProcessState::Stopped)));
        assert_eq!(sleeps.to_string(), "inst-A, pid 12, /bin/pando, since 2026-11-21T02:52:48Z");
        assert_eq!(format!("{sleeps:#}"), "inst-A, pid 12, sleeping, /bin/pando, since 2026-11-21T02:52:48Z");
        assert_eq!(stands.to_string(), "inst-A, pid 12, stopped, /bin/pando, since 2026-11-21T02:52:48Z");
    }
}
