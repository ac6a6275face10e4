//! How a command fails: what it says, what to do next, and the exit code that scripts see.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use pando_dbproxy::{StoreError, Trouble};
use pando_ipc::bus::BusError;
use pando_ipc::client::{CallError, Cause};
use pando_ipc::cursor::CursorError;
use pando_ipc::{Code, Fault, Holder, LockError, Workdir, WorkdirError, fault};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::lifecycle::Stuck;
use super::output::Palette;
use super::standing::Standing;

/// Why a command ends, one for each documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The thing asked for did not work.
    Failed,
    /// The command line is wrong.
    Usage,
    /// There is no primary, or it cannot be reached.
    Unreachable,
    /// We may not do this.
    NotAuthorised,
    /// The deadline passed.
    Timeout,
    /// Someone else's write or term stands against it.
    Conflict,
    /// Two releases that do not understand each other.
    Version,
    /// It works, but something deserves attention.
    Warned,
    /// Another instance is primary and we were told to be it.
    LostElection,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM, of a command that cleans up behind itself; others just end.
    Terminated,
    /// Who reads our output has seen enough: no failure.
    ReaderGone,
}

impl Kind {
    /// Returns the documented exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotAuthorised => 4,
            Self::Timeout => 5,
            Self::Conflict => 6,
            Self::Version => 7,
            Self::Warned => 8,
            Self::LostElection => 75,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

/// Why a command failed, for people and for scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What kind of failure it is; decides the exit code.
    pub(crate) kind: Kind,
    /// What went wrong and with what: a lowercase fragment.
    pub(crate) message: String,
    /// What to do next, most likely first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) hints: Vec<String>,
    /// What the primary added, for scripts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Box<Value>>,
}

impl Failure {
    /// Returns a failure without hints.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: vec![], data: None }
    }

    /// Returns the failure with one more next step.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Returns the end by Ctrl-C, which says nothing.
    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// Returns the end by SIGTERM, which says nothing.
    pub(crate) fn terminated() -> Self {
        Self::new(Kind::Terminated, "terminated")
    }

    /// Returns the failure to read or write `what`.
    pub(crate) fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let failure = Self::new(Kind::Failed, format!("cannot {what}: {error}"));
        match error.kind() {
            io::ErrorKind::PermissionDenied => failure.hint("check who owns it and its mode: 'ls -ld'"),
            io::ErrorKind::StorageFull => failure.hint("make room on the disk: 'df -h'"),
            _ => failure,
        }
    }

    /// Returns the failure of a call to the primary of `workdir`: every outcome of a call is mapped here and nowhere else.
    pub(crate) fn call(error: CallError, workdir: &Workdir) -> Self {
        match error {
            CallError::Refused(fault) => Self::refused(fault),
            CallError::NotSent(cause) => Self::cause(&cause, workdir),
            CallError::Unknown(cause) => {
                let mut failure = Self::cause(&cause, workdir);
                failure.message.push_str("; the call was sent, so it may have been carried out");
                failure
            }
        }
    }

    /// Returns the failure to get an answer.
    fn cause(cause: &Cause, workdir: &Workdir) -> Self {
        let path = workdir.path().display();
        match cause {
            Cause::NoPrimary { .. } => Self::no_primary(workdir),
            Cause::ConnectionFailed { .. } | Cause::Closed => {
                let mut failure = Self::new(Kind::Unreachable, format!("cannot reach the primary of {path}: {cause}"));
                if failure.name_holder(workdir) {
                    failure = failure.hint(END_IT);
                }
                failure.hint("see who holds the workdir: 'pando status'")
            }
            Cause::Busy { waiting } => {
                Self::new(Kind::Failed, format!("{waiting} calls to the primary of {path} wait to be sent already"))
                    .hint("try again in a moment")
            }
            Cause::Timeout { after } => {
                let mut failure = Self::new(
                    Kind::Timeout,
                    format!("the primary of {path} gave no answer within {:?}", rounded(*after)),
                );
                failure.name_holder(workdir);
                failure.hint("give it longer with '--timeout 30s', or see what it does: 'pando status'")
            }
            Cause::Unresponsive { holder, silent } => Self::new(
                Kind::Timeout,
                format!("the primary of {path} has said nothing for {:?} ({holder:#})", rounded(*silent)),
            )
            .hint(END_IT)
            .hint("see who holds the workdir: 'pando status'"),
            Cause::Version { .. } => {
                let mut failure = Self::new(Kind::Version, format!("cannot talk to the primary of {path}: {cause}"));
                failure.name_holder(workdir);
                failure.hint("end the older one with its own 'pando down', then start it again from the newer release")
            }
        }
    }

    /// Returns the failure of a command that waited `patience` for the holder of the lock to show that it leads.
    pub(crate) fn silent(cause: &Cause, patience: Duration, workdir: &Workdir) -> Self {
        let path = workdir.path().display();
        match Standing::of(workdir) {
            Ok(Standing::Held(Some(holder))) => {
                let message = format!("the primary of {path} gave no answer within {patience:?} ({holder}): {cause}");
                Self::new(Kind::Timeout, message).hint(END_IT).hint("see who holds the workdir: 'pando status'")
            }
            _ => Self::cause(cause, workdir),
        }
    }

    /// Returns the failure of a command that needs a primary where there is none, or a silent one.
    pub(crate) fn no_primary(workdir: &Workdir) -> Self {
        let path = workdir.path().display();
        match Standing::of(workdir) {
            Ok(Standing::Held(Some(holder))) => {
                Self::new(Kind::Unreachable, format!("no primary answers in {path} (lock is held by {holder})"))
                    .hint(END_IT)
            }
            Ok(Standing::Held(None)) => Self::new(
                Kind::Unreachable,
                format!("no primary answers in {path} (its lock is held, by whom is not said)"),
            )
            .hint(format!("find the holder: 'fuser -v {}'", workdir.lock_path().display())),
            Ok(Standing::Free(_)) => match Stuck::of(workdir) {
                Some(stuck) => Self::new(Kind::Unreachable, format!("no primary in {path} (lock is free): {stuck}"))
                    .hint(stuck.next_step()),
                None => Self::new(Kind::Unreachable, format!("no primary in {path} (lock is free)"))
                    .hint("start one with 'pando up'"),
            },
            Err(error) => Self::lock(&error),
        }
    }

    /// Adds who holds the lock, so that the reader knows whom to look at; tells whether somebody does.
    fn name_holder(&mut self, workdir: &Workdir) -> bool {
        let Ok(Standing::Held(Some(holder))) = Standing::of(workdir) else { return false };
        // Writing into a String cannot fail.
        let _written = write!(self.message, " (the lock is held by {holder})");
        true
    }

    /// Returns the failure for a refusal: our own codes have exit codes of their own.
    pub(crate) fn refused(fault: Fault) -> Self {
        const KINDS: [(Code, Kind, &str); 16] = [
            (Code::NotPrimary, Kind::Unreachable, "try again: the primary is changing"),
            (Code::Fenced, Kind::Conflict, "try again: a newer primary has taken over"),
            (Code::Busy, Kind::Failed, "try again in a moment: the primary is busy"),
            (Code::BusyQueue, Kind::Failed, "try again in a moment: the write queue is full"),
            (Code::KeyReused, Kind::Conflict, "use a new op id for a new write"),
            (Code::OutcomeUnknown, Kind::Failed, "look at the data before you write again"),
            (Code::Abandoned, Kind::Conflict, "it was settled as not applied: write under a new op id"),
            (Code::WrongDatabase, Kind::Conflict, "the database was replaced: start again from 'pando status'"),
            (Code::Conflict, Kind::Conflict, "read the row that is there, then decide"),
            (
                Code::Forbidden,
                Kind::NotAuthorised,
                "schema changes need '--ddl'; transactions, PRAGMA and ATTACH are not for callers",
            ),
            (Code::Deadline, Kind::Timeout, "nothing was applied; give it longer with '--timeout 30s'"),
            (Code::TooLarge, Kind::Failed, "send less, or ask for less, at once"),
            (Code::PeerUnauthorized, Kind::NotAuthorised, "see what each method needs: 'pando ipc methods'"),
            (Code::Version, Kind::Version, "bring both sides to the same release"),
            (Code::Sql, Kind::Failed, "see the tables: pando db query 'SELECT name, sql FROM sqlite_schema'"),
            (Code::Storage, Kind::Failed, "check the disk of the workdir: 'df -h'"),
        ];
        let known = KINDS.iter().find(|(code, ..)| fault.is(*code));
        // The primary may know better what to do.
        let next = fault.data.as_ref().and_then(|data| data["next"].as_str()).map(str::to_owned);
        let next = next.or_else(|| {
            fault.data.as_ref().and_then(|data| data["readers"].as_array().map(|readers| end_of_read(readers)))
        });
        let failure = match known {
            Some((_, kind, hint)) => Self::new(*kind, fault.message).hint(next.unwrap_or((*hint).to_owned())),
            None if fault.code == fault::INVALID_PARAMS => {
                Self::new(Kind::Failed, fault.message).hint("see what each method takes: 'pando ipc methods'")
            }
            None => Self::new(Kind::Failed, fault.message),
        };
        let data = fault.data.unwrap_or(Value::Null);
        Self { data: Some(Box::new(json!({"rpc_code": fault.code, "data": data}))), ..failure }
    }

    /// Returns the failure to read or move a cursor.
    pub(crate) fn cursor(error: &CursorError) -> Self {
        match error {
            CursorError::Name(_) => Self::new(Kind::Usage, error.to_string()),
            CursorError::Workdir(error) => Self::workdir(error),
            CursorError::Io { .. } | CursorError::Malformed { .. } => Self::new(Kind::Failed, error.to_string()),
        }
    }

    /// Returns the failure to race for the lock or to look at it.
    pub(crate) fn lock(error: &LockError) -> Self {
        let kind = match error {
            LockError::Workdir(error) => return Self::workdir(error),
            LockError::Silent { .. } => Kind::Unreachable,
            LockError::Io { .. } | LockError::Foreign { .. } | LockError::Unstable { .. } => Kind::Failed,
        };
        let failure = Self::new(kind, error.to_string());
        match error {
            LockError::Io { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                let dir = path.parent().unwrap_or(path);
                failure.hint(format!("make it yours and writable: 'ls -ld {}'", dir.display()))
            }
            LockError::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => failure
                .hint("make the file system writable, see 'mount'")
                .hint("reading needs no primary: 'pando db query'"),
            LockError::Foreign { path } => failure.hint(format!("look at it: 'ls -l {}'", path.display())),
            LockError::Silent { path, .. } => failure.hint(format!("find the holder: 'fuser -v {}'", path.display())),
            _ => failure,
        }
    }

    /// Returns the failure to use a workdir.
    pub(crate) fn workdir(error: &WorkdirError) -> Self {
        let message = error.to_string();
        match error {
            WorkdirError::Missing { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(Kind::NotAuthorised, message).hint(WORK_ELSEWHERE)
            }
            WorkdirError::Missing { path, .. } => Self::new(Kind::Usage, message)
                .hint(format!("make it first, 'mkdir -p {}', or name another with '--workdir DIR'", path.display())),
            WorkdirError::NotUtf8 { .. } => Self::new(Kind::Usage, message)
                .hint("rename what is not UTF-8 in it, or work elsewhere: '--workdir DIR'"),
            WorkdirError::NotADirectory { .. } => {
                Self::new(Kind::Usage, message).hint("name the directory that holds it with '--workdir DIR'")
            }
            WorkdirError::Unusable { path, .. } => {
                let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
                Self::new(Kind::Failed, message)
                    .hint(format!("make it a directory you may write to: 'ls -ld {}'", there.display()))
            }
            WorkdirError::Foreign { .. } => Self::new(Kind::NotAuthorised, message).hint(WORK_ELSEWHERE),
        }
    }

    /// Returns the failure to open the database.
    pub(crate) fn store(error: &StoreError) -> Self {
        if let Some(trouble) = error.trouble().filter(|trouble| *trouble != Trouble::Foreign) {
            let failure = Self::new(Kind::Failed, error.to_string()).hint(trouble.next_step());
            return match error {
                StoreError::Sqlite { path, .. } if trouble == Trouble::Damaged && log_of(path).exists() => {
                    let log = log_of(path);
                    failure.hint(format!(
                        "or, if you put it there by hand: the log beside it is another database's, move it away, {}",
                        log.display()
                    ))
                }
                _ => failure,
            };
        }
        let (kind, hint) = match error {
            StoreError::Sqlite { path, .. } | StoreError::MigrationFailed { path, .. } if error.is_busy() => (
                Kind::Failed,
                format!("another program is in the middle of a write, find it: 'fuser -v {}'", path.display()),
            ),
            StoreError::UnsafeFileSystem { .. } => {
                (Kind::Failed, "work in a directory on a disk of this machine: '--workdir DIR'".into())
            }
            StoreError::NewerSchema { .. } => {
                (Kind::Version, "install the newer release, or work in another directory".into())
            }
            StoreError::OlderSchema { .. } => (
                Kind::Version,
                "end the older instances, 'pando down'; the next primary of this release migrates it".into(),
            ),
            StoreError::MigrationDiffers { path, .. } | StoreError::MigrationFailed { path, .. } => {
                (Kind::Failed, format!("keep a copy and move it away; Pando then makes a new one: {}", path.display()))
            }
            StoreError::File { path, .. } => {
                (Kind::Failed, format!("check who owns it and its mode: 'ls -l {}'", path.display()))
            }
            StoreError::NotAFile { path } => (Kind::Failed, format!("look at it: 'ls -l {}'", path.display())),
            StoreError::HardLinked { path, .. } => {
                (Kind::Failed, format!("find its other name: 'find / -xdev -samefile {}'", path.display()))
            }
            StoreError::Settings { path, .. } => {
                (Kind::Failed, format!("correct it, or move it away to run as usual: {}", path.display()))
            }
            StoreError::NoWal { .. } => (Kind::Failed, "work in a directory on a local disk".into()),
            StoreError::Sqlite { path, .. } if error.trouble().is_none() => {
                let dir = path.parent().unwrap_or(path);
                (
                    Kind::Failed,
                    format!("look at the disk and the mode of the directory: 'df -h {0}; ls -ld {0}'", dir.display()),
                )
            }
            StoreError::Sqlite { path, .. } => (
                Kind::Failed,
                format!(
                    "if it is no database of Pando's, move it away; Pando then makes a new one: 'mv {} elsewhere'",
                    path.display()
                ),
            ),
            StoreError::Thread { .. } => (Kind::Failed, "look at the limit of processes: 'ulimit -u'".into()),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }

    /// Returns the failure to open the doors.
    pub(crate) fn bus(error: &BusError) -> Self {
        let hint = match error {
            BusError::Workdir(error) => return Self::workdir(error),
            BusError::Socket { path, .. } => {
                let dir = path.parent().unwrap_or(path);
                format!("make it yours and writable: 'ls -ld {}'", dir.display())
            }
            BusError::Port { .. } => "leave TCP closed: 'pando up --no-tcp'".into(),
        };
        Self::new(Kind::Failed, error.to_string()).hint(hint)
    }

    /// Returns the failure of an instance that was told to be primary while another is.
    pub(crate) fn lost_election(holder: &Holder, workdir: &Workdir) -> Self {
        let path = workdir.path().display();
        Self::new(Kind::LostElection, format!("{path} already has a primary: {holder}"))
            .hint("join as a secondary: leave out '--require-primary'")
            .hint("or end the others first: 'pando down'")
    }

    /// Returns the exit code for the shell.
    pub(crate) fn exit_code(&self) -> ExitCode {
        self.kind.code().into()
    }

    /// Returns the lines for stderr: `error: …`, `hint: …`, and with `as_json` the same as one JSON object in the last line.
    pub(crate) fn render(&self, palette: Palette, as_json: bool) -> String {
        let mut text = format!("{}: {}\n", palette.error("error"), self.message);
        for hint in &self.hints {
            let _written = writeln!(text, "{}: {hint}", palette.hint("hint"));
        }
        if as_json {
            let _written = writeln!(text, "{}", self.to_json());
        }
        text
    }

    /// Returns the object that `--json` adds to stderr.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = json!(self);
        object["exit"] = self.kind.code().into();
        json!({ "error": object })
    }

    /// Finds the failure in what a `--json` command wrote to stderr.
    pub(crate) fn from_stderr(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            error: Failure,
        }
        text.lines().rev().find_map(|line| serde_json::from_str::<Line>(line).ok()).map(|line| line.error)
    }
}

/// What to do about a directory that is another user's.
const WORK_ELSEWHERE: &str = "run as its owner, or work in a directory of your own with '--workdir DIR'";

/// Returns where the write-ahead log of a database is.
fn log_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Returns what to do about reads that keep the write-ahead log from beginning anew.
fn end_of_read(readers: &[Value]) -> String {
    let pids = readers.iter().filter_map(|reader| reader["pid"].as_u64()).map(|pid| pid.to_string());
    let pids = pids.collect::<Vec<_>>().join(",");
    if pids.is_empty() {
        "end the read that keeps the log, find it: 'fuser -v .pando/pando.db'".to_owned()
    } else {
        format!("end the read of pid {pids}, see what it is: 'ps -p {pids}'; writing goes on by itself then")
    }
}

/// What to do with a holder that stays silent.
const END_IT: &str = "if it stays silent, end it and another instance takes over: 'pando ipc evict'";

/// Returns what the user waited, as the user said it: the start of the command takes some milliseconds of it.
fn rounded(waited: Duration) -> Duration {
    const STEP_MS: u64 = 100;
    let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    if millis < STEP_MS { waited } else { Duration::from_millis(millis.div_ceil(STEP_MS).saturating_mul(STEP_MS)) }
}

#[cfg(test)]
pub(crate) mod tests;
