//! The history of a trial: one JSON object a line, written here and read by the checker of `tests/faults`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a host share.
    pub(crate) at: u64,
    /// What happened.
    pub(crate) what: What,
}

/// What an instance records of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// A write begins. Its op id is in no other write.
    Invoke {
        op: String,
        work: Work,
        /// How long it may take.
        within_ms: u64,
    },
    /// It has ended.
    Return { op: String, outcome: Outcome },
    /// A row was read by its rowid right after its write was acknowledged.
    Read { op: String, found: bool },
    /// The instance has a role from now on, at the latest.
    Role {
        role: String,
        epoch: Option<u64>,
        /// The database that it opened, where it leads.
        database: Option<String>,
    },
    /// A point was passed that ends a lease, or at which something happens.
    Point { name: String, action: Option<String> },
    /// A subscriber of this instance was given a durable event.
    Event(Event),
    /// It was told that so many events are lost to it.
    Lagged { events: u64 },
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Inserts a row with the op id.
    Insert,
    /// Journals an event with the op id.
    Publish,
}

/// How a write ended, as its caller was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It was acknowledged.
    Ok { seq: u64, epoch: u64, replayed: bool },
    /// It was certainly not applied.
    Fail { why: String },
    /// Nobody knows.
    Unknown { why: String },
}

/// A durable event, as far as two copies of it must agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) topic: String,
    /// The op of a published event, or the key of a changed row; else empty.
    pub(crate) mark: String,
}

impl Event {
    /// Returns what an event is about, from its payload.
    pub(crate) fn mark(payload: &Value) -> String {
        let key = || payload.get("payload").and_then(|detail| detail.get("key"));
        payload.get("op").or_else(key).and_then(Value::as_str).unwrap_or("").to_owned()
    }
}
