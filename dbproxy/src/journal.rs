//! The journal of durable events: numbered by the writer, read by everyone.

mod retention;

use std::collections::HashMap;

use pando_ipc::client::{Page, Resync};
use pando_ipc::{Envelope, Pattern, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use crate::schema::database_id;

pub use retention::Retention;
use retention::{Ages, Sizes};

/// Events removed at once, beside a commit: one large DELETE would stall the writer.
pub(crate) const PRUNE_CHUNK: u64 = 1_000;
/// Most events in one [`Page`].
pub const MAX_PAGE_EVENTS: usize = 10_000;
/// Events that are looked at for one [`Page`]: a read transaction keeps the WAL from shrinking.
const MAX_PAGE_LOOKED_AT: u64 = 100_000;
/// Size at which a [`Page`] ends early, in bytes. With the largest event behind it, it still fits into an answer.
pub const MAX_PAGE_BYTES: usize = 1 << 20;
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
        Ok(Self {
            epoch,
            head,
            oldest,
            last: HashMap::new(),
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
        self.bytes += text.len() as u64;
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
        if self.last.len() > MAX_TOPICS {
            self.last.clear();
        }
    }

    /// Tells whether the oldest chunk exceeds a limit. What is kept is measured here, at most a chunk each time.
    pub(crate) fn is_prunable(&mut self, connection: &Connection, keep: &Retention) -> rusqlite::Result<bool> {
        if self.oldest == 0 {
            self.oldest = bounds(connection)?.0;
        }
        let end = self.oldest + PRUNE_CHUNK;
        if self.oldest == 0 || end > self.head {
            return Ok(false);
        }
        if self.head + 1 >= end + keep.max_events || self.keep_from(connection, keep.max_bytes)? >= end {
            return Ok(true);
        }
        keep.max_age_s.map_or(Ok(false), |limit| self.ages.is_over(connection, end - 1, limit))
    }

    /// Returns the first event that the limit of bytes has room for, as far as it is measured.
    fn keep_from(&mut self, connection: &Connection, max_bytes: u64) -> rusqlite::Result<u64> {
        if self.sizes.keep_from(max_bytes).is_none() {
            self.sizes.measure_slowly(connection, self.oldest, self.head)?;
        }
        Ok(self.sizes.keep_from(max_bytes).unwrap_or(0))
    }

    /// Removes the oldest chunk, in the open transaction.
    pub(crate) fn prune(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let below = self.oldest + PRUNE_CHUNK;
        remove_below(connection, below)?;
        self.oldest = below;
        Ok(())
    }

    /// Removes all events, in the open transaction; the next one is number `behind` + 1. Topics remember their last event.
    pub(crate) fn begin_anew(&mut self, connection: &Connection, behind: u64) -> rusqlite::Result<()> {
        remove_below(connection, self.head + 1)?;
        (self.head, self.oldest) = (behind, behind + 1);
        self.last.clear();
        self.sizes.clear();
        Ok(())
    }

    /// Forgets which event is the oldest: a transaction that may have pruned was rolled back.
    pub(crate) fn forget_oldest(&mut self) {
        self.oldest = 0;
    }
}

/// Removes the events before `below`; their topics remember their last one.
fn remove_below(connection: &Connection, below: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO _pando_topic (topic, seq) SELECT topic, max(seq) FROM _pando_event WHERE seq < ?1 GROUP BY topic
             ON CONFLICT (topic) DO UPDATE SET seq = excluded.seq",
        )?
        .execute([below])?;
    connection.prepare_cached("DELETE FROM _pando_event WHERE seq < ?1")?.execute([below])?;
    Ok(())
}

/// Returns the numbers of the oldest and the last event, 0 when there is none.
pub(crate) fn bounds(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
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
    let database = database_id(&transaction)?;
    if after > head {
        let reason = format!("the journal ends at {head}, before position {after}");
        let resync = Some(Resync { from: head + 1, to: after, reason });
        return Ok(Page { events: Vec::new(), upto: head, head, database, resync });
    }
    let resync = (oldest > after + 1).then(|| Resync {
        from: after + 1,
        to: oldest - 1,
        reason: format!("the journal begins at {oldest}: older events were pruned"),
    });
    // Single topics have an index; anything else reads along the journal.
    let exact: Option<Vec<_>> = patterns.iter().map(exactly).collect();
    let (events, upto) = if let Some(topics) = exact {
        let sql = "SELECT seq, topic, envelope FROM _pando_event
                   WHERE topic IN (SELECT value FROM json_each(?2)) AND seq > ?1 ORDER BY seq LIMIT ?3";
        let (topics, most) = (Value::from(topics).to_string(), limit.clamp(1, MAX_PAGE_EVENTS));
        collect(transaction.prepare_cached(sql)?.query(params![after, topics, most])?, patterns, limit, head)?
    } else {
        let last = head.min(after.max(oldest) + MAX_PAGE_LOOKED_AT);
        let sql = "SELECT seq, topic, envelope FROM _pando_event WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
        collect(transaction.prepare_cached(sql)?.query([after, last])?, patterns, limit, last)?
    };
    Ok(Page { events, upto, head, database, resync })
}

fn exactly(pattern: &Pattern) -> Option<&str> {
    match pattern {
        Pattern::Exactly(topic) => Some(topic.as_str()),
        Pattern::All | Pattern::Glob(_) => None,
    }
}

/// Collects what matches from rows that end at `last`. Returns it, and up to where it is complete.
fn collect(
    mut rows: rusqlite::Rows<'_>,
    patterns: &[Pattern],
    limit: usize,
    last: u64,
) -> rusqlite::Result<(Vec<Envelope>, u64)> {
    let limit = limit.clamp(1, MAX_PAGE_EVENTS);
    let (mut events, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let topic = row.get_ref(1)?.as_str()?;
        if patterns.iter().any(|pattern| pattern.matches(topic)) {
            let text = row.get_ref(2)?.as_str()?;
            bytes += text.len();
            events.push(serde_json::from_str(text).map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(why))
            })?);
            if events.len() >= limit || bytes >= MAX_PAGE_BYTES {
                return Ok((events, row.get(0)?));
            }
        }
    }
    Ok((events, last))
}

/// Counts the events after `after` that match any pattern and are still there.
pub(crate) fn count(connection: &Connection, after: u64, patterns: &[Pattern]) -> rusqlite::Result<u64> {
    let transaction = connection.unchecked_transaction()?;
    if patterns.contains(&Pattern::All) {
        let (oldest, head) = bounds(&transaction)?;
        return Ok(head.saturating_sub(after.max(oldest.saturating_sub(1))));
    }
    let mut statement = transaction.prepare_cached("SELECT topic FROM _pando_event WHERE seq > ?1")?;
    let mut rows = statement.query([after])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let topic = row.get_ref(0)?.as_str()?;
        count += u64::from(patterns.iter().any(|pattern| pattern.matches(topic)));
    }
    Ok(count)
}

/// Returns the number of the last event before `time`; of those that were pruned, the last.
///
/// The search halves the journal: its times ascend with its numbers, as far as the clock did.
pub(crate) fn last_before(connection: &Connection, time: Timestamp) -> rusqlite::Result<u64> {
    let transaction = connection.unchecked_transaction()?;
    let (oldest, head) = bounds(&transaction)?;
    if head == 0 {
        return Ok(0);
    }
    let mut statement = transaction.prepare_cached("SELECT at, envelope FROM _pando_event WHERE seq = ?1")?;
    let mut is_before = |seq: u64| {
        statement.query_row([seq], |row| {
            let at: i64 = row.get(0)?;
            if at != time.unix_seconds() {
                return Ok(at < time.unix_seconds());
            }
            let event: Envelope = serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(why))
            })?;
            Ok(event.timestamp < time)
        })
    };
    let (mut before, mut behind) = (oldest - 1, head + 1);
    while behind - before > 1 {
        let middle = before + (behind - before) / 2;
        if is_before(middle)? { before = middle } else { behind = middle }
    }
    Ok(before)
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
        let meta = "INSERT INTO _pando_meta VALUES ('database', '67e55044-10b1-426f-9247-bb680e5fe0c8')";
        connection.execute_batch(meta).unwrap();
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
        let counted = |after, text| count(&connection, after, &[Pattern::new(text).unwrap()]).unwrap();
        assert_eq!(
            [counted(0, "*"), counted(1, "*"), counted(0, "a.*"), counted(1, "a.x"), counted(9, "*")],
            [4, 3, 3, 1, 0]
        );
    }

    #[test]
    fn a_page_says_up_to_where_it_is_complete() {
        let (connection, mut journal) = fresh();
        for topic in ["a", "b", "a", "b", "b"] {
            append(&connection, &mut journal, topic);
        }
        assert_eq!((all(&connection, 0, "a", 1).upto, all(&connection, 0, "a", 9).upto), (1, 5));
        assert_eq!((all(&connection, 0, "a*", 2).upto, all(&connection, 0, "a*", 9).upto), (3, 5));
        let long = append_many(&connection, &mut journal, MAX_PAGE_LOOKED_AT);
        let page = all(&connection, 5, "none.*", 9);
        assert!(page.events.is_empty() && page.upto < long, "a long search is cut into pages: {}", page.upto);
        assert_eq!(all(&connection, page.upto, "none.*", 9).upto, long);
    }

    fn append_many(connection: &Connection, journal: &mut Journal, count: u64) -> u64 {
        connection.execute_batch("BEGIN").unwrap();
        for _ in 0..=count {
            append(connection, journal, "many");
        }
        connection.execute_batch("COMMIT").unwrap();
        journal.head()
    }

    #[test]
    fn a_time_has_its_place_among_the_numbers() {
        let (connection, mut journal) = fresh();
        let time = |text: &str| serde_json::from_str::<Timestamp>(&format!("\"2026-11-21T02:53:{text}Z\"")).unwrap();
        let before = |connection: &Connection, text: &str| last_before(connection, time(text)).unwrap();
        assert_eq!(before(&connection, "37"), 0);
        for text in ["37", "37.5", "37.75", "39", "41"] {
            let mut event = Envelope::new("i", Topic::known("a"), json!({}));
            event.timestamp = time(text);
            journal.append(&connection, event).unwrap();
        }
        let seen = ["36", "37", "37.2", "37.5", "37.6", "38", "39", "41", "42"].map(|text| before(&connection, text));
        assert_eq!(seen, [0, 0, 1, 1, 2, 3, 3, 4, 5]);
        connection.execute_batch("DELETE FROM _pando_event WHERE seq < 3").unwrap();
        assert_eq!(before(&connection, "36"), 2, "nothing older is left");
    }

    /// Prunes a journal of 5,000 events, loaded anew, and returns how many are kept.
    fn kept(connection: &Connection, keep: Retention) -> u64 {
        let mut journal = Journal::load(connection, 1).unwrap();
        while journal.sizes.measure(connection, journal.oldest, journal.head).unwrap() {}
        while journal.is_prunable(connection, &keep).unwrap() {
            journal.prune(connection).unwrap();
        }
        connection.query_row("SELECT count(*) FROM _pando_event", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_journal_keeps_what_no_limit_excludes() {
        let (connection, mut journal) = fresh();
        for _ in 0..5_000 {
            append(&connection, &mut journal, "a");
        }
        journal.commit();
        let all = Retention::default();
        assert_eq!(kept(&connection, all), 5_000);
        assert_eq!(kept(&connection, Retention { max_events: 3_500, ..all }), 4_000);
        let bytes: u64 =
            connection.query_row("SELECT sum(length(envelope)) / 5 FROM _pando_event", [], |row| row.get(0)).unwrap();
        assert_eq!(kept(&connection, Retention { max_bytes: 3 * bytes, ..all }), 3_000);
        assert_eq!(kept(&connection, Retention { max_age_s: Some(60), ..all }), 3_000);
        connection.execute("UPDATE _pando_event SET at = at - 100 WHERE seq <= 3800", []).unwrap();
        assert_eq!(
            kept(&connection, Retention { max_age_s: Some(60), ..all }),
            2_000,
            "a chunk goes when all of it is old"
        );
    }

    #[test]
    fn what_was_pruned_or_never_was_is_said() {
        let (connection, mut journal) = fresh();
        append(&connection, &mut journal, "once");
        for _ in 0..2 * PRUNE_CHUNK {
            append(&connection, &mut journal, "a");
        }
        journal.commit();
        let keep = Retention { max_events: 10, ..Retention::default() };
        while journal.is_prunable(&connection, &keep).unwrap() {
            journal.prune(&connection).unwrap();
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
