//! `db.*`: the database for those who do not read the file themselves.

use std::time::{Duration, Instant};

use pando_dbproxy::{ReadError, wire};
use pando_ipc::{Code, Fault};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Method;

/// How long `db.query` waits for `min_seq`.
const MIN_SEQ_WAIT: Duration = Duration::from_secs(2);

/// One SQL statement.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_exec reads")]
struct Statement {
    /// One statement, with `?` or `:name` parameters.
    sql: String,
    /// An array for `?`, an object for `:name`. Blobs travel as `{"$blob": "<base64>"}`, non-finite numbers as `{"$real": "inf"}`.
    params: Option<Value>,
}

/// What `db.exec` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_exec reads")]
struct Exec {
    /// Makes a repeated call apply once.
    op_id: Option<String>,
    /// The database that is meant; another one refuses.
    database: Option<String>,
    /// Whether statements may change the schema.
    ddl: Option<bool>,
    /// They commit or fail together.
    statements: Vec<Statement>,
    /// How long the write may wait before it is dropped unapplied, in milliseconds.
    timeout_ms: Option<u64>,
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
}

/// Who writes, and under which key.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_write reads")]
struct Meta {
    /// Who writes.
    source_instance_id: String,
    /// The op id: a repeated call applies once.
    request_id: String,
    /// When, RFC 3339.
    timestamp: String,
}

/// What `db.write` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_write reads")]
struct Write {
    meta: Meta,
    /// One of the named writes, such as `CreateSession`.
    method: String,
    /// Its params; deletes take a bare string.
    params: Value,
}

/// What `db.query` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Query {
    /// One statement that only reads.
    sql: String,
    /// An array for `?`, an object for `:name`.
    #[serde(default)]
    params: Value,
    /// Wait, up to 2 s, until the event of this number is visible.
    min_seq: Option<u64>,
}

/// What `db.query` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Table {
    /// Names of the columns.
    columns: Vec<String>,
    /// Rows of values in the order of the columns.
    rows: Vec<Vec<Value>>,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::raw::<Write, Option<Value>, _, _>("db.write", "Performs a named write of the agent store.", |primary, call| async move {
            let source = primary.name_of(&call.caller);
            let request = wire::parse_write(call.params, &source)?;
            let ack = primary.writer.submit(request).await?;
            Ok(wire::write_result(&ack))
        }),
        Method::raw::<Exec, ExecResult, _, _>("db.exec", "Executes SQL statements in one transaction.", |primary, call| async move {
            let source = primary.name_of(&call.caller);
            let request = wire::parse_exec(call.params, &source)?;
            let ack = primary.writer.submit(request).await?;
            Ok(wire::exec_result(&ack))
        }),
        Method::new("db.query", "Reads the database with one SQL statement.", |primary, _caller, query: Query| async move {
            let readers = &primary.shared.readers;
            if let Some(seq) = query.min_seq {
                readers.wait_for(seq, Instant::now() + MIN_SEQ_WAIT).await.map_err(read_fault)?;
            }
            let params = wire::parse_params(query.params)?;
            let table = readers.query(&query.sql, params).await.map_err(read_fault)?;
            Ok(Table { columns: table.columns, rows: table.rows })
        }),
    ]
}

/// Turns a failed read into the answer of a call.
pub(super) fn read_fault(error: ReadError) -> Fault {
    match error {
        ReadError::Refused(fault) => fault,
        error => Fault::new(Code::Storage, error.to_string()),
    }
}
