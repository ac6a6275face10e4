//! The journal of durable events: numbered by the writer, read by everyone.

use std::collections::HashMap;

use pando_ipc::client::{Page, Resync};
use pando_ipc::{Envelope, Pattern};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

/// Events that the journal keeps.
pub const KEPT_EVENTS: u64 = 1_000_000;
/// Events removed at once, beside a commit: one large DELETE would stall the writer.
pub(crate) const PRUNE_CHUNK: u64 = 1_000;
/// Most events in one [`Page`].
pub const MAX_PAGE_EVENTS: usize = 10_000;
/// Size at which a [`Page`] ends early, in bytes.
pub const MAX_PAGE_BYTES: usize = 4 << 20;
/// Topics whose last number is kept in memory; when there are more, all are read anew.
const MAX_TOPICS: usize = 10_000;

/// The writer's end: hands out numbers and appends.
#[derive(Debug)]
pub(crate) struct Journal {
    epoch: u64,
    head: u64,
    oldest: u64,
    /// The last number of each topic seen.
    last: HashMap<Box<str>, u64>,
    /// How to take back what the open transaction appended: topic and its number before.
    undo: Vec<(Box<str>, u64)>,
}

/// A point to which the journal can be taken back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    head: u64,
    undo: usize,
}

impl Journal {
    /// Reads where the journal stands.
    pub(crate) fn load(connection: &Connection, epoch: u64) -> rusqlite::Result<Self> {
        let (oldest, head) = bounds(connection)?;
        Ok(Self { epoch, head, oldest, last: HashMap::new(), undo: Vec::new() })
    }

    /// Returns the number of the last event.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Numbers the event and writes it, in the open transaction.
    pub(crate) fn append(&mut self, connection: &Connection, mut event: Envelope) -> rusqlite::Result<Envelope> {
        let prev = self.last_of(connection, event.topic.as_str())?;
        let seq = self.head + 1;
        (event.epoch, event.seq, event.prev, event.n) = (Some(self.epoch), Some(seq), Some(prev), None);
        let text =
            serde_json::to_string(&event).map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))?;
        connection
            .prepare_cached(
                "INSERT INTO _pando_event (seq, epoch, topic, prev, at, envelope) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![seq, self.epoch, event.topic.as_str(), prev, event.timestamp.unix_seconds(), text])?;
        let topic: Box<str> = event.topic.as_str().into();
        self.last.insert(topic.clone(), seq);
        self.undo.push((topic, prev));
        self.head = seq;
        Ok(event)
    }

    fn last_of(&self, connection: &Connection, topic: &str) -> rusqlite::Result<u64> {
        if let Some(seq) = self.last.get(topic) {
            return Ok(*seq);
        }
        let sql = "SELECT coalesce((SELECT max(seq) FROM _pando_event WHERE topic = ?1),
                                   (SELECT seq FROM _pando_topic WHERE topic = ?1), 0)";
        connection.prepare_cached(sql)?.query_row([topic], |row| row.get(0))
    }

    /// Returns the present point.
    pub(crate) fn mark(&self) -> Mark {
        Mark { head: self.head, undo: self.undo.len() }
    }

    /// Takes back what was appended since `mark`: its savepoint or transaction was rolled back.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        self.head = mark.head;
        for (topic, seq) in self.undo.drain(mark.undo..).rev() {
            self.last.insert(topic, seq);
        }
    }

    /// Makes what was appended final: its transaction is committed.
    pub(crate) fn commit(&mut self) {
        self.undo.clear();
        if self.last.len() > MAX_TOPICS {
            self.last.clear();
        }
    }

    /// Tells whether a chunk may be removed.
    pub(crate) fn is_prunable(&self, keep: u64) -> bool {
        self.head + 1 >= self.oldest.max(1) + keep + PRUNE_CHUNK
    }

    /// Removes one chunk of what exceeds `keep`, in the open transaction; at most one chunk more is kept.
    pub(crate) fn prune(&mut self, connection: &Connection, keep: u64) -> rusqlite::Result<()> {
        if self.oldest == 0 {
            self.oldest = bounds(connection)?.0;
        }
        let kept = if self.oldest == 0 { 0 } else { self.head + 1 - self.oldest };
        if kept < keep + PRUNE_CHUNK {
            return Ok(());
        }
        let below = self.oldest + PRUNE_CHUNK;
        connection
            .prepare_cached(
                "INSERT INTO _pando_topic (topic, seq) SELECT topic, max(seq) FROM _pando_event WHERE seq < ?1 GROUP BY topic
                 ON CONFLICT (topic) DO UPDATE SET seq = excluded.seq",
            )?
            .execute([below])?;
        connection.prepare_cached("DELETE FROM _pando_event WHERE seq < ?1")?.execute([below])?;
        self.oldest = below;
        Ok(())
    }

    /// Forgets which event is the oldest: a transaction that may have pruned was rolled back.
    pub(crate) fn forget_oldest(&mut self) {
        self.oldest = 0;
    }
}

/// Returns the numbers of the oldest and the last event, 0 when there is none.
fn bounds(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let sql =
        "SELECT coalesce((SELECT min(seq) FROM _pando_event), 0), coalesce((SELECT max(seq) FROM _pando_event), 0)";
    connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Returns the number of the last event and the term in which it, or the latest primary, began.
pub(crate) fn head(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let sql = "SELECT coalesce((SELECT max(seq) FROM _pando_event), 0),
                      coalesce((SELECT value FROM _pando_meta WHERE key = 'epoch'), 0)";
    connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Reads the events after `after` that match any pattern, at most `limit`, in one read transaction.
pub(crate) fn since(connection: &Connection, after: u64, patterns: &[Pattern], limit: usize) -> rusqlite::Result<Page> {
    let transaction = connection.unchecked_transaction()?;
    let (oldest, head) = bounds(&transaction)?;
    if after > head {
        let reason = format!("the journal ends at {head}, before position {after}: it was replaced");
        return Ok(Page { events: Vec::new(), head, resync: Some(Resync { from: head + 1, to: after, reason }) });
    }
    let resync = (oldest > after + 1).then(|| Resync {
        from: after + 1,
        to: oldest - 1,
        reason: format!("the journal begins at {oldest}: older events were pruned"),
    });
    // Single topics have an index; anything else reads along the journal.
    let exact: Option<Vec<_>> = patterns.iter().map(exactly).collect();
    let events = if let Some(topics) = exact {
        let sql = "SELECT topic, envelope FROM _pando_event
                   WHERE topic IN (SELECT value FROM json_each(?2)) AND seq > ?1 ORDER BY seq LIMIT ?3";
        let topics = Value::from(topics).to_string();
        collect(transaction.prepare_cached(sql)?.query(params![after, topics, limit])?, patterns, limit)?
    } else {
        let sql = "SELECT topic, envelope FROM _pando_event WHERE seq > ?1 ORDER BY seq";
        collect(transaction.prepare_cached(sql)?.query([after])?, patterns, limit)?
    };
    Ok(Page { events, head, resync })
}

fn exactly(pattern: &Pattern) -> Option<&str> {
    match pattern {
        Pattern::Exactly(topic) => Some(topic.as_str()),
        Pattern::All | Pattern::Below(_) => None,
    }
}

fn collect(mut rows: rusqlite::Rows<'_>, patterns: &[Pattern], limit: usize) -> rusqlite::Result<Vec<Envelope>> {
    let limit = limit.min(MAX_PAGE_EVENTS);
    let mut events = Vec::new();
    let mut bytes = 0;
    while events.len() < limit && bytes < MAX_PAGE_BYTES {
        let Some(row) = rows.next()? else { break };
        let topic = row.get_ref(0)?.as_str()?;
        if patterns.iter().any(|pattern| pattern.matches(topic)) {
            let text = row.get_ref(1)?.as_str()?;
            bytes += text.len();
            events.push(serde_json::from_str(text).map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(why))
            })?);
        }
    }
    Ok(events)
}

/// Returns the term that the database is in, by which a writer notices its successor.
pub(crate) fn epoch(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let mut statement = connection.prepare_cached("SELECT value FROM _pando_meta WHERE key = 'epoch'")?;
    statement.query_row([], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_ipc::Topic;
    use serde_json::json;

    fn fresh() -> (Connection, Journal) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("migrations/0001_pando.sql")).unwrap();
        let journal = Journal::load(&connection, 1).unwrap();
        (connection, journal)
    }

    fn append(connection: &Connection, journal: &mut Journal, topic: &'static str) -> (u64, u64) {
        let event = journal.append(connection, Envelope::new("i", Topic::known(topic), json!({}))).unwrap();
        (event.seq.unwrap(), event.prev.unwrap())
    }

    fn all(connection: &Connection, after: u64, pattern: &str, limit: usize) -> Page {
        since(connection, after, &[Pattern::new(pattern).unwrap()], limit).unwrap()
    }

    #[test]
    fn numbers_are_dense_and_prev_is_right_after_a_rollback_and_a_restart() {
        let (connection, mut journal) = fresh();
        assert_eq!(append(&connection, &mut journal, "a"), (1, 0));
        assert_eq!(append(&connection, &mut journal, "b"), (2, 0));
        let mark = journal.mark();
        connection.execute_batch("SAVEPOINT s").unwrap();
        assert_eq!(append(&connection, &mut journal, "a"), (3, 1));
        assert_eq!(append(&connection, &mut journal, "a"), (4, 3));
        assert_eq!(append(&connection, &mut journal, "new"), (5, 0));
        connection.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
        journal.roll_back(mark);
        assert_eq!(append(&connection, &mut journal, "a"), (3, 1));
        assert_eq!(append(&connection, &mut journal, "new"), (4, 0));
        journal.commit();
        let mut journal = Journal::load(&connection, 2).unwrap();
        assert_eq!(append(&connection, &mut journal, "b"), (5, 2));
        assert_eq!(append(&connection, &mut journal, "a"), (6, 3));
    }

    #[test]
    fn since_selects_by_pattern_and_limit() {
        let (connection, mut journal) = fresh();
        for topic in ["a.x", "b.x", "a.y", "a.x"] {
            append(&connection, &mut journal, topic);
        }
        let seqs = |page: Page| page.events.iter().map(|event| event.seq.unwrap()).collect::<Vec<_>>();
        assert_eq!(seqs(all(&connection, 0, "*", 3)), [1, 2, 3]);
        assert_eq!(seqs(all(&connection, 1, "a.*", 9)), [3, 4]);
        assert_eq!(seqs(all(&connection, 0, "a.x", 9)), [1, 4]);
        let both = since(&connection, 0, &[Pattern::new("b.x").unwrap(), Pattern::new("a.y").unwrap()], 9).unwrap();
        assert_eq!((both.head, seqs(both)), (4, vec![2, 3]));
        assert!(all(&connection, 4, "*", 9).events.is_empty());
    }

    #[test]
    fn what_was_pruned_or_never_was_is_said() {
        let (connection, mut journal) = fresh();
        append(&connection, &mut journal, "once");
        for _ in 0..2 * PRUNE_CHUNK {
            append(&connection, &mut journal, "a");
        }
        for _ in 0..3 {
            journal.prune(&connection, 10).unwrap();
        }
        let page = all(&connection, 5, "*", 1);
        assert_eq!(page.events[0].seq, Some(PRUNE_CHUNK + 1));
        let resync = page.resync.unwrap();
        assert_eq!((resync.from, resync.to), (6, PRUNE_CHUNK));
        assert_eq!(all(&connection, PRUNE_CHUNK, "*", 1).resync, None);
        let beyond = all(&connection, 9_999, "*", 1).resync.unwrap();
        assert_eq!((beyond.from, beyond.to), (2 * PRUNE_CHUNK + 2, 9_999));
        let mut journal = Journal::load(&connection, 1).unwrap();
        assert_eq!(append(&connection, &mut journal, "once").1, 1, "prev outlives its event");
    }
}
