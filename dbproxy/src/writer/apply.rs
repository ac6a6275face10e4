//! Applies one write inside its savepoint: dedup, the work itself, its events, its stored answer.

use std::time::Instant;

use pando_ipc::fault::Code;
use pando_ipc::{Envelope, Fault};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::dedup;
use super::thread::Thread;
use crate::guard::Mode;
use crate::refusal::{Word, expired, from_sqlite, refuse};
use crate::run::{Limits, Runner};
use crate::track::{Change, Track};
use crate::tx::Tx;
use crate::write::{Ack, Statement, Work, WriteRequest, check_payload};

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
        let (results, published) = self.work(request)?;
        let mut events = Vec::new();
        for change in self.track.take() {
            let event = self.change_event(request, change);
            events.push(self.journal.append(&self.connection, event).map_err(sqlite)?);
        }
        for event in published {
            check_payload(&event.payload)?;
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

    /// Does the work. Returns its results and the events that it published.
    fn work(&self, request: &WriteRequest) -> Result<(Value, Vec<Envelope>), Fault> {
        let method = request.work.label();
        let deadline = request.deadline.min(Instant::now() + self.tuning.write_time);
        let limits = Limits { rows: RETURNED_ROWS, bytes: RETURNED_BYTES };
        let mode = match &request.work {
            Work::Exec { ddl: true, .. } => Mode::Schema,
            _ => Mode::Write,
        };
        let runner = Runner { connection: &self.connection, guard: &self.guard, mode, deadline, limits, method };
        let tx = Tx::new(runner, &self.writes, &request.source);
        let results = match &request.work {
            Work::Exec { statements, ddl } => self.exec(&tx, statements, *ddl)?,
            Work::Named { method, params } => self.writes.find(method)?.run(&tx, params)?,
            Work::Publish { topic, payload, session_id, project_id } => {
                let mut event = Envelope::new(&request.source, topic.clone(), payload.clone());
                (event.session_id, event.project_id) = (session_id.clone(), project_id.clone());
                tx.append(event);
                Value::Null
            }
        };
        Ok((results, tx.into_published()))
    }

    fn exec(&self, tx: &Tx<'_>, statements: &[Statement], ddl: bool) -> Result<Value, Fault> {
        let mut results = Vec::with_capacity(statements.len());
        for statement in statements {
            let result = if statement.params.refers() {
                let mut statement = statement.clone();
                statement.params.resolve(tx.method(), &results)?;
                tx.run(&statement)?
            } else {
                tx.run(statement)?
            };
            results.push(result);
            if ddl {
                self.after_schema_change(tx.method())?;
            }
        }
        Ok(json!(results))
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
