//! Applies one write inside its savepoint: dedup, the work itself, its events, its stored answer.

use std::time::Instant;

use pando_ipc::fault::Code;
use pando_ipc::{Envelope, Fault, Timestamp};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::dedup;
use super::thread::Thread;
use crate::guard::Mode;
use crate::refusal::{Word, expired, from_sqlite, refuse};
use crate::run::{Limits, Ran, Runner};
use crate::store::methods;
use crate::track::{Change, Track};
use crate::value::SqlValue;
use crate::write::{Ack, Params, Statement, Work, WriteRequest};

/// Most rows that the statements of one write return. More are refused with `E_TOO_LARGE`.
pub(super) const RETURNED_ROWS: usize = 10_000;
/// Most bytes that they return. More are refused with `E_TOO_LARGE`.
pub(super) const RETURNED_BYTES: usize = 8 << 20;

/// A write that is applied, but not yet committed.
pub(super) enum Applied {
    /// It was applied just now, with these events.
    Now(Ack, Vec<Envelope>),
    /// An earlier delivery was found.
    Before(Ack),
}

impl Thread {
    /// Applies one write. After a fault the caller rolls back.
    pub(super) fn apply(&mut self, request: &WriteRequest) -> Result<Applied, Fault> {
        let label = request.work.label();
        let sqlite = |error: rusqlite::Error| from_sqlite(label, &error, None);
        if let Some(meant) = request.database.filter(|meant| *meant != self.database) {
            let message = format!("the write is meant for database {meant}; this is {}", self.database);
            return Err(refuse(Code::WrongDatabase, Word::Conflict, label, message));
        }
        if let Some(stored) = dedup::find(&self.connection, &request.op_id).map_err(sqlite)? {
            if stored.fingerprint != request.fingerprint {
                let message = format!("op id {:?} was used for another write", request.op_id);
                return Err(refuse(Code::KeyReused, Word::Conflict, label, message));
            }
            let dedup::Stored { seq, epoch, results, .. } = stored;
            return Ok(Applied::Before(Ack { seq, epoch, durability: self.durability, results, replayed: true }));
        }
        if Instant::now() >= request.deadline {
            return Err(expired(label));
        }
        self.track.clear();
        let results = self.work(request)?;
        let mut events = Vec::new();
        if let Work::Publish { topic, payload, session_id, project_id } = &request.work {
            let mut event = Envelope::new(&request.source, topic.clone(), payload.clone());
            event.session_id.clone_from(session_id);
            event.project_id.clone_from(project_id);
            events.push(self.journal.append(&self.connection, event).map_err(sqlite)?);
        }
        for change in self.track.take() {
            let event = self.change_event(request, change);
            events.push(self.journal.append(&self.connection, event).map_err(sqlite)?);
        }
        let seq = self.journal.head();
        dedup::store(&self.connection, request, self.epoch, seq, &results).map_err(sqlite)?;
        let ack = Ack { seq, epoch: self.epoch, durability: self.durability, results, replayed: false };
        Ok(Applied::Now(ack, events))
    }

    fn change_event(&self, request: &WriteRequest, change: Change) -> Envelope {
        let mut event = Envelope::new(&request.source, change.topic, Value::Null);
        event.session_id = change.session_id;
        let mut detail = serde_json::Map::from_iter([("method".to_owned(), json!(request.work.label()))]);
        detail.extend(change.detail);
        event.payload = json!({
            "instance_id": request.source,
            "path": self.workdir.to_string_lossy(),
            "topic": event.topic,
            "payload": detail,
            "timestamp": event.timestamp,
        });
        event
    }

    fn work(&mut self, request: &WriteRequest) -> Result<Value, Fault> {
        let label = request.work.label();
        let deadline = request.deadline.min(Instant::now() + self.tuning.write_time);
        let limits = Limits { rows: RETURNED_ROWS, bytes: RETURNED_BYTES };
        let mode = match &request.work {
            Work::Exec { ddl: true, .. } => Mode::Schema,
            _ => Mode::Write,
        };
        let runner = Runner { connection: &self.connection, guard: &self.guard, mode, deadline, limits, method: label };
        match &request.work {
            Work::Exec { statements, .. } => self.exec(runner, statements),
            Work::Named { method, params } => named(runner, method, params),
            Work::Publish { .. } => Ok(Value::Null),
        }
    }

    fn exec(&self, mut runner: Runner<'_>, statements: &[Statement]) -> Result<Value, Fault> {
        let mut results = Vec::with_capacity(statements.len());
        for statement in statements {
            let before = self.connection.total_changes();
            let ran = runner.run(statement)?;
            runner.limits.rows = runner.limits.rows.saturating_sub(ran.rows.len());
            let weight = ran.rows.iter().flatten().map(SqlValue::weight).sum();
            runner.limits.bytes = runner.limits.bytes.saturating_sub(weight);
            results.push(result(&self.connection, before, statement, &ran));
            if runner.mode == Mode::Schema {
                self.after_schema_change(runner.method)?;
            }
        }
        Ok(Value::Array(results))
    }

    /// Makes the trackers anew, whatever the statement did to them, and sees that nothing reserved came to be.
    fn after_schema_change(&self, method: &str) -> Result<(), Fault> {
        let sqlite = |error: rusqlite::Error| from_sqlite(method, &error, None);
        Track::renew(&self.connection).map_err(sqlite)?;
        if reserved_names(&self.connection).map_err(sqlite)? == self.reserved {
            return Ok(());
        }
        let message = "names with _pando_ are reserved, also as the target of a foreign key";
        Err(refuse(Code::Forbidden, Word::InvalidParams, method, message))
    }
}

/// Counts names with our prefix in the schema, and foreign keys that lead to them.
pub(super) fn reserved_names(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT (SELECT count(*) FROM main.sqlite_schema WHERE name LIKE '\\_pando\\_%' ESCAPE '\\')
        + (SELECT count(*) FROM pragma_table_list AS t, pragma_foreign_key_list(t.name) AS f
           WHERE t.schema = 'main' AND f.\"table\" LIKE '\\_pando\\_%' ESCAPE '\\')";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Returns what one statement of an exec did.
fn result(connection: &Connection, changes_before: u64, statement: &Statement, ran: &Ran) -> Value {
    let changed = connection.total_changes() > changes_before;
    let rows_affected = if changed { connection.changes() } else { 0 };
    // SQLite keeps the last rowid for ever: after anything but an insert it would be a stranger's.
    let inserts = ["insert", "replace", "with"].contains(&first_word(&statement.sql).to_ascii_lowercase().as_str());
    let rowid = if rows_affected > 0 && inserts { connection.last_insert_rowid() } else { 0 };
    let mut result = json!({"rows_affected": rows_affected, "last_insert_rowid": rowid});
    if !ran.columns.is_empty() {
        result["columns"] = json!(ran.columns);
        result["rows"] = json!(ran.rows);
    }
    result
}

/// Returns the first word behind white space and comments.
fn first_word(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        let behind = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map(|(_, rest)| rest)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map(|(_, rest)| rest)
        } else {
            return rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
        };
        rest = behind.unwrap_or("").trim_start();
    }
}

fn named(runner: Runner<'_>, method: &str, params: &Value) -> Result<Value, Fault> {
    #[cfg(test)]
    assert!(params.get("title").is_none_or(|title| title != "panic!"), "a test asked for it");
    let method = methods::find(method)?;
    let mut values = match params {
        Value::Object(map) => map.iter().map(|(name, value)| (format!(":{name}"), value.clone())).collect(),
        Value::Null => Vec::new(),
        id => vec![(":id".to_owned(), id.clone())],
    };
    if method.sql.contains(":now") {
        values.push((":now".to_owned(), json!(Timestamp::now().unix_seconds())));
    }
    let bind = |(name, value): (String, Value)| {
        SqlValue::from_json(&value)
            .map(|value| (name, value))
            .map_err(|why| crate::refusal::invalid(method.name, "params", why))
    };
    let values = values.into_iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let ran = runner.run(&Statement { sql: method.sql.to_owned(), params: Params::Named(values) })?;
    if method.returns_row && ran.rows.is_empty() {
        let id = params.get("id").unwrap_or(&Value::Null);
        let message = format!("sql: no rows in result set: nothing has id {id}");
        return Err(refuse(Code::NotFound, Word::Internal, method.name, message));
    }
    Ok(ran.first_row())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_stands_behind_comments() {
        assert_eq!(first_word(" -- a\n /* b */insert/**/ into"), "insert");
        assert_eq!(first_word("UPDATE t"), "UPDATE");
        assert_eq!(first_word("-- only"), "");
    }
}
