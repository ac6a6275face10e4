//! The reading end of the journal: by number, by topic, by time.

use pando_ipc::client::{Page, Resync};
use pando_ipc::{Envelope, Pattern, Timestamp};
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::TOPICS;
use crate::schema::database_id;

/// Most events in one [`Page`].
pub const MAX_PAGE_EVENTS: usize = 10_000;
/// Events that are looked at for one [`Page`]: a read transaction keeps the WAL from shrinking.
pub(super) const MAX_PAGE_LOOKED_AT: u64 = 100_000;
/// Size at which a [`Page`] ends early, in bytes. With the largest event behind it, it still fits into an answer.
pub const MAX_PAGE_BYTES: usize = 1 << 20;

pub(super) const BOUNDS: &str =
    "SELECT coalesce((SELECT min(seq) FROM _pando_event), 0), coalesce((SELECT max(seq) FROM _pando_event), 0)";
pub(super) const EPOCH: &str = "SELECT value FROM _pando_meta WHERE key = 'epoch'";

/// Returns the numbers of the oldest and the last event, 0 when there is none.
pub(crate) fn bounds(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    connection.prepare_cached(BOUNDS)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
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
    let newest = newest(&transaction, patterns, head)?;
    let last = newest.min(after.max(oldest) + MAX_PAGE_LOOKED_AT).max(after);
    let sql = "SELECT seq, topic, envelope FROM _pando_event WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
    let (events, upto) = collect(transaction.prepare_cached(sql)?.query([after, last])?, patterns, limit, last)?;
    // Behind the newest one there is nothing to look at.
    let upto = if upto >= newest { head } else { upto };
    Ok(Page { events, upto, head, database, resync })
}

/// Returns an event behind which nothing matches: of single topics, the last one. For nobody, no event is read.
fn newest(connection: &Connection, patterns: &[Pattern], head: u64) -> rusqlite::Result<u64> {
    if patterns.is_empty() {
        return Ok(0);
    }
    let single = patterns.iter().map(|pattern| match pattern {
        Pattern::Exactly(topic) => Some(topic.as_str()),
        Pattern::All | Pattern::Glob(_) => None,
    });
    let Some(topics) = single.collect::<Option<Vec<_>>>() else { return Ok(head) };
    let sql = "SELECT max(
        coalesce((SELECT max(seq) FROM _pando_topic WHERE topic IN (SELECT value FROM json_each(?1))), 0),
        coalesce((SELECT max(seq) FROM _pando_event WHERE topic IN (SELECT value FROM json_each(?1))
            AND seq > coalesce((SELECT value FROM _pando_meta WHERE key = ?2), 0)), 0))";
    connection.prepare_cached(sql)?.query_row([Value::from(topics).to_string(), TOPICS.to_owned()], |row| row.get(0))
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
            events.push(Envelope::from_json(text).map_err(|why| {
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
            let event = Envelope::from_json(row.get_ref(1)?.as_str()?).map_err(|why| {
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
    connection.prepare_cached(EPOCH)?.query_row([], |row| row.get(0)).optional()
}
