//! One row per applied write: a retry gets its stored answer, and a key that is forgotten is never run again.

use std::collections::HashMap;
use std::time::Duration;

use pando_ipc::Timestamp;
use rusqlite::types::{ToSqlOutput, Value as Sql, ValueRef};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;
use uuid::Uuid;

use crate::journal::PRUNE_CHUNK;
use crate::op::OpId;
use crate::write::WriteRequest;

/// Applied writes that are remembered at least, unless their client says that it has the answer.
pub const KEPT_OPS: u64 = 100_000;
/// How long an applied write is remembered at least, unless its client says that it has the answer.
pub const KEPT_OPS_FOR: Duration = Duration::from_secs(3_600);
/// How long it is remembered which op ids of a client are forgotten. A client's id is used for one day.
pub const KEPT_CLIENTS_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Clients whose state is kept in memory; when there are more, all are read anew.
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
    pub(super) ops_for: Duration,
    pub(super) clients_for: Duration,
}

/// What the writer knows of the clients that count.
#[derive(Debug, Default)]
pub(super) struct Ops {
    clients: HashMap<Uuid, Client>,
    /// Unix milliseconds; `None` when it is not read yet.
    clients_forgotten: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Client {
    /// Counters below it are forgotten.
    below: u64,
    /// Counters below it were answered, as the client says.
    acked: u64,
}

/// SQLite's integers have a sign, fingerprints have none: the bits are kept.
fn signed(fingerprint: u64) -> i64 {
    i64::from_ne_bytes(fingerprint.to_ne_bytes())
}

/// The two columns that name a write.
struct Key<'a>(ToSqlOutput<'a>, ToSqlOutput<'a>);

impl<'a> Key<'a> {
    fn of(op: &'a OpId) -> Self {
        let text = |text: &'a str| ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()));
        match op {
            OpId::Counted { client, counter } => Self(
                ToSqlOutput::Borrowed(ValueRef::Blob(client.as_bytes())),
                ToSqlOutput::Owned(Sql::Integer(i64::try_from(*counter).unwrap_or(i64::MAX))),
            ),
            OpId::Named { scope, name } => Self(text(scope), text(name)),
        }
    }
}

impl Ops {
    /// Looks an op id up, and takes note of what its client says it has answers to.
    pub(super) fn find(&mut self, connection: &Connection, op: &OpId, acked: u64) -> rusqlite::Result<Found> {
        let stored = stored(connection, op)?;
        let OpId::Counted { client, counter } = op else { return Ok(stored.map_or(Found::New, Found::Stored)) };
        let state = self.client(connection, client)?;
        state.acked = state.acked.max(acked);
        Ok(match stored {
            Some(stored) => Found::Stored(stored),
            None if *counter < state.below => Found::Forgotten,
            None => Found::New,
        })
    }

    fn client(&mut self, connection: &Connection, client: &Uuid) -> rusqlite::Result<&mut Client> {
        if !self.clients.contains_key(client) {
            let below = self.below(connection, client)?;
            if self.clients.len() >= MAX_CLIENTS {
                self.clients.clear();
            }
            self.clients.insert(*client, Client { below, acked: below });
        }
        Ok(self.clients.entry(*client).or_insert(Client { below: 0, acked: 0 }))
    }

    fn below(&mut self, connection: &Connection, client: &Uuid) -> rusqlite::Result<u64> {
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

    /// Forgets what is in memory: a transaction that may have pruned was rolled back.
    pub(super) fn reload(&mut self) {
        *self = Self::default();
    }

    /// Removes a chunk of what is forgotten, in the open transaction: what its client has the answer to, and what is both beyond the count and older
    /// than the age. Which op ids of a client that is, is kept.
    pub(super) fn prune(&mut self, connection: &Connection, keep: Keep) -> rusqlite::Result<()> {
        let now = Timestamp::now().unix_seconds();
        let mut room = PRUNE_CHUNK;
        for (client, state) in self.clients.iter_mut().filter(|(_, state)| state.acked > state.below) {
            if room == 0 {
                break;
            }
            let below = state.acked.min(state.below.saturating_add(room));
            room -= below - state.below;
            raise(connection, client, below, now)?;
            let sql = "DELETE FROM _pando_op WHERE client = ?1 AND op < ?2";
            connection.prepare_cached(sql)?.execute(params![client.as_bytes(), below])?;
            state.below = below;
        }
        if prune_old(connection, keep, now)? {
            // The horizons of some clients were raised.
            self.clients.clear();
        }
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
}

/// Returns when a client made its id, in Unix milliseconds.
fn made(client: &Uuid) -> u64 {
    let (seconds, nanos) = client.get_timestamp().map_or((0, 0), |time| time.to_unix());
    seconds * 1_000 + u64::from(nanos) / 1_000_000
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Removes up to two chunks of old writes. Tells whether there were any.
fn prune_old(connection: &Connection, keep: Keep, now: i64) -> rusqlite::Result<bool> {
    let old = "n <= (SELECT max(n) FROM _pando_op) - ?1 AND n < (SELECT min(n) FROM _pando_op) + ?2 AND at < ?3";
    let old_params = params![keep.ops, 2 * PRUNE_CHUNK, now - seconds(keep.ops_for)];
    let mut named: Option<u64> = None;
    let sql = format!("SELECT client, max(op) + 1, max(at) FROM _pando_op WHERE {old} GROUP BY client");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut clients = statement.query(old_params)?;
    let mut any = false;
    while let Some(row) = clients.next()? {
        any = true;
        match row.get_ref(0)? {
            ValueRef::Blob(client) => {
                let client = Uuid::from_slice(client).unwrap_or_default();
                raise(connection, &client, row.get(1)?, now)?;
            }
            _ => named = named.max(row.get(2)?),
        }
    }
    if let Some(at) = named {
        set_meta(connection, NAMED_FORGOTTEN, at)?;
    }
    if any {
        connection.prepare_cached(&format!("DELETE FROM _pando_op WHERE {old}"))?.execute(old_params)?;
    }
    Ok(any)
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

fn stored(connection: &Connection, op: &OpId) -> rusqlite::Result<Option<Stored>> {
    let sql = "SELECT fingerprint, epoch, seq, results FROM _pando_op WHERE client = ?1 AND op = ?2";
    let Key(client, op) = Key::of(op);
    let row = connection.prepare_cached(sql)?.query_row([client, op], |row| {
        Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get::<_, Option<String>>(3)?))
    });
    row.optional()?
        .map(|(fingerprint, epoch, seq, results)| {
            let results = results.map(|results| serde_json::from_str(&results)).transpose().map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(why))
            })?;
            Ok(Stored { fingerprint: u64::from_ne_bytes(fingerprint.to_ne_bytes()), epoch, seq, results })
        })
        .transpose()
}

/// Tells until when writes with a chosen op id are forgotten, in Unix seconds, if this one may be among them.
pub(super) fn maybe_forgotten(connection: &Connection, op: &OpId) -> rusqlite::Result<Option<u64>> {
    let OpId::Named { name, .. } = op else { return Ok(None) };
    let forgotten = meta(connection, NAMED_FORGOTTEN)?;
    // What was made later cannot have been applied before.
    let since = Uuid::try_parse(name).ok().filter(|id| id.get_version_num() == 7).map_or(0, |id| made(&id) / 1_000);
    Ok(forgotten.filter(|until| since <= *until))
}

/// Stores the answer to a write, in its own transaction; without results it is settled as not applied.
pub(super) fn store(
    connection: &Connection,
    request: &WriteRequest,
    epoch: u64,
    seq: u64,
    results: Option<&Value>,
) -> rusqlite::Result<()> {
    let Key(client, op) = Key::of(&request.op_id);
    connection
        .prepare_cached(
            "INSERT INTO _pando_op (client, op, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            client,
            op,
            signed(request.fingerprint),
            Timestamp::now().unix_seconds(),
            epoch,
            seq,
            results.map(ToString::to_string)
        ])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { ops: KEPT_OPS, ops_for: KEPT_OPS_FOR, clients_for: KEPT_CLIENTS_FOR };

    fn fresh() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../migrations/0001_pando.sql")).unwrap();
        connection
    }

    fn migrated() -> Connection {
        let connection = fresh();
        connection.execute_batch(include_str!("../migrations/0003_op_clients.sql")).unwrap();
        connection
    }

    fn insert(connection: &Connection, op: &OpId, at: i64) {
        let sql = "INSERT INTO _pando_op (client, op, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, -1, ?3, 1, 1, '[7]')";
        let Key(client, op) = Key::of(op);
        connection.execute(sql, params![client, op, at]).unwrap();
    }

    fn count(connection: &Connection) -> u64 {
        connection.query_row("SELECT count(*) FROM _pando_op", [], |row| row.get(0)).unwrap()
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
        assert_eq!(kept(100), 100);
        assert_eq!(kept(70), 70, "60 are old enough, 30 are too many");
        assert_eq!(kept(10), 40, "the young ones stay");
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
        for op in [counted(client, 12), OpId::parse("req-1"), OpId::parse(&client.to_string())] {
            let found = Ops::default().find(&connection, &op, 0).unwrap();
            assert!(matches!(found, Found::Stored(Stored { fingerprint: 5, .. })), "{op}: {found:?}");
        }
    }
}
