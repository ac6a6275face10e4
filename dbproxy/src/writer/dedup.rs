//! One row per applied write: a retry gets its stored answer, and a key that is forgotten is never run again.
//!
//! Clients that count have many writes and say what they have answers to, so little is kept of them, and an index in memory finds it. Mostly the
//! last event of a write keeps its op: that is the one row which is written anyway. What outlives the next pruning is moved to a table of
//! its own, which is only appended to. Op ids that somebody chose are kept for their time, and have an index in the database.

mod prune;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pando_ipc::Timestamp;
use pando_ipc::rpc::Json;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::journal::KeptOp;
use crate::op::OpId;
use crate::write::WriteRequest;

/// Applied writes that are remembered at least, those not counted whose client says that it has the answer.
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
/// Key of the event up to which no event keeps an op any more.
const OPS: &str = "ops";
/// Longest results that an event keeps, in bytes: it stays when the op is long forgotten.
const MAX_KEPT_RESULTS: usize = 256;

const BELOW: &str = "SELECT below FROM _pando_client WHERE client = ?1";
const META: &str = "SELECT value FROM _pando_meta WHERE key = ?1";
const KEPT_BY_ROW: &str = "SELECT fingerprint, epoch, seq, results FROM _pando_op WHERE n = ?1";
const KEPT_BY_EVENT: &str = "SELECT fingerprint, epoch, seq, results FROM _pando_event WHERE seq = ?1";
const STORE: &str =
    "INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const KEPT_BY_NAME: &str =
    "SELECT fingerprint, epoch, seq, results FROM _pando_op_named WHERE scope = ?1 AND name = ?2";
const STORE_NAMED: &str = "INSERT INTO _pando_op_named (scope, name, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
/// What looking up and storing an op runs.
pub(crate) const OPS_RUN: &[&str] = &[BELOW, META, KEPT_BY_ROW, KEPT_BY_EVENT, STORE, KEPT_BY_NAME, STORE_NAMED];

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
/// Rows are numbered upwards, and the last one stays when others are removed: so what came after a look is behind it. So it is with events.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    /// With all of their writes that are stored, as of the last look.
    clients: HashMap<Uuid, Client>,
    /// The last row seen.
    seen: i64,
    /// The last event seen.
    seen_event: u64,
    /// The event up to which none keeps an op, as of the last look.
    moved: u64,
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
    /// Where each counter is stored.
    rows: BTreeMap<u64, Place>,
}

/// Where an op is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a row of its own.
    Row(i64),
    /// With the last event of its write.
    Event(u64),
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
                let found = connection.prepare_cached(KEPT_BY_NAME)?.query_row([scope, name], stored).optional()?;
                return Ok(found.map_or(Found::New, Found::Stored));
            }
        };
        self.load(connection)?;
        let below = self.below(connection, client)?;
        let client = self.clients.entry(*client).or_default();
        // Nobody has the answer to a write that is still to come.
        (client.below, client.acked) = (Some(below), client.acked.max(acked.min(*counter)));
        if let Some(place) = client.rows.get(counter) {
            let found = match place {
                Place::Row(n) => connection.prepare_cached(KEPT_BY_ROW)?.query_row([n], stored),
                Place::Event(seq) => connection.prepare_cached(KEPT_BY_EVENT)?.query_row([seq], stored),
            };
            if let Some(stored) = found.optional()? {
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
                let row = params![client.as_bytes(), counter, fingerprint, at, epoch, seq, results];
                let row = connection.prepare_cached(STORE)?.insert(row)?;
                self.note(*client, *counter, Place::Row(row));
            }
            OpId::Named { scope, name } => {
                let row = params![scope, name, fingerprint, at, epoch, seq, results];
                connection.prepare_cached(STORE_NAMED)?.execute(row)?;
            }
        }
        Ok(())
    }

    /// Notes that the event `seq`, in the same transaction, keeps the op.
    pub(super) fn note_kept(&mut self, request: &WriteRequest, seq: u64) {
        if let OpId::Counted { client, counter } = request.op_id {
            self.note(client, counter, Place::Event(seq));
        }
    }

    fn note(&mut self, client: Uuid, counter: u64, place: Place) {
        self.clients.entry(client).or_default().rows.insert(counter, place);
        self.undo.push((client, counter));
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

    /// Looks at what another writer stores, beside it: so that there is little left to read when its term is over. Call it now and then. Tells whether
    /// there was something new.
    pub(crate) fn follow(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        if self.rows > FOLLOWED_ROWS {
            // Most of these are removed by now.
            self.reload();
        }
        let seen = (self.seen, self.seen_event);
        // What is moved meanwhile is seen in one place, and not in both or neither.
        self.load(&*connection.unchecked_transaction()?)?;
        self.is_current = false;
        Ok(seen != (self.seen, self.seen_event))
    }

    /// Reads what came since the last look, in the open transaction.
    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.is_current {
            return Ok(());
        }
        let moved = meta(connection, OPS)?.unwrap_or(0);
        if moved > self.moved {
            let stays = |place: &Place| !matches!(place, Place::Event(seq) if *seq <= moved);
            self.clients.values_mut().for_each(|client| client.rows.retain(|_, place| stays(place)));
            (self.moved, self.seen_event) = (moved, self.seen_event.max(moved));
        }
        let mut statement =
            connection.prepare_cached("SELECT client, counter, n FROM _pando_op WHERE n > ?1 ORDER BY n")?;
        let mut rows = statement.query([self.seen])?;
        while let Some(row) = rows.next()? {
            self.seen = row.get(2)?;
            self.remember(row.get(0)?, row.get(1)?, Place::Row(self.seen));
        }
        let sql = "SELECT client, counter, seq FROM _pando_event WHERE seq > ?1 ORDER BY seq";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([self.seen_event])?;
        while let Some(row) = rows.next()? {
            self.seen_event = row.get(2)?;
            if let Some(client) = row.get(0)? {
                self.remember(client, row.get(1)?, Place::Event(self.seen_event));
            }
        }
        self.is_current = true;
        Ok(())
    }

    fn remember(&mut self, client: uuid::Bytes, counter: u64, place: Place) {
        self.clients.entry(Uuid::from_bytes(client)).or_default().rows.insert(counter, place);
        self.rows += 1;
    }

    /// Returns the counter below which everything of a client is forgotten.
    fn below(&mut self, connection: &Connection, client: &Uuid) -> rusqlite::Result<u64> {
        if let Some(below) = self.clients.get(client).and_then(|client| client.below) {
            return Ok(below);
        }
        let below = connection.prepare_cached(BELOW)?.query_row([client.as_bytes()], |row| row.get(0)).optional()?;
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

/// Returns what the last event of a write is to keep of it; nothing of a write that needs a row of its own.
pub(super) fn kept_by_event<'a>(request: &'a WriteRequest, results: &'a Json) -> Option<KeptOp<'a>> {
    let (OpId::Counted { client, counter }, results) = (&request.op_id, results.as_str()) else { return None };
    let fits = results.len() <= MAX_KEPT_RESULTS;
    fits.then(|| KeptOp { client, counter: *counter, fingerprint: signed(request.fingerprint()), results })
}

/// Counts the ops that events keep.
pub(crate) fn ops_kept_by_events(connection: &Connection) -> rusqlite::Result<u64> {
    // Of a schema before the sixth, none do.
    let Some(moved) = meta(connection, OPS)? else { return Ok(0) };
    let sql = "SELECT count(client) FROM _pando_event WHERE seq > ?1";
    connection.prepare_cached(sql)?.query_row([moved], |row| row.get(0))
}

/// Moves what events up to `head`, the last one, keep to rows of its own, in the open transaction.
pub(crate) fn move_ops(connection: &Connection, head: u64) -> rusqlite::Result<()> {
    let Some(moved) = meta(connection, OPS)? else { return Ok(()) };
    let sql = "INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq, results)
               SELECT client, counter, fingerprint, at, epoch, seq, results FROM _pando_event
               WHERE seq > ?1 AND client IS NOT NULL ORDER BY seq";
    connection.prepare_cached(sql)?.execute([moved])?;
    set_meta(connection, OPS, head)
}

/// Returns when a client made its id, in Unix milliseconds.
fn made(client: &Uuid) -> u64 {
    let (seconds, nanos) = client.get_timestamp().map_or((0, 0), |time| time.to_unix());
    seconds * 1_000 + u64::from(nanos) / 1_000_000
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    connection.prepare_cached(META)?.query_row([key], |row| row.get(0)).optional()
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
mod tests;
