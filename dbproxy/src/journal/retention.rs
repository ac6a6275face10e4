//! How much the journal keeps: by count, by bytes and by age, whichever comes first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pando_ipc::Timestamp;
use rusqlite::{Connection, Rows, params};
use serde::{Deserialize, Serialize};

use super::{PRUNE_BYTES, PRUNE_CHUNK};

/// Pause between two looks at the age of the oldest events.
const LOOK_AT_AGE: Duration = Duration::from_secs(10);

/// Pause between two measurements of a chunk: each holds up the writer a little.
const MEASURE_EVERY: Duration = Duration::from_millis(20);

/// How much the journal keeps. Whatever exceeds any of the limits goes, oldest first, beside later writes: 1,000 events or 4 MiB at a time, and up
/// to so many more are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Most events.
    pub max_events: u64,
    /// Most bytes of events, as JSON.
    pub max_bytes: u64,
    /// Greatest age of an event, in seconds; `None` for any.
    pub max_age_s: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_events: 1_000_000, max_bytes: 512 << 20, max_age_s: None }
    }
}

/// The sizes of the newest events, as far back as they matter: what is older exceeds the limit, or is not measured yet.
///
/// Nothing of this is stored: after a start it is measured again, a chunk at a time.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// First number and bytes of each chunk, the newest last.
    chunks: VecDeque<(u64, u64)>,
    total: u64,
    measured: Option<Instant>,
}

impl Sizes {
    /// Adds committed events that begin at `first`.
    pub(super) fn add(&mut self, first: u64, bytes: u64) {
        match self.chunks.back_mut() {
            Some((begin, sum)) if first < *begin + PRUNE_CHUNK && *sum + bytes <= PRUNE_BYTES => *sum += bytes,
            _ => self.chunks.push_back((first, bytes)),
        }
        self.total += bytes;
    }

    /// Returns the first number that `limit` has room for, once it is known.
    pub(super) fn keep_from(&mut self, limit: u64) -> Option<u64> {
        while let Some((first, bytes)) = self.chunks.front().copied()
            && self.total - bytes >= limit
            && self.chunks.len() > 1
        {
            self.chunks.pop_front();
            self.total -= bytes;
            debug_assert!(self.chunks.front().is_some_and(|(next, _)| *next > first));
        }
        (self.total >= limit).then(|| self.chunks.front().map(|(first, _)| *first)).flatten()
    }

    /// Measures one more chunk of older events when it is time to.
    pub(super) fn measure_slowly(&mut self, connection: &Connection, oldest: u64, head: u64) -> rusqlite::Result<()> {
        if self.measured.is_none_or(|measured| measured.elapsed() >= MEASURE_EVERY) {
            self.measured = Some(Instant::now());
            self.measure(connection, oldest, head)?;
        }
        Ok(())
    }

    /// Measures one more chunk of older events, down to `oldest`. Returns whether there is more to measure.
    pub(super) fn measure(&mut self, connection: &Connection, oldest: u64, head: u64) -> rusqlite::Result<bool> {
        let end = self.chunks.front().map_or(head + 1, |(first, _)| *first);
        if end <= oldest {
            return Ok(false);
        }
        let sql = "SELECT seq, octet_length(envelope) FROM _pando_event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq DESC";
        let chunk = chunk(connection.prepare_cached(sql)?.query([oldest, end])?)?;
        let (begin, bytes) = chunk.unwrap_or((oldest, 0));
        self.chunks.push_front((begin, bytes));
        self.total += bytes;
        Ok(begin > oldest)
    }

    /// Forgets what was measured.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Reads as many rows of a number and its bytes as are a chunk. Returns the last number, and the bytes of all.
pub(super) fn chunk(mut rows: Rows<'_>) -> rusqlite::Result<Option<(u64, u64)>> {
    let (mut chunk, mut count) = (None, 0);
    while count < PRUNE_CHUNK
        && let Some(row) = rows.next()?
    {
        let (seq, bytes): (u64, u64) = (row.get(0)?, row.get(1)?);
        let sum = chunk.map_or(0, |(_, sum)| sum) + bytes;
        if count > 0 && sum > PRUNE_BYTES {
            break;
        }
        (chunk, count) = (Some((seq, sum)), count + 1);
    }
    Ok(chunk)
}

/// Looks at the age of the oldest events, now and then.
#[derive(Debug, Default)]
pub(super) struct Ages {
    looked: Option<Instant>,
}

impl Ages {
    /// Returns the first number behind the last event of the oldest chunk that is older than the limit; 0 when none is, or nobody looked.
    pub(super) fn keep_from(&mut self, connection: &Connection, oldest: u64, limit_s: u64) -> rusqlite::Result<u64> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AT_AGE) {
            return Ok(0);
        }
        let before = Timestamp::now().unix_seconds().saturating_sub(i64::try_from(limit_s).unwrap_or(i64::MAX));
        let sql = "SELECT coalesce(max(seq) + 1, 0) FROM _pando_event WHERE seq >= ?1 AND seq < ?1 + ?2 AND at < ?3";
        let keep_from =
            connection.prepare_cached(sql)?.query_row(params![oldest, PRUNE_CHUNK, before], |row| row.get(0))?;
        // As long as there is something to remove, look again at once.
        self.looked = (keep_from == 0).then(Instant::now);
        Ok(keep_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_know_from_where_the_limit_has_room() {
        let mut sizes = Sizes::default();
        for first in [1, 1_001, 2_001, 3_001] {
            sizes.add(first, 60);
            sizes.add(first + 500, 40);
        }
        assert_eq!(sizes.keep_from(1_000), None);
        assert_eq!(sizes.keep_from(250), Some(1_001));
        assert_eq!(sizes.keep_from(200), Some(2_001));
        assert_eq!(sizes.keep_from(1), Some(3_001), "the newest chunk stays");
    }

    /// A journal of events of 10 bytes each.
    fn events(count: u64) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE _pando_event (seq INTEGER PRIMARY KEY, at INTEGER, envelope TEXT)")
            .unwrap();
        let fill = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT ?1)
                    INSERT INTO _pando_event SELECT x, 0, '0123456789' FROM n";
        connection.execute(fill, [count]).unwrap();
        connection
    }

    #[test]
    fn every_event_is_measured_once() {
        for (count, is_more) in [(10, false), (PRUNE_CHUNK, false), (PRUNE_CHUNK + 1, true)] {
            let (connection, mut sizes) = (events(count), Sizes::default());
            assert_eq!(sizes.measure(&connection, 1, count).unwrap(), is_more, "{count}");
            while sizes.measure(&connection, 1, count).unwrap() {}
            assert_eq!(sizes.total, 10 * count);
            assert!(!sizes.measure(&connection, 1, count).unwrap());
            assert_eq!(sizes.total, 10 * count);
        }
    }

    #[test]
    fn a_chunk_ends_before_it_is_too_large() {
        let connection = Connection::open_in_memory().unwrap();
        let chunk_of = |sizes: &[u64]| {
            let values: Vec<_> = sizes.iter().zip(1..).map(|(bytes, seq)| format!("({seq}, {bytes})")).collect();
            let sql = format!("SELECT * FROM (VALUES {}) WHERE column1 > 0", values.join(", "));
            chunk(connection.prepare(&sql).unwrap().query([]).unwrap()).unwrap()
        };
        assert_eq!(chunk_of(&[1, 2]), Some((2, 3)));
        assert_eq!(chunk_of(&[PRUNE_BYTES, 0, 1]), Some((2, PRUNE_BYTES)));
        assert_eq!(chunk_of(&[PRUNE_BYTES + 1, 1]), Some((1, PRUNE_BYTES + 1)), "a large one goes alone");
        let mut sizes = Sizes::default();
        for (first, bytes) in [(1, PRUNE_BYTES), (2, 1), (3, 1)] {
            sizes.add(first, bytes);
        }
        assert_eq!(Vec::from(sizes.chunks), [(1, PRUNE_BYTES), (2, 2)]);
    }

    #[test]
    fn a_chunk_is_measured_when_the_last_one_was_long_ago() {
        let (connection, mut sizes) = (events(3 * PRUNE_CHUNK), Sizes::default());
        let mut measured = |last: Option<Instant>| {
            sizes.measured = last;
            sizes.measure_slowly(&connection, 1, 3 * PRUNE_CHUNK).unwrap();
            sizes.chunks.len()
        };
        let now = Instant::now();
        assert_eq!(measured(None), 1);
        // Of a moment to come no time has passed, however slow this machine is.
        assert_eq!(measured(now.checked_add(Duration::from_secs(3_600))), 1);
        assert_eq!(measured(now.checked_sub(MEASURE_EVERY)), 2);
    }

    #[test]
    fn ages_are_looked_at_now_and_then() {
        let connection = events(1);
        let keep_from = |looked: Option<Instant>| Ages { looked }.keep_from(&connection, 1, 60).unwrap();
        let now = Instant::now();
        assert_eq!(keep_from(None), 2);
        assert_eq!(keep_from(now.checked_add(Duration::from_secs(3_600))), 0);
        assert_eq!(keep_from(now.checked_sub(LOOK_AT_AGE)), 2);
        assert_eq!(Ages::default().keep_from(&connection, 2, 60).unwrap(), 0, "what is not there has no age");
    }
}
