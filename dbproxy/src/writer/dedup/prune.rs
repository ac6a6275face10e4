//! Removing what is forgotten, a chunk at a time, beside the writes.

use std::collections::HashMap;
use std::time::Duration;

use pando_ipc::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{CLIENTS_FORGOTTEN, Keep, NAMED_FORGOTTEN, OPS, Ops, Place, made, set_meta};
use crate::journal::PRUNE_CHUNK;

impl Ops {
    /// Removes a chunk of what is forgotten, in the open transaction: what its client has the answer to, and what is both beyond the count and older
    /// than the age. Which op ids of a client that is, is kept. No event up to `head`, the last one, keeps an op any more.
    pub(in crate::writer) fn prune(&mut self, connection: &Connection, keep: Keep, head: u64) -> rusqlite::Result<()> {
        let now = Timestamp::now().unix_seconds();
        self.load(connection)?;
        self.prune_acked(connection, now)?;
        self.move_kept(connection, head)?;
        self.prune_old(connection, keep, now)?;
        prune_old_named(connection, keep, now)?;
        let before = now - seconds(keep.clients_for);
        let sql = "DELETE FROM _pando_client WHERE client IN (SELECT client FROM _pando_client WHERE at < ?1 LIMIT ?2) RETURNING client";
        let mut statement = connection.prepare_cached(sql)?;
        let gone = statement.query_map(params![before, PRUNE_CHUNK], |row| row.get::<_, [u8; 16]>(0))?;
        let gone = gone.collect::<rusqlite::Result<Vec<_>>>()?;
        if let Some(youngest) = gone.into_iter().map(|client| made(&Uuid::from_bytes(client))).max() {
            // One whose clock is ahead is no reason to refuse those that are still to be made.
            let until = youngest.min(u64::try_from(now).unwrap_or(0) * 1_000 + 999);
            set_meta(connection, CLIENTS_FORGOTTEN, until)?;
            self.reload();
        }
        Ok(())
    }

    fn prune_acked(&mut self, connection: &Connection, now: i64) -> rusqlite::Result<()> {
        let mut room = usize::try_from(PRUNE_CHUNK).unwrap_or(usize::MAX);
        let last: i64 =
            connection.prepare_cached("SELECT coalesce(max(n), 0) FROM _pando_op")?.query_row([], |row| row.get(0))?;
        let mut delete = connection.prepare_cached("DELETE FROM _pando_op WHERE n = ?1")?;
        for (id, client) in &mut self.clients {
            let waited_for = client.rows.split_off(&client.acked);
            for (counter, place) in std::mem::replace(&mut client.rows, waited_for) {
                match place {
                    Place::Event(_) => {}
                    // The last row of all stays: numbers only grow.
                    Place::Row(n) if n == last || room == 0 => drop(client.rows.insert(counter, place)),
                    Place::Row(n) => {
                        delete.execute([n])?;
                        room -= 1;
                    }
                }
            }
            // What is left below is still found.
            if client.below.is_some_and(|known| known < client.acked) {
                raise(connection, id, client.acked, now)?;
                client.below = Some(client.acked);
            }
        }
        Ok(())
    }

    /// Moves what events keep to rows of its own: of clients that still wait, or that say nothing.
    fn move_kept(&mut self, connection: &Connection, head: u64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq, results)
                   SELECT client, counter, fingerprint, at, epoch, seq, results FROM _pando_event WHERE seq = ?1";
        let mut insert = connection.prepare_cached(sql)?;
        for place in self.clients.values_mut().flat_map(|client| client.rows.values_mut()) {
            if let Place::Event(seq) = place {
                *place = Place::Row(insert.insert([*seq])?);
            }
        }
        set_meta(connection, OPS, head)?;
        (self.moved, self.seen_event) = (head, head);
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

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Returns the condition for a chunk of what is too old by either limit: ?1 and ?4 are counts, ?2 is the chunk's size, ?3 is a time.
fn old(table: &str) -> String {
    let (oldest, newest) = (format!("(SELECT min(n) FROM {table})"), format!("(SELECT max(n) FROM {table})"));
    // One bound: what neither count excludes is not even looked at.
    let end = format!("min({newest}, {oldest} + ?2, {newest} - min(?1, ?4) + 1)");
    format!("n < {end} AND (n <= {newest} - ?1 AND at < ?3 OR n <= {newest} - ?4)")
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
pub(super) fn raise(connection: &Connection, client: &Uuid, below: u64, now: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO _pando_client (client, below, at) VALUES (?1, ?2, ?3)
               ON CONFLICT DO UPDATE SET below = max(below, excluded.below), at = excluded.at";
    connection.prepare_cached(sql)?.execute(params![client.as_bytes(), below, now]).map(drop)
}
