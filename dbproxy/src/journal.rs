//! The journal of durable events: numbered by the writer, read by everyone.

mod history;
mod retention;

use std::collections::HashMap;

use pando_ipc::{Envelope, Recorded};
use rusqlite::{Connection, params};
use serde::Serialize;
use uuid::Uuid;

pub use history::{MAX_PAGE_BYTES, MAX_PAGE_EVENTS};
pub(crate) use history::{bounds, count, epoch, head, last_before, since};
pub use retention::Retention;
use retention::{Ages, Sizes};

/// Most events that are removed or measured at once, beside a commit: more would stall the writer.
pub(crate) const PRUNE_CHUNK: u64 = 1_000;
/// Most bytes of them, for the same reason; a larger event goes alone.
const PRUNE_BYTES: u64 = 4 << 20;
/// Events after which the last number of each topic is written down: as many are read again when a term begins.
const SAVE_EVERY: u64 = 250;
/// Topics whose last number is kept in memory although it is written down.
const MAX_TOPICS: usize = 10_000;
/// Key of the event up to which the last numbers of topics are written down.
const TOPICS: &str = "topics";
/// Largest event that keeps an op, as JSON: both stand on one page, so that looking for ops reads no others.
const MAX_KEEPING_BYTES: usize = 2_048;

const LAST_OF_TOPIC: &str = "SELECT coalesce((SELECT seq FROM _pando_topic WHERE topic = ?1), 0)";
const APPEND: &str = "INSERT INTO _pando_event (seq, epoch, topic, prev, at, envelope) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const APPEND_KEEPING: &str = "INSERT INTO _pando_event VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
const SAVED: &str = "SELECT coalesce((SELECT value FROM _pando_meta WHERE key = ?1), 0)";
const NOT_SAVED: &str = "SELECT topic, seq FROM _pando_event WHERE seq > ?1 ORDER BY seq";
/// What loading runs, and looking at the term.
pub(crate) const LOADS: &[&str] = &[history::BOUNDS, SAVED, NOT_SAVED, history::EPOCH];
/// What appending runs.
pub(crate) const APPENDS: &[&str] = &[LAST_OF_TOPIC, APPEND, APPEND_KEEPING];

/// The op id and the answer of a write, which its last event keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptOp<'a> {
    pub(crate) client: &'a Uuid,
    pub(crate) counter: u64,
    pub(crate) fingerprint: i64,
    pub(crate) results: &'a str,
}

/// The writer's end: hands out numbers and appends.
#[derive(Debug)]
pub(crate) struct Journal {
    epoch: u64,
    head: u64,
    oldest: u64,
    /// The last number of topics: of all that have an event after `saved`.
    last: HashMap<Box<str>, u64>,
    /// The event up to which the last numbers are written down.
    saved: u64,
    /// How to take back what the open transaction appended: topic and its number before.
    undo: Vec<(Box<str>, u64)>,
    /// Bytes that the open transaction appended.
    bytes: u64,
    sizes: Sizes,
    ages: Ages,
}

/// A point to which the journal can be taken back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    head: u64,
    undo: usize,
    bytes: u64,
}

impl Journal {
    /// Reads where the journal stands.
    pub(crate) fn load(connection: &Connection, epoch: u64) -> rusqlite::Result<Self> {
        let (oldest, head) = bounds(connection)?;
        let saved = connection.prepare_cached(SAVED)?.query_row([TOPICS], |row| row.get(0))?;
        let mut statement = connection.prepare_cached(NOT_SAVED)?;
        let last = statement.query_map([saved], |row| Ok((row.get::<_, Box<str>>(0)?, row.get(1)?)))?;
        Ok(Self {
            epoch,
            head,
            oldest,
            last: last.collect::<rusqlite::Result<_>>()?,
            saved,
            undo: Vec::new(),
            bytes: 0,
            sizes: Sizes::default(),
            ages: Ages::default(),
        })
    }

    /// Returns the number of the last event.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Numbers the event and writes it, in the open transaction. An op is taken where there is room for it.
    pub(crate) fn append<P: Serialize>(
        &mut self,
        connection: &Connection,
        mut event: Envelope<P>,
        op: &mut Option<KeptOp<'_>>,
    ) -> rusqlite::Result<Recorded> {
        let prev = self.last_of(connection, event.topic.as_str())?;
        let seq = self.head + 1;
        (event.epoch, event.seq, event.prev, event.n) = (Some(self.epoch), Some(seq), Some(prev), None);
        let recorded = Recorded::new(&event).map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))?;
        let (topic, text) = (recorded.topic(), recorded.text());
        let at = event.timestamp.unix_seconds();
        if let Some(KeptOp { client, counter, fingerprint, results }) = op.take_if(|_| text.len() <= MAX_KEEPING_BYTES)
        {
            let row = params![seq, self.epoch, topic, prev, at, text, client.as_bytes(), counter, fingerprint, results];
            connection.prepare_cached(APPEND_KEEPING)?.execute(row)?;
        } else {
            connection.prepare_cached(APPEND)?.execute(params![seq, self.epoch, topic, prev, at, text])?;
        }
        match self.last.get_mut(topic) {
            Some(last) => *last = seq,
            None => _ = self.last.insert(topic.into(), seq),
        }
        self.undo.push((topic.into(), prev));
        self.head = seq;
        self.bytes += text.len() as u64;
        Ok(recorded)
    }

    fn last_of(&self, connection: &Connection, topic: &str) -> rusqlite::Result<u64> {
        if let Some(seq) = self.last.get(topic) {
            return Ok(*seq);
        }
        connection.prepare_cached(LAST_OF_TOPIC)?.query_row([topic], |row| row.get(0))
    }

    /// Returns the present point.
    pub(crate) fn mark(&self) -> Mark {
        Mark { head: self.head, undo: self.undo.len(), bytes: self.bytes }
    }

    /// Takes back what was appended since `mark`: its savepoint or transaction was rolled back.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        (self.head, self.bytes) = (mark.head, mark.bytes);
        for (topic, seq) in self.undo.drain(mark.undo..).rev() {
            self.last.insert(topic, seq);
        }
    }

    /// Makes what was appended final: its transaction is committed.
    pub(crate) fn commit(&mut self) {
        if !self.undo.is_empty() {
            self.sizes.add(self.head + 1 - self.undo.len() as u64, self.bytes);
        }
        self.undo.clear();
        self.bytes = 0;
    }

    /// Tells whether it is time to write down the last numbers of topics.
    pub(crate) fn is_savable(&self) -> bool {
        self.head >= self.saved + SAVE_EVERY
    }

    /// Writes down the last numbers of topics, in the open transaction; [`Self::is_kept`] follows when it is committed.
    pub(crate) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO _pando_topic (topic, seq) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seq = excluded.seq";
        let mut statement = connection.prepare_cached(sql)?;
        for (topic, seq) in self.last.iter().filter(|(_, seq)| **seq > self.saved) {
            statement.execute(params![topic, seq])?;
        }
        let sql =
            "INSERT INTO _pando_meta (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
        connection.prepare_cached(sql)?.execute(params![TOPICS, self.head]).map(drop)
    }

    /// Returns the first event to keep where older ones exceed a limit: they are a chunk, and never the last event of all. What is kept is
    /// measured here, at most a chunk each time.
    pub(crate) fn prunable(&mut self, connection: &Connection, keep: &Retention) -> rusqlite::Result<Option<u64>> {
        if self.oldest == 0 {
            self.oldest = bounds(connection)?.0;
        }
        // By count a chunk goes when it is full, so that not every commit removes an event.
        let by_count = (self.head + 1).saturating_sub(keep.max_events);
        let by_count = if by_count >= self.oldest + PRUNE_CHUNK { by_count } else { 0 };
        let by_bytes = self.keep_from(connection, keep.max_bytes)?;
        let by_age = match keep.max_age_s {
            Some(limit) => self.ages.keep_from(connection, self.oldest, limit)?,
            None => 0,
        };
        let end = by_count.max(by_bytes).max(by_age).min(self.head);
        if self.oldest == 0 || end <= self.oldest {
            return Ok(None);
        }
        let sql = "SELECT seq, octet_length(envelope) FROM _pando_event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq";
        let mut statement = connection.prepare_cached(sql)?;
        let chunk = retention::chunk(statement.query([self.oldest, end])?)?;
        Ok(chunk.map(|(last, _)| last + 1))
    }

    /// Returns the first event that the limit of bytes has room for, as far as it is measured.
    fn keep_from(&mut self, connection: &Connection, max_bytes: u64) -> rusqlite::Result<u64> {
        if self.sizes.keep_from(max_bytes).is_none() {
            self.sizes.measure_slowly(connection, self.oldest, self.head)?;
        }
        Ok(self.sizes.keep_from(max_bytes).unwrap_or(0))
    }

    /// Takes note that the last numbers are written down, and the events below a number removed, if they were.
    pub(crate) fn is_kept(&mut self, pruned: Option<u64>) {
        self.saved = self.head;
        if let Some(below) = pruned {
            self.oldest = below;
        }
        if self.last.len() > MAX_TOPICS {
            self.last.clear();
        }
    }

    /// Removes all events, in the open transaction; the next one is number `behind` + 1. Topics remember their last event.
    pub(crate) fn begin_anew(&mut self, connection: &Connection, behind: u64) -> rusqlite::Result<()> {
        self.save(connection)?;
        remove_below(connection, self.head + 1)?;
        (self.head, self.oldest) = (behind, behind + 1);
        self.last.clear();
        self.sizes.clear();
        Ok(())
    }
}

/// Removes the events below a number, in the open transaction, after a [`Journal::save`].
pub(crate) fn remove_below(connection: &Connection, below: u64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM _pando_event WHERE seq < ?1")?.execute([below]).map(drop)
}

#[cfg(test)]
mod tests;
