//! Faults of the database half: `dbproxy: CODE (Method): message` over the codes of [`pando_ipc::fault`].

use std::time::Duration;

use pando_ipc::Fault;
use pando_ipc::fault::{Code, INTERNAL, INVALID_PARAMS};
use rusqlite::{Error, ErrorCode};
use serde_json::json;

use crate::checkpoint::Pinned;
use crate::guard::{Guard, MAX_SQL_BYTES, MAX_VALUE_BYTES};
use crate::trouble::Trouble;
use crate::writer::Fenced;

/// The words by which clients of the documented format tell failures apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Timeout,
    Unreachable,
    InvalidParams,
    Conflict,
    Internal,
}

impl Word {
    fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "TIMEOUT",
            Self::Unreachable => "UNREACHABLE",
            Self::InvalidParams => "INVALID_PARAMS",
            Self::Conflict => "CONFLICT",
            Self::Internal => "INTERNAL",
        }
    }
}

fn text(word: Word, method: &str, message: impl AsRef<str>) -> String {
    format!("dbproxy: {} ({method}): {}", word.as_str(), message.as_ref())
}

/// Returns a fault of ours in the documented form.
pub(crate) fn refuse(code: Code, word: Word, method: &str, message: impl AsRef<str>) -> Fault {
    Fault::new(code, text(word, method, message))
}

/// Returns the answer to params that do not fit; `field` is the path of the field.
pub(crate) fn invalid(method: &str, field: &str, why: impl std::fmt::Display) -> Fault {
    let message = if field.is_empty() { why.to_string() } else { format!("{field}: {why}") };
    let fault = Fault { code: INVALID_PARAMS, message: text(Word::InvalidParams, method, message), data: None };
    fault.with("field", field)
}

/// Returns the answer to a named write that does not exist.
pub(crate) fn unknown_method(method: &str, known: &str) -> Fault {
    let message = format!("dbproxy: METHOD_NOT_FOUND ({method}): this primary has no such write; it has {known}");
    Fault { code: INVALID_PARAMS, message, data: Some(json!({"field": "method"})) }
}

/// Returns the answer to a write whose code is wrong.
pub(crate) fn internal(method: &str, why: impl std::fmt::Display) -> Fault {
    Fault { code: INTERNAL, message: text(Word::Internal, method, why.to_string()), data: None }
}

/// Returns the answer to a write whose code panicked.
pub(crate) fn panicked(method: &str) -> Fault {
    internal(method, "the write panicked and was rolled back")
}

/// Returns the answer to a request whose deadline passed before it was applied.
pub(crate) fn expired(method: &str) -> Fault {
    refuse(Code::Deadline, Word::Timeout, method, "the deadline passed before the write began; not applied")
}

/// Returns the answer while the queue is full.
pub(crate) fn queue_is_full(method: &str, retry_after: Duration) -> Fault {
    refuse(Code::BusyQueue, Word::Unreachable, method, "the writer's queue is full; nothing was queued")
        .with("retry_after_ms", u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX))
}

/// Returns the answer while a reader keeps the write-ahead log from beginning anew and it has become too large.
pub(crate) fn wal_is_full(method: &str, pinned: &Pinned, retry_after: Duration) -> Fault {
    let pids: Vec<String> = pinned.readers.iter().map(|reader| reader.pid.to_string()).collect();
    let who = if pids.is_empty() { "a reader".to_owned() } else { format!("a read of pid {}", pids.join(", ")) };
    let megabytes = pinned.wal_bytes >> 20;
    let message = format!(
        "{who} keeps the write-ahead log from beginning anew ({megabytes} MiB); end that read, nothing was queued"
    );
    refuse(Code::BusyQueue, Word::Unreachable, method, message)
        .with("retry_after_ms", u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX))
        .with("readers", json!(pinned.readers))
}

/// The writer died with the write in hand.
pub(crate) fn died(method: &str) -> Fault {
    let message = "the writer died before it answered; send again with the same op id";
    refuse(Code::OutcomeUnknown, Word::Unreachable, method, message).with("retryable", true)
}

/// Returns the answer of an instance that takes no writes, or no more.
pub(crate) fn not_primary(method: &str) -> Fault {
    refuse(Code::NotPrimary, Word::Unreachable, method, "this instance takes no more writes")
}

/// Returns the answer of an instance that has lost its place as the primary.
pub(crate) fn fenced(method: &str, why: &Fenced) -> Fault {
    refuse(Code::Fenced, Word::Unreachable, method, format!("{why}; nothing was applied"))
}

/// Returns what SQLite's error means to the caller.
pub(crate) fn from_sqlite(method: &str, error: &Error, guard: Option<&Guard>) -> Fault {
    let message = message_of(error);
    // SQLite reports some denials as plain errors; what the guard denied is the reason all the same.
    if let Some(denied) = guard.and_then(Guard::denied) {
        return refuse(Code::Forbidden, Word::InvalidParams, method, denied);
    }
    if let Some(trouble) = Trouble::of(error) {
        return storage(method, message, trouble);
    }
    let code = match error {
        Error::MultipleStatement => {
            return invalid(method, "sql", "more than one statement; send one statement per string");
        }
        Error::InvalidParameterCount(given, wanted) => {
            return invalid(method, "params", format!("{given} given, {wanted} wanted"));
        }
        Error::InvalidParameterName(name) => {
            return invalid(method, "params", format!("the statement has no parameter {name}"));
        }
        Error::SqliteFailure(failure, _) => failure.code,
        Error::SqlInputError { error, .. } => error.code,
        _ => ErrorCode::Unknown,
    };
    match code {
        ErrorCode::ConstraintViolation => refuse(Code::Conflict, Word::Conflict, method, message),
        ErrorCode::AuthorizationForStatementDenied => refuse(Code::Forbidden, Word::InvalidParams, method, message),
        ErrorCode::OperationInterrupted => {
            refuse(Code::Deadline, Word::Timeout, method, "the statement ran into its time limit; not applied")
        }
        ErrorCode::TooBig => too_large(
            method,
            format!("{message} (limits: {MAX_SQL_BYTES} bytes of SQL, {MAX_VALUE_BYTES} bytes per value)"),
        ),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => refuse(
            Code::Busy,
            Word::Unreachable,
            method,
            format!("{message}: another program holds the database; nothing was applied"),
        ),
        _ => refuse(Code::Sql, Word::InvalidParams, method, message),
    }
}

/// Returns the answer to a write or a read that the disk did not let through.
fn storage(method: &str, message: impl AsRef<str>, trouble: Trouble) -> Fault {
    let fault = refuse(Code::Storage, Word::Internal, method, message);
    fault.with("reason", trouble.as_str()).with("next", trouble.next_step())
}

/// Returns the answer to a write whose COMMIT failed in a way that leaves open whether it is on disk.
pub(crate) fn commit_unknown(method: &str, error: &Error) -> Fault {
    let message =
        format!("the disk failed in the middle of a commit ({}); send again with the same op id", message_of(error));
    refuse(Code::OutcomeUnknown, Word::Internal, method, message)
}

/// Returns the answer to what exceeds a size limit.
pub(crate) fn too_large(method: &str, message: impl AsRef<str>) -> Fault {
    refuse(Code::TooLarge, Word::InvalidParams, method, message)
}

/// Returns SQLite's own words, without the whole statement.
pub(crate) fn message_of(error: &Error) -> String {
    match error {
        Error::SqlInputError { msg, .. } => msg.clone(),
        Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    }
}
