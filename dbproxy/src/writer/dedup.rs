//! One row per applied write: a retry gets its stored answer, and a key that is forgotten is never run again.
//!
//! Clients that count have many writes and say what they have answers to, so few rows are kept of them; an index in memory finds those, and
//! the table is only appended to. Op ids that somebody chose are kept for their time, and have an index in the database.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pando_ipc::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;
use uuid::Uuid;

use crate::journal::PRUNE_CHUNK;
use crate::op::OpId;
use crate::write::WriteRequest;

/// Applied writes that are remembered at least, unless their client says that it has the answer.
pub const KEPT_OPS: u64 = 100_000;
/// How long an applied write is remembered at least, unless its client says that it has the answer, or [`MAX_OPS`] came after it.
pub const KEPT_OPS_FOR: Duration = Duration::from_secs(3_600);
/// Applied writes that are remembered at most, whatever their age.
pub const MAX_OPS: u64 = 1_000_000;
/// How long it is remembered which op ids of a client are forgotten. A client's id is used for one day.
pub const KEPT_CLIENTS_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Clients without a stored write whose state is kept in memory; when there are more, it is read anew.
const MAX_CLIENTS: usize = 10_000;
/// Key of the creation time, in Unix milliseconds, of the youngest client that is forgotten.
const CLIENTS_FORGOTTEN: &str = "clients_forgotten";
/// Key of the time, in Unix seconds, of the youngest write with a chosen op id that is forgotten.
const NAMED_FORGOTTEN: &str = "named_forgotten";
/// What is stored of a write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) fingerprint: u64,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    /// `None` when the op was settled as not applied.
    pub(super) results: Option<Value>,
}

/// What is known of an op id.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Nothing: it is new.
    New,
    /// It was applied, or settled as not applied.
    Stored(Stored),
    /// Whatever there was is forgotten.
    Forgotten,
}

/// How long applied writes are remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    pub(super) ops: u64,
    pub(super) ops_at_most: u64,
    pub(super) ops_for: Duration,
    pub(super) clients_for: Duration,
}

/// What the writer knows of the clients that count.
#[derive(Debug, Default)]
pub(super) struct Ops {
    /// With all of their writes that are stored, once these are loaded.
    clients: HashMap<Uuid, Client>,
    is_loaded: bool,
    /// What the open transaction stored.
    undo: Vec<(Uuid, u64)>,
    /// Unix milliseconds; `None` when it is not read yet.
    clients_forgotten: Option<u64>,
}

#[derive(Debug, Default)]
struct Client {
    /// Counters below it are forgotten; `None` when it is not read yet.
    below: Option<u64>,
    /// Counters below it were answered, as the client says.
    acked: u64,
    /// The row of each counter that is stored.
    rows: BTreeMap<u64, i64>,
}

/// A point to which [`Ops`] can be taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpsMark(usize);

/// SQLite's integers have a sign, fingerprints have none: the bits are kept.
fn signed(fingerprint: u64) -> i64 {
    i64::from_ne_bytes(fingerprint.to_ne_bytes())
}

impl Ops {
    /// Looks an op id up, and takes note of what its client says it has answers to.
    pub(super) fn find(&mut self, connection: &Connection, op: &OpId, acked: u64) -> rusqlite::Result<Found> {
        let (client, counter) = match op {
            OpId::Counted { client, counter } => (client, counter),
            OpId::Named { scope, name } => {
                let sql = "SELECT fingerprint, epoch, seq, results FROM _pando_op_named WHERE scope = ?1 AND name = ?2";
                let found = connection.prepare_cached(sql)?.query_row([scope, name], stored).optional()?;
                return Ok(found.map_or(Found::New, Found::Stored));
            }
        };
        self.load(connection)?;
        let below = self.below(connection, client)?;
        let client = self.clients.entry(*client).or_default();
        (client.below, client.acked) = (Some(below), client.acked.max(acked));
        match client.rows.get(counter) {
            Some(row) => {
                let sql = "SELECT fingerprint, epoch, seq, results FROM _pando_op WHERE n = ?1";
                connection.prepare_cached(sql)?.query_row([row], stored).map(Found::Stored)
            }
            None if *counter < below => Ok(Found::Forgotten),
            None => Ok(Found::New),
        }
    }

    /// Stores the answer to a write, in its own transaction; without results it is settled as not applied.
    pub(super) fn store(
        &mut self,
        connection: &Connection,
        request: &WriteRequest,
        epoch: u64,
        seq: u64,
        results: Option<&Value>,
    ) -> rusqlite::Result<()> {
        let (fingerprint, at) = (signed(request.fingerprint), Timestamp::now().unix_seconds());
        let results = results.map(ToString::to_string);
        match &request.op_id {
            OpId::Counted { client, counter } => {
                let sql = "INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let row = params![client.as_bytes(), counter, fingerprint, at, epoch, seq, results];
                let row = connection.prepare_cached(sql)?.insert(row)?;
                self.clients.entry(*client).or_default().rows.insert(*counter, row);
                self.undo.push((*client, *counter));
            }
            OpId::Named { scope, name } => {
                let sql = "INSERT INTO _pando_op_named (scope, name, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                connection.prepare_cached(sql)?.execute(params![scope, name, fingerprint, at, epoch, seq, results])?;
            }
        }
        Ok(())
    }

    /// Returns the present point.
    pub(super) fn mark(&self) -> OpsMark {
        OpsMark(self.undo.len())
    }

    /// Takes back what was stored since `mark`: its savepoint or transaction was rolled back.
    pub(super) fn roll_back(&mut self, mark: OpsMark) {
        for (client, counter) in self.undo.drain(mark.0..) {
            if let Some(client) = self.clients.get_mut(&client) {
                client.rows.remove(&counter);
            }
        }
    }

    /// Makes what was stored final: its transaction is committed.
    pub(super) fn commit(&mut self) {
        self.undo.clear();
        if self.clients.len() > MAX_CLIENTS {
            self.clients.retain(|_, client| !client.rows.is_empty());
        }
    }

    /// Forgets what is in memory: a transaction that may have pruned was rolled back.
    pub(super) fn reload(&mut self) {
        *self = Self::default();
    }

    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.is_loaded {
            return Ok(());
        }
        let mut statement = connection.prepare_cached("SELECT client, counter, n FROM _pando_op")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let client = self.clients.entry(Uuid::from_bytes(row.get(0)?)).or_default();
            client.rows.insert(row.get(1)?, row.get(2)?);
        }
        self.is_loaded = true;
        Ok(())
    }

    /// Returns the counter below which everything of a client is forgotten.
    fn below(&mut self, connection: &Connection, client: &Uuid) -> rusqlite::Result<u64> {
        if let Some(below) = self.clients.get(client).and_then(|client| client.below) {
            return Ok(below);
        }
        let sql = "SELECT below FROM _pando_client WHERE client = ?1";
        let below = connection.prepare_cached(sql)?.query_row([client.as_bytes()], |row| row.get(0)).optional()?;
        if let Some(below) = below {
            return Ok(below);
        }
        let forgotten = match self.clients_forgotten {
            Some(millis) => millis,
            None => meta(connection, CLIENTS_FORGOTTEN)?.unwrap_or(0),
        };
        self.clients_forgotten = Some(forgotten);
        Ok(if made(client) > forgotten { 0 } else { u64::MAX })
    }

    /// Removes a chunk of what is forgotten, in the open transaction: what its client has the answer to, and what is both beyond the count and older
    /// than the age. Which op ids of a client that is, is kept.
    pub(super) fn prune(&mut self, connection: &Connection, keep: Keep) -> rusqlite::Result<()> {
        let now = Timestamp::now().unix_seconds();
        self.load(connection)?;
        self.prune_acked(connection, now)?;
        self.prune_old(connection, keep, now)?;
        prune_old_named(connection, keep, now)?;
        let before = now - seconds(keep.clients_for);
        let sql = "DELETE FROM _pando_client WHERE client IN (SELECT client FROM _pando_client WHERE at < ?1 LIMIT ?2) RETURNING client";
        let mut statement = connection.prepare_cached(sql)?;
        let gone = statement.query_map(params![before, PRUNE_CHUNK], |row| row.get::<_, [u8; 16]>(0))?;
        let gone = gone.collect::<rusqlite::Result<Vec<_>>>()?;
        if let Some(youngest) = gone.into_iter().map(|client| made(&Uuid::from_bytes(client))).max() {
            set_meta(connection, CLIENTS_FORGOTTEN, youngest)?;
            self.reload();
        }
        Ok(())
    }

    fn prune_acked(&mut self, connection: &Connection, now: i64) -> rusqlite::Result<()> {
        let mut room = usize::try_from(PRUNE_CHUNK).unwrap_or(usize::MAX);
        let mut delete = connection.prepare_cached("DELETE FROM _pando_op WHERE n = ?1")?;
        for (id, client) in &mut self.clients {
            while room > 0
                && let Some(first) = client.rows.first_entry().filter(|row| *row.key() < client.acked)
            {
                delete.execute([first.get()])?;
                first.remove();
                room -= 1;
            }
            let below = client.rows.first_key_value().map_or(client.acked, |(first, _)| client.acked.min(*first));
            if client.below.is_some_and(|known| known < below) {
                raise(connection, id, below, now)?;
                client.below = Some(below);
            }
        }
        Ok(())
    }

    fn prune_old(&mut self, connection: &Connection, keep: Keep, now: i64) -> rusqlite::Result<()> {
        let mut below: HashMap<Uuid, u64> = HashMap::new();
        let sql = format!("DELETE FROM _pando_op WHERE {} RETURNING client, counter", old("_pando_op"));
        let mut statement = connection.prepare_cached(&sql)?;
        let mut gone =
            statement.query(params![keep.ops, 2 * PRUNE_CHUNK, now - seconds(keep.ops_for), keep.ops_at_most])?;
        while let Some(row) = gone.next()? {
            let (id, counter) = (Uuid::from_bytes(row.get(0)?), row.get::<_, u64>(1)?);
            self.clients.entry(id).or_default().rows.remove(&counter);
            let below = below.entry(id).or_default();
            *below = (counter + 1).max(*below);
        }
        for (id, below) in below {
            raise(connection, &id, below, now)?;
            let client = self.clients.entry(id).or_default();
            client.below = client.below.map(|known| known.max(below));
        }
        Ok(())
    }
}

/// Returns when a client made its id, in Unix milliseconds.
fn made(client: &Uuid) -> u64 {
    let (seconds, nanos) = client.get_timestamp().map_or((0, 0), |time| time.to_unix());
    seconds * 1_000 + u64::from(nanos) / 1_000_000
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Returns the condition for a chunk of what is too old by either limit: ?1 and ?4 are counts, ?2 is the chunk's size, ?3 is a time.
fn old(table: &str) -> String {
    let newest = format!("(SELECT max(n) FROM {table})");
    format!("n < (SELECT min(n) FROM {table}) + ?2 AND (n <= {newest} - ?1 AND at < ?3 OR n <= {newest} - ?4)")
}

/// Removes a chunk of old writes with a chosen op id, and notes until when.
fn prune_old_named(connection: &Connection, keep: Keep, now: i64) -> rusqlite::Result<()> {
    let sql = format!("DELETE FROM _pando_op_named WHERE {} RETURNING at", old("_pando_op_named"));
    let mut statement = connection.prepare_cached(&sql)?;
    let limits = params![keep.ops, 2 * PRUNE_CHUNK, now - seconds(keep.ops_for), keep.ops_at_most];
    let gone = statement.query_map(limits, |row| row.get::<_, u64>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    gone.into_iter().max().map_or(Ok(()), |until| set_meta(connection, NAMED_FORGOTTEN, until))
}

/// Notes that everything of a client below a counter is forgotten.
fn raise(connection: &Connection, client: &Uuid, below: u64, now: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO _pando_client (client, below, at) VALUES (?1, ?2, ?3)
               ON CONFLICT DO UPDATE SET below = max(below, excluded.below), at = excluded.at";
    connection.prepare_cached(sql)?.execute(params![client.as_bytes(), below, now]).map(drop)
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT value FROM _pando_meta WHERE key = ?1";
    connection.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()
}

fn set_meta(connection: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO _pando_meta (key, value) VALUES (?1, ?2)
               ON CONFLICT DO UPDATE SET value = max(value, excluded.value)";
    connection.prepare_cached(sql)?.execute(params![key, value]).map(drop)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let results =
        match row.get_ref(3)?.as_str_or_null()? {
            Some(text) => Some(serde_json::from_str(text).map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(why))
            })?),
            None => None,
        };
    Ok(Stored {
        fingerprint: u64::from_ne_bytes(row.get::<_, i64>(0)?.to_ne_bytes()),
        epoch: row.get(1)?,
        seq: row.get(2)?,
        results,
    })
}

/// Tells until when writes with a chosen op id are forgotten, in Unix seconds, if this one may be among them.
pub(super) fn maybe_forgotten(connection: &Connection, op: &OpId) -> rusqlite::Result<Option<u64>> {
    let OpId::Named { name, .. } = op else { return Ok(None) };
    let forgotten = meta(connection, NAMED_FORGOTTEN)?;
    // What was made later cannot have been applied before.
    let since = Uuid::try_parse(name).ok().filter(|id| id.get_version_num() == 7).map_or(0, |id| made(&id) / 1_000);
    Ok(forgotten.filter(|until| since <= *until))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep =
        Keep { ops: KEPT_OPS, ops_at_most: MAX_OPS, ops_for: KEPT_OPS_FOR, clients_for: KEPT_CLIENTS_FOR };

    fn fresh() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../migrations/0001_pando.sql")).unwrap();
        connection
    }

    fn migrated() -> Connection {
        let connection = fresh();
        connection.execute_batch(include_str!("../migrations/0003_op_clients.sql")).unwrap();
        connection.execute_batch(include_str!("../migrations/0005_fewer_pages.sql")).unwrap();
        connection
    }

    fn insert(connection: &Connection, op: &OpId, at: i64) {
        let rest = "fingerprint, at, epoch, seq, results) VALUES (?1, ?2, -1, ?3, 1, 1, '[7]')";
        match op {
            OpId::Counted { client, counter } => {
                let sql = format!("INSERT INTO _pando_op (client, counter, {rest}");
                connection.execute(&sql, params![client.as_bytes(), counter, at]).unwrap();
            }
            OpId::Named { scope, name } => {
                let sql = format!("INSERT INTO _pando_op_named (scope, name, {rest}");
                connection.execute(&sql, params![scope, name, at]).unwrap();
            }
        }
    }

    fn count(connection: &Connection) -> u64 {
        let sql = "SELECT (SELECT count(*) FROM _pando_op) + (SELECT count(*) FROM _pando_op_named)";
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn counted(client: Uuid, counter: u64) -> OpId {
        OpId::Counted { client, counter }
    }

    #[test]
    fn an_op_is_forgotten_when_it_is_old_and_many_came_after_it_and_that_is_remembered() {
        let connection = migrated();
        let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
        for n in 1..=100 {
            let op = if n % 2 == 0 { counted(client, n) } else { OpId::parse(&format!("req-{n}")) };
            insert(&connection, &op, if n <= 60 { now - 7_200 } else { now });
        }
        let mut ops = Ops::default();
        let mut kept = |keep| {
            ops.prune(&connection, Keep { ops: keep, ..KEEP }).unwrap();
            count(&connection)
        };
        assert_eq!(kept(50), 100);
        assert_eq!(kept(35), 70, "60 are old enough, 15 of each kind are too many");
        assert_eq!(kept(5), 40, "the young ones stay");
        let mut find = |op: &OpId| ops.find(&connection, op, 0).unwrap();
        let stored = Stored { fingerprint: u64::MAX, epoch: 1, seq: 1, results: Some(serde_json::json!([7])) };
        assert_eq!(find(&OpId::parse("req-61")), Found::Stored(stored));
        assert_eq!(find(&OpId::parse("req-59")), Found::New);
        assert_eq!(
            maybe_forgotten(&connection, &OpId::parse("req-59")).unwrap(),
            Some(u64::try_from(now - 7_200).unwrap())
        );
        assert_eq!(maybe_forgotten(&connection, &OpId::parse(&Uuid::now_v7().to_string())).unwrap(), None);
        assert_eq!(find(&counted(client, 60)), Found::Forgotten);
        assert_eq!(find(&counted(client, 59)), Found::Forgotten);
        assert_eq!(find(&counted(client, 61)), Found::New);
        assert_eq!(find(&counted(Uuid::now_v7(), 0)), Found::New);
    }

    #[test]
    fn young_ops_are_forgotten_when_they_are_far_too_many() {
        let connection = migrated();
        let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
        (0..50).for_each(|counter| insert(&connection, &counted(client, counter), now));
        let mut ops = Ops::default();
        ops.prune(&connection, Keep { ops: 5, ops_at_most: 20, ..KEEP }).unwrap();
        assert_eq!(count(&connection), 20);
        assert_eq!(ops.find(&connection, &counted(client, 29), 0).unwrap(), Found::Forgotten);
        assert!(matches!(ops.find(&connection, &counted(client, 30), 0).unwrap(), Found::Stored(_)));
    }

    #[test]
    fn what_was_rolled_back_is_new_again() {
        let connection = migrated();
        let mut ops = Ops::default();
        let request = |counter| {
            let op = counted(Uuid::from_u128(7), counter);
            WriteRequest::new(op, "i".to_owned(), std::time::Instant::now(), crate::write::Work::Settle).unwrap()
        };
        let store = |ops: &mut Ops, counter| ops.store(&connection, &request(counter), 1, 1, None).unwrap();
        store(&mut ops, 1);
        ops.commit();
        let mark = ops.mark();
        connection.execute_batch("BEGIN").unwrap();
        store(&mut ops, 2);
        connection.execute_batch("ROLLBACK").unwrap();
        ops.roll_back(mark);
        store(&mut ops, 3);
        let mut is_stored =
            |counter| matches!(ops.find(&connection, &request(counter).op_id, 0).unwrap(), Found::Stored(_));
        assert_eq!([1, 2, 3].map(&mut is_stored), [true, false, true]);
    }

    #[test]
    fn what_a_client_has_the_answer_to_is_forgotten_in_small_steps() {
        let connection = migrated();
        let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
        for counter in 0..2_500 {
            insert(&connection, &counted(client, counter), now);
        }
        let mut ops = Ops::default();
        ops.find(&connection, &counted(client, 2_500), 2_400).unwrap();
        let mut left = Vec::new();
        for _ in 0..4 {
            ops.prune(&connection, KEEP).unwrap();
            left.push(count(&connection));
        }
        assert_eq!(left, [1_500, 500, 100, 100]);
        for ops in [&mut ops, &mut Ops::default()] {
            assert_eq!(ops.find(&connection, &counted(client, 2_399), 0).unwrap(), Found::Forgotten);
            assert!(matches!(ops.find(&connection, &counted(client, 2_400), 0).unwrap(), Found::Stored(_)));
            assert_eq!(ops.find(&connection, &counted(client, 2_500), 0).unwrap(), Found::New);
        }
    }

    #[test]
    fn a_forgotten_client_is_not_taken_for_a_new_one() {
        let connection = migrated();
        let old = Uuid::now_v7();
        raise(&connection, &old, 7, Timestamp::now().unix_seconds() - 2 * seconds(KEPT_CLIENTS_FOR)).unwrap();
        let mut ops = Ops::default();
        assert_eq!(ops.find(&connection, &counted(old, 7), 0).unwrap(), Found::New);
        ops.prune(&connection, KEEP).unwrap();
        let rows: u64 = connection.query_row("SELECT count(*) FROM _pando_client", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0);
        for ops in [&mut ops, &mut Ops::default()] {
            assert_eq!(ops.find(&connection, &counted(old, 7), 0).unwrap(), Found::Forgotten);
        }
        let later = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, made(&old) / 1_000 + 1, 0));
        assert_eq!(ops.find(&connection, &counted(later, 0), 0).unwrap(), Found::New);
    }

    #[test]
    fn op_ids_of_the_first_schema_are_found_after_the_migration() {
        let connection = fresh();
        let client = Uuid::now_v7();
        for op in [format!("{client}-12"), "req-1".to_owned(), format!("{client}")] {
            let sql =
                "INSERT INTO _pando_op (op_id, fingerprint, at, epoch, seq, results) VALUES (?1, 5, 0, 1, 1, 'null')";
            connection.execute(sql, [op]).unwrap();
        }
        connection.execute_batch(include_str!("../migrations/0003_op_clients.sql")).unwrap();
        connection.execute_batch(include_str!("../migrations/0005_fewer_pages.sql")).unwrap();
        for op in [counted(client, 12), OpId::parse("req-1"), OpId::parse(&client.to_string())] {
            let found = Ops::default().find(&connection, &op, 0).unwrap();
            assert!(matches!(found, Found::Stored(Stored { fingerprint: 5, .. })), "{op}: {found:?}");
        }
    }
}
