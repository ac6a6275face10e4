//! What a write is, and what its acknowledgement says.

use std::time::{Duration, Instant};

use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use pando_ipc::{Fault, Topic};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::fingerprint;
use crate::op::OpId;
use crate::params::Params;
use crate::readers::QueryResult;
use crate::refusal::{Word, invalid, refuse};
use crate::value::SqlValue;

/// Longest op id, in bytes, its scope not counted. A longer one is refused as invalid.
pub const MAX_OP_ID_BYTES: usize = 128;
/// Largest payload of an event, as JSON. A larger one is refused with `E_TOO_LARGE`: every event fits into a frame and into an answer.
pub const MAX_PAYLOAD_BYTES: usize = 2 << 20;
/// Deepest nesting of an event's payload: a page of events and a request, which hold it some levels deeper, stay within [`MAX_DEPTH`](pando_ipc::rpc::MAX_DEPTH).
pub const MAX_PAYLOAD_DEPTH: usize = 100;
/// Most statements in one write. More are refused as invalid.
pub const MAX_STATEMENTS: usize = 1_000;
/// Time a write has when its sender names none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How sure an acknowledged write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// On disk: it survives a power failure (`synchronous=FULL`).
    #[default]
    Disk,
    /// Handed to the operating system: it survives any death of a process (`synchronous=NORMAL`).
    Os,
}

/// One SQL statement with its parameters. As JSON: `{sql, params}`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Statement {
    /// Exactly one statement.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
}

impl Statement {
    /// Returns a statement.
    pub fn new(sql: impl Into<String>, params: impl Into<Params>) -> Self {
        Self { sql: sql.into(), params: params.into() }
    }
}

/// What a write does. All of it commits, or nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Runs SQL statements in order.
    Exec {
        /// The statements.
        statements: Vec<Statement>,
        /// Whether they may change the schema.
        ddl: bool,
    },
    /// Runs a named write, see [`crate::Writes`].
    Named {
        /// Its name, such as `CreateSession`.
        method: String,
        /// Its params, in the form that [`crate::Writes::work`] makes.
        params: Value,
    },
    /// Appends one event to the journal.
    Publish {
        /// Its topic.
        topic: Topic,
        /// Its payload.
        payload: Json,
        /// The session it belongs to, or empty.
        session_id: String,
        /// The project it belongs to, or empty.
        project_id: String,
    },
    /// Settles what became of the write with this request's op id: if it is not applied now, it never will be. Its result is an [`Outcome`].
    Settle,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It was applied, once.
    Applied {
        /// The answer it got.
        ack: Ack<Value>,
    },
    /// It was not applied, and will not be: a copy that is still on its way is refused with `E_ABANDONED`.
    NotApplied,
    /// The primary cannot tell: it has forgotten this op id.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Work {
    /// Returns the name that failures and change events carry.
    pub fn label(&self) -> &str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Named { method, .. } => method,
            Self::Publish { .. } => "publish",
            Self::Settle => "outcome",
        }
    }

    /// Tells whether it may change the schema.
    pub(crate) fn changes_schema(&self) -> bool {
        matches!(self, Self::Exec { ddl: true, .. })
    }

    /// Returns about how many bytes the work takes in the queue.
    fn weight(&self) -> usize {
        match self {
            Self::Exec { statements, .. } => {
                statements.iter().map(|statement| statement.sql.len() + statement.params.weight()).sum()
            }
            Self::Named { method, params } => method.len() + weight_of(params),
            Self::Publish { topic, payload, .. } => topic.as_str().len() + payload.as_str().len(),
            Self::Settle => 0,
        }
    }
}

/// A write on its way to the writer. Sent again with the same op id, it applies once.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteRequest {
    /// Names the write.
    pub op_id: OpId,
    /// Writes of the same counting client below this counter have been answered: the primary need not remember them.
    pub acked: u64,
    /// The database it is meant for; `None` takes any.
    pub database: Option<Uuid>,
    /// The term it is meant for, or a later one: a primary of an earlier term refuses it. 0 takes any.
    ///
    /// A write that was sent in one term may be applied in the next: that its op id applies once holds across terms, because the op id is stored with the rows.
    pub epoch: u64,
    /// When it must not begin any more.
    pub deadline: Instant,
    /// The instance it comes from: change events carry it as `instanceId`.
    pub source: String,
    /// What it does.
    pub work: Work,
}

impl WriteRequest {
    /// Returns a request, or why the op id or the work cannot be.
    pub fn new(op_id: OpId, source: String, deadline: Instant, work: Work) -> Result<Self, Fault> {
        let method = work.label();
        let bytes = op_id.to_string().len();
        if bytes == 0 || bytes > MAX_OP_ID_BYTES {
            return Err(invalid(method, "op_id", format!("has {bytes} bytes, not 1 to {MAX_OP_ID_BYTES}")));
        }
        if let Work::Exec { statements, .. } = &work {
            if statements.is_empty() {
                return Err(invalid(method, "statements", "is empty"));
            }
            if statements.len() > MAX_STATEMENTS {
                let why = format!("{} statements; the limit is {MAX_STATEMENTS}", statements.len());
                return Err(invalid(method, "statements", why));
            }
            for (at, statement) in statements.iter().enumerate() {
                if let Some(name) = statement.params.repeated() {
                    let field = format!("statements[{at}].params.{name}");
                    return Err(invalid(method, &field, "the name stands twice"));
                }
            }
        }
        if let Work::Publish { payload, .. } = &work {
            check_payload(payload)?;
        }
        Ok(Self { op_id, acked: 0, database: None, epoch: 0, deadline, source, work })
    }

    /// Binds the op id to what the request does: the same work has the same fingerprint, on both ends and in later releases.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint::of(&self.work)
    }

    /// Returns the request, meant for one database in some term or a later one.
    #[must_use]
    pub fn meant_for(self, database: Option<Uuid>, epoch: u64) -> Self {
        Self { database, epoch, ..self }
    }

    /// Returns the request, telling what its client has answers to.
    #[must_use]
    pub fn acked(self, acked: u64) -> Self {
        Self { acked, ..self }
    }

    /// Returns about how many bytes the request takes in the queue.
    pub(crate) fn weight(&self) -> usize {
        self.op_id.weight() + self.source.len() + self.work.weight()
    }
}

/// Refuses a payload that is too large or too deep for an event, on the primary as on whoever asks it.
pub fn check_payload(payload: &Json) -> Result<(), Fault> {
    let bytes = payload.as_str().len();
    let why = if bytes > MAX_PAYLOAD_BYTES {
        format!("payload has {bytes} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    } else if payload.is_deeper_than(MAX_PAYLOAD_DEPTH) {
        format!("payload is nested deeper than {MAX_PAYLOAD_DEPTH} levels")
    } else {
        return Ok(());
    };
    Err(refuse(Code::TooLarge, Word::InvalidParams, "publish", why))
}

fn weight_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(values) => values.iter().map(weight_of).sum::<usize>() + 2,
        Value::Object(map) => weight_of_map(map),
        _ => 8,
    }
}

fn weight_of_map(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + 4 + weight_of(value)).sum::<usize>() + 2
}

/// What one statement of a write did. As JSON: `{rows_affected, last_insert_rowid, columns?, rows?}`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "FlatResult")]
pub struct StatementResult {
    /// Rows that it inserted, changed or deleted.
    pub rows_affected: u64,
    /// The row id it inserted last; 0 when it was no INSERT or inserted nothing.
    pub last_insert_rowid: i64,
    /// What a SELECT or a RETURNING returned: `columns` and `rows`.
    pub returned: Option<QueryResult>,
}

/// A [`StatementResult`] as it is written: serde's own flattening builds an error whenever nothing was returned.
#[derive(Deserialize)]
struct FlatResult {
    rows_affected: u64,
    last_insert_rowid: i64,
    columns: Option<Vec<String>>,
    rows: Option<Vec<Vec<SqlValue>>>,
}

impl From<FlatResult> for StatementResult {
    fn from(flat: FlatResult) -> Self {
        let FlatResult { rows_affected, last_insert_rowid, columns, rows } = flat;
        let returned = columns.zip(rows).map(|(columns, rows)| QueryResult { columns, rows });
        Self { rows_affected, last_insert_rowid, returned }
    }
}

impl Serialize for StatementResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let returned = self.returned.as_ref();
        let mut map = serializer.serialize_struct("StatementResult", 2 + 2 * usize::from(returned.is_some()))?;
        map.serialize_field("rows_affected", &self.rows_affected)?;
        map.serialize_field("last_insert_rowid", &self.last_insert_rowid)?;
        if let Some(QueryResult { columns, rows }) = returned {
            map.serialize_field("columns", columns)?;
            map.serialize_field("rows", rows)?;
        }
        map.end()
    }
}

/// The answer to a write that is committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ack<T = Json> {
    /// The journal's head after this write: the `seq` of its last event, if it made any.
    pub seq: u64,
    /// The term in which it was applied.
    pub epoch: u64,
    /// How sure it is.
    pub durability: Durability,
    /// For [`Work::Exec`] one [`StatementResult`] per statement; for [`Work::Named`] its result; for [`Work::Publish`] null.
    pub results: T,
    /// Whether an earlier delivery of the same op was found and its answer is given again.
    #[serde(default)]
    pub replayed: bool,
}

impl Ack {
    /// Returns the acknowledgement with its results read as `T`.
    pub(crate) fn typed<T: serde::de::DeserializeOwned>(self) -> Result<Ack<T>, serde_json::Error> {
        let Self { seq, epoch, durability, results, replayed } = self;
        Ok(Ack { seq, epoch, durability, results: results.read()?, replayed })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_that_would_not_fit_into_a_frame_is_refused() {
        assert!(check_payload(&json!("x".repeat(MAX_PAYLOAD_BYTES - 2)).into()).is_ok());
        assert!(check_payload(&json!("x".repeat(MAX_PAYLOAD_BYTES)).into()).unwrap_err().is(Code::TooLarge));
        assert!(check_payload(&json!("\u{1b}".repeat(MAX_PAYLOAD_BYTES / 2)).into()).unwrap_err().is(Code::TooLarge));
    }

    #[test]
    fn an_event_that_is_too_deep_is_refused_before_it_is_sent() {
        let publish = |levels: usize| {
            let payload = serde_json::from_str(&("[".repeat(levels) + &"]".repeat(levels))).unwrap();
            let topic = Topic::known("a.b");
            let work = Work::Publish { topic, payload, session_id: String::new(), project_id: String::new() };
            WriteRequest::new("x".into(), "i".into(), Instant::now(), work)
        };
        assert!(publish(MAX_PAYLOAD_DEPTH).is_ok());
        let fault = publish(MAX_PAYLOAD_DEPTH + 1).unwrap_err();
        assert!(fault.is(Code::TooLarge), "{fault}");
        assert_eq!(fault.message, "dbproxy: INVALID_PARAMS (publish): payload is nested deeper than 100 levels");
    }

    #[test]
    fn a_bad_op_id_and_an_empty_write_are_refused() {
        let exec = |count| Work::Exec { statements: vec![Statement::new("SELECT 1", ()); count], ddl: false };
        let make = |op_id: &str, work| WriteRequest::new(op_id.into(), "i".into(), Instant::now(), work);
        assert!(make("x", exec(1)).is_ok());
        let twice = Statement::new("SELECT :a", Params::named([("a", 1), (":a", 2)]));
        let fault = make("x", Work::Exec { statements: vec![twice], ddl: false }).unwrap_err();
        assert_eq!(fault.data.unwrap()["field"], "statements[0].params.:a");
        for refused in [make("", exec(1)), make(&"x".repeat(129), exec(1)), make("x", exec(0)), make("x", exec(1_001))]
        {
            assert!(refused.unwrap_err().message.starts_with("dbproxy: INVALID_PARAMS (exec): "));
        }
    }
}
