//! `db.*`: the database for those who do not read the file themselves.

use std::sync::Arc;
use std::time::Duration;

use pando_dbproxy::catalog::{Depth, Health};
use pando_dbproxy::{DbError, QueryLimits, Readers, WriteError, wire};
use pando_ipc::access::Capability;
use pando_ipc::methods::{Call, Reply};
use pando_ipc::rpc::Json;
use pando_ipc::{Code, Fault};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Method, write_result};
use crate::instance::Primary;

/// One SQL statement.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_exec reads")]
struct Statement {
    /// One statement, with `?` or `:name` parameters.
    sql: String,
    /// An array for `?`, an object for `:name`. Blobs travel as `{"$blob": "<base64>"}`, non-finite numbers as `{"$real": "inf"}`, what earlier
    /// statements made as `{"$rowid": 0}` and `{"$returned": {"statement": 0, "row": 0, "column": "id"}}`.
    params: Option<Value>,
}

/// What every write may carry.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the fields that wire reads of every write")]
pub(super) struct Frame {
    /// Of a counted op id: the counter below which the client has all answers.
    acked: Option<u64>,
    /// The database that is meant; another one refuses.
    database: Option<String>,
    /// The term that is meant, or a later one; an earlier one refuses.
    epoch: Option<u64>,
    /// How long the write may wait before it is dropped unapplied, in milliseconds.
    timeout_ms: Option<u64>,
    /// Who writes.
    source_instance_id: Option<String>,
}

/// What `db.exec` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_exec reads")]
struct Exec {
    /// Makes a repeated call apply once.
    op_id: Option<String>,
    /// Whether statements may change the schema.
    ddl: Option<bool>,
    /// They commit or fail together.
    statements: Vec<Statement>,
    #[schemars(flatten)]
    frame: Frame,
}

/// What `db.exec` answers.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::exec_result writes")]
struct ExecResult {
    /// Number of the write's last event, or of the last event before it.
    seq: u64,
    /// The primary's term.
    epoch: u64,
    /// `disk` or `os`: what the acknowledged write has survived.
    durability: String,
    /// Per statement: `{rows_affected, last_insert_rowid, columns?, rows?}`.
    results: Vec<Value>,
    /// Whether the op had been carried out already, and this is its answer again.
    replayed: bool,
}

/// Who writes, and under which key.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_write reads")]
struct Meta {
    /// The op id among those of its source: a repeated call applies once.
    request_id: String,
    /// When, RFC 3339.
    timestamp: String,
    /// An op id that is unique for ever, in place of `request_id`.
    op_id: Option<String>,
    /// Whether the whole acknowledgement is wanted, and not the row alone.
    ack: Option<bool>,
    #[schemars(flatten)]
    frame: Frame,
}

/// What `db.write` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_write reads")]
struct Write {
    meta: Meta,
    /// One of the named writes: of the agent store, such as `CreateSession`, or of the application.
    method: String,
    /// Its params; deletes take a bare string.
    params: Value,
}

/// What `db.outcome` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_outcome reads")]
struct Settle {
    /// The write's op id.
    op_id: String,
    /// `source_instance_id` says that the op id is the `request_id` of a `db.write` of that source.
    #[schemars(flatten)]
    frame: Frame,
}

/// What `db.outcome` answers.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape of pando_dbproxy::Outcome")]
struct Settled {
    /// `applied`, `not_applied` (and it never will be) or `unknown` (its op id is forgotten).
    outcome: String,
    /// The answer that it got, when it was applied.
    ack: Option<Value>,
    /// Why it is unknown.
    reason: Option<String>,
}

/// What `db.query` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_query reads")]
struct Query {
    /// One statement that only reads.
    sql: String,
    /// An array for `?`, an object for `:name`.
    params: Option<Value>,
    /// Wait until the event of this number is visible.
    min_seq: Option<u64>,
    /// How long to wait for it, in milliseconds.
    timeout_ms: Option<u64>,
}

/// What `db.check` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Check {
    /// Leave out the comparison of indexes with their tables: much faster.
    #[serde(default)]
    quick: bool,
    /// How long it may take, in milliseconds; 60,000 when not given.
    timeout_ms: Option<u64>,
}

/// What `db.check` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Checked {
    /// Whether nothing is wrong.
    ok: bool,
    /// What is wrong, at most 100 lines.
    problems: Vec<String>,
    /// Pages looked at.
    pages: u64,
    /// How long it took, in milliseconds.
    took_ms: u64,
}

/// How long a check may take when nothing is said: it reads the whole file.
const CHECK_TIME: Duration = Duration::from_secs(60);

/// What `db.query` answers.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape of QueryResult")]
struct Table {
    /// Names of the columns.
    columns: Vec<String>,
    /// Rows of values in the order of the columns.
    rows: Vec<Vec<Value>>,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::deferred::<Write, Option<Value>>("db.write", Capability::Write, "Performs a named write.", write),
        Method::deferred::<Exec, ExecResult>(
            "db.exec",
            Capability::Write,
            "Executes SQL statements in one transaction.",
            exec,
        ),
        Method::raw::<Settle, Settled, _, _>(
            "db.outcome",
            Capability::Write,
            "Tells what became of a write, for good.",
            outcome,
        ),
        Method::raw::<Query, Table, _, _>(
            "db.query",
            Capability::Read,
            "Reads the database with one SQL statement.",
            query,
        ),
        Method::new(
            "db.check",
            Capability::Read,
            "Checks that the database is sound.",
            |primary, caller, params: Check| async move { check(primary.db(&caller).readers(), &params).await },
        ),
    ]
}

fn write(primary: &Primary, call: &Call, reply: Reply) {
    let source = primary.name_of(&call.caller);
    match wire::parse_write(&call.params, &source, &primary.shared.options.writes) {
        Ok((request, answer)) => primary
            .writer
            .submit_then(request, move |result| reply.send(result.map(|ack| wire::write_result(&answer, &ack)))),
        Err(fault) => drop(reply.send::<Json>(Err(fault))),
    }
}

fn exec(primary: &Primary, call: &Call, reply: Reply) {
    match wire::parse_exec(&call.params, &primary.name_of(&call.caller)) {
        Ok(request) => {
            primary.writer.submit_then(request, |result| reply.send(result.map(|ack| wire::exec_result(&ack))));
        }
        Err(fault) => drop(reply.send::<Json>(Err(fault))),
    }
}

async fn outcome(primary: Arc<Primary>, call: Call) -> Result<Json, Fault> {
    let request = wire::parse_outcome(&call.params, &primary.name_of(&call.caller))?;
    Ok(wire::outcome_result(primary.writer.submit(request).await?))
}

async fn query(primary: Arc<Primary>, call: Call) -> Result<Json, Fault> {
    let wire::Query { statement, min_seq, deadline } = wire::parse_query(&call.params)?;
    let db = primary.db(&call.caller);
    let readers = db.readers();
    if let Some(seq) = min_seq {
        readers.wait_for(seq, deadline).await?;
    }
    write_result(readers.query(statement.sql, statement.params, QueryLimits::default()).await?)
}

async fn check(readers: &Readers, params: &Check) -> Result<Checked, Fault> {
    let within = params.timeout_ms.map_or(CHECK_TIME, Duration::from_millis);
    let depth = if params.quick { Depth::Quick } else { Depth::Full };
    let Health { ok, problems, pages, took_ms } = readers.check(depth, within).await?;
    Ok(Checked { ok, problems, pages, took_ms })
}

/// Turns a failure of the agent store into the answer of a call.
pub(super) fn fault(error: DbError) -> Fault {
    match error {
        DbError::Write(WriteError::Refused(fault)) => fault,
        DbError::Read(error) => error.into(),
        DbError::Write(error) => Fault::new(Code::OutcomeUnknown, error.to_string()),
        DbError::Shape(error) => Fault::internal(error),
    }
}
