//! Applies one write inside the open transaction: dedup, the work itself, its events, its stored answer.

use std::borrow::Cow;
use std::time::Instant;

use pando_ipc::bus::MAX_OUTGOING_BYTES;
use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use pando_ipc::{Envelope, Fault, Recorded};

use super::dedup::{self, Found, Stored};
use super::thread::Desk;
use crate::guard::Mode;
use crate::migrate::MIGRATE;
use crate::refusal::{Word, expired, from_sqlite, refuse, too_large};
use crate::run::{Limits, Runner};
use crate::track::Author;
use crate::tx::{Published, Tx, after_schema_change};
use crate::write::{Ack, Outcome, Statement, Work, WriteRequest, check_payload};

/// Most rows that the statements of one write return. More are refused with `E_TOO_LARGE`.
pub(super) const RETURNED_ROWS: usize = 10_000;
/// Most bytes of what a write returns, as JSON: it fits into an answer, whoever asks. More are refused with `E_TOO_LARGE`, and the write is not applied.
pub(super) const RETURNED_BYTES: usize = MAX_OUTGOING_BYTES - (64 << 10);

/// What to do about a write that ran for as long as any may, before its own deadline.
const TOO_LONG: &str =
    "do less in one write: everybody else's wait for it, and so none runs longer, whatever its deadline";

/// A write that is applied, but not yet committed.
pub(super) enum Applied {
    /// It was applied just now, with these events.
    Now(Ack, Vec<Recorded>),
    /// An earlier delivery was found.
    Before(Ack),
}

impl Desk {
    /// Applies one write. After a fault the caller rolls back.
    pub(super) fn apply(&mut self, request: &WriteRequest) -> Result<Applied, Fault> {
        let label = request.work.label();
        let sqlite = |error: rusqlite::Error| from_sqlite(label, &error, None);
        if let Some(meant) = request.database.filter(|meant| *meant != self.database) {
            let message = format!("the write is meant for database {meant}; this is {}", self.database);
            return Err(refuse(Code::WrongDatabase, Word::Conflict, label, message));
        }
        if request.epoch > self.epoch {
            let message = format!(
                "the write is meant for epoch {}; this is epoch {}; nothing was applied",
                request.epoch, self.epoch
            );
            return Err(refuse(Code::Fenced, Word::Unreachable, label, message));
        }
        let found = self.ops.find(&self.connection, &request.op_id, request.acked).map_err(sqlite)?;
        if request.work == Work::Settle {
            return self.settle(request, found);
        }
        match found {
            Found::New => {}
            Found::Stored(stored) => return self.replay(request, &stored),
            Found::Forgotten => {
                let message = format!(
                    "op id {} is forgotten: the write may have been applied, and is not run again",
                    request.op_id
                );
                return Err(refuse(Code::OutcomeUnknown, Word::Internal, label, message));
            }
        }
        if Instant::now() >= request.deadline {
            return Err(expired(label));
        }
        self.track.clear();
        let (results, published) = self.work(request).map_err(|fault| {
            let had_its_time = fault.is(Code::Deadline) && Instant::now() < request.deadline;
            if had_its_time { fault.with("next", TOO_LONG) } else { fault }
        })?;
        let bytes = results.as_str().len();
        if bytes > RETURNED_BYTES {
            let why = format!("the write returns {bytes} bytes; the limit is {RETURNED_BYTES}; nothing was applied");
            return Err(too_large(label, why));
        }
        let (collected, mut events) = (self.track.take(), Vec::new());
        let author = Author { source: &request.source, path: &self.path, method: label };
        // The last event keeps the op.
        let (mut none, mut op) = (None, dedup::kept_by_event(request, &results));
        let wants = op.is_some();
        let mut changes = collected.events(author).peekable();
        while let Some(event) = changes.next() {
            let op = if changes.peek().is_none() && published.is_empty() { &mut op } else { &mut none };
            let event = self.journal.append(&self.connection, event, op).map_err(sqlite)?;
            let bytes = event.text().len();
            if bytes > RETURNED_BYTES {
                let why = format!(
                    "the key of a row of {} makes an event of {bytes} bytes; the limit is {RETURNED_BYTES}; nothing was applied",
                    event.topic()
                );
                return Err(too_large(label, why));
            }
            events.push(event);
        }
        let mut published = published.into_iter().peekable();
        while let Some(event) = published.next() {
            check_payload(&event.payload)?;
            let op = if published.peek().is_none() { &mut op } else { &mut none };
            events.push(self.journal.append(&self.connection, event, op).map_err(sqlite)?);
        }
        let seq = self.journal.head();
        if wants && op.is_none() {
            self.ops.note_kept(request, seq);
        } else {
            self.ops.store(&self.connection, request, self.epoch, seq, Some(&results)).map_err(sqlite)?;
        }
        let ack = Ack { seq, epoch: self.epoch, durability: self.durability, results, replayed: false };
        Ok(Applied::Now(ack, events))
    }

    /// Gives the answer of an earlier delivery again.
    fn replay(&self, request: &WriteRequest, stored: &Stored) -> Result<Applied, Fault> {
        let label = request.work.label();
        let Some(ack) = self.ack_of(stored) else {
            let message = format!("op id {} was settled as not applied; write under a new one", request.op_id);
            return Err(refuse(Code::Abandoned, Word::Conflict, label, message));
        };
        if stored.fingerprint != request.fingerprint() {
            let message = format!("op id {:?} was used for another write", request.op_id.to_string());
            return Err(refuse(Code::KeyReused, Word::Conflict, label, message));
        }
        Ok(Applied::Before(ack))
    }

    /// Tells what became of an op id, and sees that it stays so.
    fn settle(&mut self, request: &WriteRequest, found: Found) -> Result<Applied, Fault> {
        let sqlite = |error: rusqlite::Error| from_sqlite(request.work.label(), &error, None);
        let outcome = match found {
            Found::Stored(stored) => match self.ack_of(&stored).map(Ack::typed) {
                None => Outcome::NotApplied,
                Some(Ok(ack)) => Outcome::Applied { ack },
                Some(Err(why)) => Outcome::Unknown { reason: format!("what is stored of it is unreadable: {why}") },
            },
            Found::Forgotten => Outcome::Unknown {
                reason: "this op id is forgotten: its client had the answer, or it is too old".to_owned(),
            },
            Found::New => {
                if let Some(until) = dedup::maybe_forgotten(&self.connection, &request.op_id).map_err(sqlite)? {
                    let reason = format!("writes under chosen op ids are forgotten up to unix time {until}");
                    Outcome::Unknown { reason }
                } else {
                    let seq = self.journal.head();
                    self.ops.store(&self.connection, request, self.epoch, seq, None).map_err(sqlite)?;
                    Outcome::NotApplied
                }
            }
        };
        let (seq, epoch, durability) = (self.journal.head(), self.epoch, self.durability);
        Ok(Applied::Now(Ack { seq, epoch, durability, results: Json::of(&outcome), replayed: false }, Vec::new()))
    }

    /// Returns the answer that is stored, unless the op was settled as not applied.
    fn ack_of(&self, stored: &Stored) -> Option<Ack> {
        let Stored { seq, epoch, results, .. } = stored;
        let results = results.clone()?;
        Some(Ack { seq: *seq, epoch: *epoch, durability: self.durability, results, replayed: true })
    }

    /// Does the work. Returns its results and the events that it published.
    fn work<'r>(&self, request: &'r WriteRequest) -> Result<(Json, Vec<Published<'r>>), Fault> {
        let method = request.work.label();
        let limit = match &request.work {
            // A schema changes once; its sender says how long that may take.
            Work::Named { method, .. } if method == MIGRATE => request.deadline,
            Work::Exec { ddl: true, .. } => request.deadline,
            _ => Instant::now() + self.tuning.write_time,
        };
        let deadline = request.deadline.min(limit);
        let limits = Limits { rows: RETURNED_ROWS, bytes: RETURNED_BYTES };
        let mode = match &request.work {
            Work::Exec { ddl: true, .. } => Mode::Schema,
            _ => Mode::Write,
        };
        let runner = Runner { connection: &self.connection, guard: &self.guard, mode, deadline, limits, method };
        let tx = Tx::new(runner, &self.track, &self.writes, &request.source);
        let results = match &request.work {
            Work::Exec { statements, ddl } => self.exec(&tx, statements, *ddl)?,
            Work::Named { method, params } => self.writes.find(method)?.run(&tx, params)?.into(),
            Work::Publish { topic, payload, session_id, project_id } => {
                let mut event = Envelope::carrying(&request.source, topic.clone(), Cow::Borrowed(payload));
                (event.session_id, event.project_id) = (session_id.clone(), project_id.clone());
                return Ok((Json::null(), vec![event]));
            }
            Work::Settle => Json::null(),
        };
        Ok((results, tx.finish()?))
    }

    fn exec(&self, tx: &Tx<'_>, statements: &[Statement], ddl: bool) -> Result<Json, Fault> {
        let mut results = Vec::with_capacity(statements.len());
        for statement in statements {
            let result = if statement.params.refers() {
                let mut statement = statement.clone();
                statement.params.resolve(tx.method(), &results).and_then(|()| tx.run(&statement))
            } else {
                tx.run(statement)
            };
            // Whoever sent several wants to know which.
            results.push(result.map_err(|fault| fault.with("statement", results.len()))?);
            if ddl {
                after_schema_change(&self.connection, &self.track, self.reserved, tx.method())?;
            }
        }
        Ok(Json::of(&results))
    }
}
