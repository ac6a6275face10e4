//! One row per applied write: a retry gets its stored answer, and a key that is forgotten is never run again.
//!
//! Clients that count have many writes and say what they have answers to, so few rows are kept of them; an index in memory finds those, and
//! the table is only appended to. Op ids that somebody chose are kept for their time, and have an index in the database.

mod prune;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pando_ipc::Timestamp;
use pando_ipc::rpc::Json;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

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
/// Rows that a follower of another writer remembers before it reads all that is left of them anew.
const FOLLOWED_ROWS: usize = 20_000;
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
    pub(super) results: Option<Json>,
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
///
/// Rows are numbered upwards, and the last one stays when others are removed: so what came after a look is behind it.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    /// With all of their writes that are stored, as of the last look.
    clients: HashMap<Uuid, Client>,
    /// The last row seen.
    seen: i64,
    /// Whether nobody else may have stored anything since.
    is_current: bool,
    /// Rows that were seen.
    rows: usize,
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
        if let Some(row) = client.rows.get(counter) {
            let sql = "SELECT fingerprint, epoch, seq, results FROM _pando_op WHERE n = ?1";
            if let Some(stored) = connection.prepare_cached(sql)?.query_row([row], stored).optional()? {
                return Ok(Found::Stored(stored));
            }
            // A former writer has removed it since.
            client.rows.remove(counter);
        }
        Ok(if *counter < below { Found::Forgotten } else { Found::New })
    }

    /// Stores the answer to a write, in its own transaction; without results it is settled as not applied.
    pub(super) fn store(
        &mut self,
        connection: &Connection,
        request: &WriteRequest,
        epoch: u64,
        seq: u64,
        results: Option<&Json>,
    ) -> rusqlite::Result<()> {
        let (fingerprint, at) = (signed(request.fingerprint()), Timestamp::now().unix_seconds());
        let results = results.map(Json::as_str);
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

    /// Looks at what another writer stores, beside it: so that there is little left to read when its term is over. Call it now and then.
    pub(crate) fn follow(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.rows > FOLLOWED_ROWS {
            // Most of these are removed by now.
            self.reload();
        }
        self.load(connection)?;
        self.is_current = false;
        Ok(())
    }

    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.is_current {
            return Ok(());
        }
        let mut statement =
            connection.prepare_cached("SELECT client, counter, n FROM _pando_op WHERE n > ?1 ORDER BY n")?;
        let mut rows = statement.query([self.seen])?;
        while let Some(row) = rows.next()? {
            let client = self.clients.entry(Uuid::from_bytes(row.get(0)?)).or_default();
            self.seen = row.get(2)?;
            client.rows.insert(row.get(1)?, self.seen);
            self.rows += 1;
        }
        self.is_current = true;
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
}

/// Returns when a client made its id, in Unix milliseconds.
fn made(client: &Uuid) -> u64 {
    let (seconds, nanos) = client.get_timestamp().map_or((0, 0), |time| time.to_unix());
    seconds * 1_000 + u64::from(nanos) / 1_000_000
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
    use super::prune::{raise, seconds};
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
            insert(&connection, &op, if n <= 60 { now - 7_200 } else { now - 1_800 });
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
        let stored = Stored { fingerprint: u64::MAX, epoch: 1, seq: 1, results: Some(Json::of(&[7])) };
        assert_eq!(find(&OpId::parse("req-61")), Found::Stored(stored));
        assert_eq!(find(&OpId::parse("req-59")), Found::New);
        assert_eq!(
            maybe_forgotten(&connection, &OpId::parse("req-59")).unwrap(),
            Some(u64::try_from(now - 7_200).unwrap())
        );
        assert_eq!(maybe_forgotten(&connection, &OpId::parse(&Uuid::now_v7().to_string())).unwrap(), None);
        let earlier = uuid::Timestamp::from_unix(uuid::NoContext, u64::try_from(now - 7_300).unwrap(), 0);
        assert!(maybe_forgotten(&connection, &OpId::parse(&Uuid::new_v7(earlier).to_string())).unwrap().is_some());
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
    fn what_was_stored_before_the_savepoint_stays() {
        let connection = migrated();
        let mut ops = Ops::default();
        let client = Uuid::now_v7();
        let store = |ops: &mut Ops, counter| {
            let op = counted(client, counter);
            let request =
                WriteRequest::new(op, "i".to_owned(), std::time::Instant::now(), crate::write::Work::Settle).unwrap();
            ops.store(&connection, &request, 1, 1, None).unwrap();
        };
        ops.find(&connection, &counted(client, 1), 0).unwrap();
        store(&mut ops, 1);
        let mark = ops.mark();
        store(&mut ops, 2);
        ops.roll_back(mark);
        assert_eq!(ops.clients[&client].rows.keys().collect::<Vec<_>>(), [&1]);
        ops.commit();
        assert_eq!(ops.mark().0, 0, "nothing can be taken back any more");
    }

    #[test]
    fn clients_without_writes_are_dropped_from_memory_when_they_are_too_many() {
        let connection = migrated();
        let mut ops = Ops::default();
        let writer = Uuid::now_v7();
        insert(&connection, &counted(writer, 1), 0);
        let ask = |ops: &mut Ops, count: usize| {
            for _ in 0..count {
                ops.find(&connection, &counted(Uuid::now_v7(), 0), 0).unwrap();
            }
            ops.commit();
            ops.clients.len()
        };
        assert_eq!(ask(&mut ops, 1), 2, "with the one that has written");
        assert_eq!(ask(&mut ops, MAX_CLIENTS - 2), MAX_CLIENTS);
        assert_eq!(ask(&mut ops, 2), 1);
        assert!(ops.clients.contains_key(&writer));
    }

    #[test]
    fn who_follows_for_long_reads_anew_what_is_left() {
        let connection = migrated();
        let client = Uuid::now_v7();
        let fill = format!(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {FOLLOWED_ROWS})
             INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq) SELECT ?1, x, 0, 0, 1, 1 FROM n"
        );
        connection.execute(&fill, [client.as_bytes()]).unwrap();
        let mut ops = Ops::default();
        let mut follow = || {
            ops.follow(&connection).unwrap();
            (ops.rows, ops.clients[&client].rows.len())
        };
        assert_eq!(follow(), (FOLLOWED_ROWS, FOLLOWED_ROWS));
        connection.execute("DELETE FROM _pando_op WHERE counter <= 100", []).unwrap();
        insert(&connection, &counted(client, 1_000_000), 0);
        let more = FOLLOWED_ROWS + 1;
        assert_eq!(follow(), (more, more), "only what is new is read");
        assert_eq!(follow(), (more - 100, more - 100));
    }

    #[test]
    fn a_client_that_has_answers_to_nothing_leaves_no_note() {
        let connection = migrated();
        let client = Uuid::now_v7();
        insert(&connection, &counted(client, 1), Timestamp::now().unix_seconds());
        let mut ops = Ops::default();
        ops.find(&connection, &counted(client, 2), 0).unwrap();
        ops.prune(&connection, KEEP).unwrap();
        let notes: u64 = connection.query_row("SELECT count(*) FROM _pando_client", [], |row| row.get(0)).unwrap();
        assert_eq!(notes, 0);
    }

    #[test]
    fn a_client_is_remembered_for_longer_than_its_id_is_used() {
        assert!(KEPT_CLIENTS_FOR >= 2 * crate::client::RENEWED_AFTER);
        let id = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 123_000_000);
        assert_eq!(made(&Uuid::new_v7(id)), 1_700_000_000_123);
    }

    #[test]
    fn who_followed_knows_what_was_stored_and_what_was_removed_since() {
        let connection = migrated();
        let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
        let mut writer = Ops::default();
        (0..10).for_each(|counter| insert(&connection, &counted(client, counter), now));
        let mut follower = Ops::default();
        follower.follow(&connection).unwrap();
        // All that its client has the answer to goes, and more comes.
        writer.find(&connection, &counted(client, 10), 10).unwrap();
        writer.prune(&connection, KEEP).unwrap();
        assert_eq!(count(&connection), 1, "the last row stays, so that numbers only grow");
        (10..13).for_each(|counter| insert(&connection, &counted(client, counter), now));
        let other = Uuid::now_v7();
        insert(&connection, &counted(other, 0), now);
        for ops in [&mut follower, &mut Ops::default()] {
            let mut find = |client, counter| ops.find(&connection, &counted(client, counter), 0).unwrap();
            assert!((0..9).all(|counter| find(client, counter) == Found::Forgotten));
            assert!((9..13).all(|counter| matches!(find(client, counter), Found::Stored(_))));
            assert!(matches!(find(other, 0), Found::Stored(_)));
            assert_eq!((find(client, 13), find(other, 1)), (Found::New, Found::New));
        }
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
