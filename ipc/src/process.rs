//! Processes of this host, told apart beyond their pid: pids are reused, and a reused one must never be ended.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

pub use rustix::process::Signal;

/// Names one process for good, together with its pid: nobody else of that pid has the same start in the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The kernel's random id of this boot, from `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// When it started, in clock ticks since that boot: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

impl ProcessId {
    /// Returns what names the process that has this pid now; `None` when there is none, or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { boot_id, start_ticks: Stat::read(pid)?.start_ticks })
    }

    /// Tells whether the process that this names together with `pid` has not ended, as far as the system says.
    pub fn is_alive(&self, pid: u32) -> bool {
        ProcessState::of(pid).is_some_and(|state| state != ProcessState::Ended) && Self::of(pid).as_ref() == Some(self)
    }
}

/// What a process does, as the kernel says: field 3 of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// It runs, or waits for a CPU (`R`).
    Running,
    /// It waits for something (`S`, `I`).
    Sleeping,
    /// It waits for a device or a file system and cannot be interrupted, nor killed (`D`).
    Blocked,
    /// A signal stopped it (`T`); it goes on with SIGCONT.
    Stopped,
    /// A debugger holds it (`t`).
    Traced,
    /// It has ended (`Z`, `X`).
    Ended,
}

impl ProcessState {
    /// Returns what the process of this pid does; `None` when there is none, or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        Stat::read(pid).map(|stat| stat.state)
    }

    fn from_letter(letter: &str) -> Option<Self> {
        Some(match letter {
            "R" => Self::Running,
            "S" | "I" => Self::Sleeping,
            "D" => Self::Blocked,
            "T" => Self::Stopped,
            "t" => Self::Traced,
            "Z" | "X" | "x" => Self::Ended,
            _ => return None,
        })
    }

    /// Tells whether it cannot act on a mild signal: only SIGKILL reaches it.
    pub fn is_halted(self) -> bool {
        matches!(self, Self::Stopped | Self::Traced | Self::Blocked)
    }
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Blocked => "blocked on a device",
            Self::Stopped => "stopped",
            Self::Traced => "stopped by a debugger",
            Self::Ended => "ended",
        })
    }
}

/// The fields of `/proc/PID/stat` that are of use here.
#[derive(Debug, PartialEq)]
struct Stat {
    state: ProcessState,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads the line; the second field is the program's name in parentheses and may hold anything.
    fn parse(line: &str) -> Option<Self> {
        let (_, after_name) = line.rsplit_once(')')?;
        let mut fields = after_name.split_ascii_whitespace();
        let state = ProcessState::from_letter(fields.next()?)?;
        Some(Self { state, start_ticks: fields.nth(18)?.parse().ok()? })
    }
}

/// Returns the program of a process; `None` when it has ended or is not ours to look at.
pub fn executable_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// A process held fast: signals reach it and nobody who gets its pid later.
#[derive(Debug)]
pub struct Handle(Arc<OwnedFd>);

impl Handle {
    /// Takes hold of the process of this pid, and makes sure that it is the one that `id` names; `None` when it has ended.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(pid: u32, id: &ProcessId) -> io::Result<Option<Self>> {
        let named = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(named) = named else { return Ok(None) };
        let fd = match pidfd_open(named, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at while it is held: what has the pid now is what the descriptor refers to, or has ended already.
        if ProcessId::of(pid).as_ref() != Some(id) {
            return Ok(None);
        }
        Ok(Some(Self(Arc::new(fd))))
    }

    /// Sends a signal. A process that has ended takes none, which is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&*self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; `false` when it has not within that time.
    pub async fn ended(&self, within: Duration) -> bool {
        let fd = Arc::clone(&self.0);
        // A thread waits: the descriptor becomes readable when the process ends.
        let waiting = tokio::task::spawn_blocking(move || has_ended(&fd, within));
        waiting.await.unwrap_or(false)
    }
}

fn has_ended(fd: &OwnedFd, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_name_of_a_program_may_hold_anything() {
        let line = "12 (a) R (b) T 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 0 0";
        let stat = Stat { state: ProcessState::Stopped, start_ticks: 987_654 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("12 (a) ? 1"), None);
    }

    #[tokio::test]
    async fn a_process_is_ended_but_never_another_one_of_the_same_pid() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let id = ProcessId::of(pid).unwrap();
        assert_eq!(ProcessId::of(pid), Some(id.clone()));
        assert_ne!(ProcessId::of(std::process::id()), Some(id.clone()));
        assert!(id.is_alive(pid));
        let earlier = ProcessId { start_ticks: id.start_ticks - 1, ..id.clone() };
        let other_boot = ProcessId { boot_id: "another".into(), ..id.clone() };
        for other in [earlier, other_boot] {
            assert!(Handle::open(pid, &other).unwrap().is_none() && !other.is_alive(pid), "{other:?}");
        }
        let handle = Handle::open(pid, &id).unwrap().unwrap();
        assert!(!handle.ended(Duration::from_millis(1)).await);
        handle.signal(Signal::KILL).unwrap();
        assert!(handle.ended(Duration::from_secs(10)).await);
        assert_eq!(ProcessState::of(pid), Some(ProcessState::Ended), "a zombie until it is waited for");
        assert!(!id.is_alive(pid));
        child.wait().unwrap();
        handle.signal(Signal::KILL).unwrap();
        assert!(Handle::open(pid, &id).unwrap().is_none());
    }
}
