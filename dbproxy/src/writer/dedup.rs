//! One row per applied write: a retry gets the stored answer, a reused op id is refused.

use std::time::Duration;

use pando_ipc::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use crate::journal::PRUNE_CHUNK;
use crate::write::WriteRequest;

/// Applied writes that are remembered at least.
pub const KEPT_OPS: u64 = 100_000;
/// How long an applied write is remembered at least.
pub const KEPT_OPS_FOR: Duration = Duration::from_secs(3_600);

/// What is stored of an applied write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) fingerprint: u64,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) results: Value,
}

/// SQLite's integers have a sign, fingerprints have none: the bits are kept.
fn signed(fingerprint: u64) -> i64 {
    i64::from_ne_bytes(fingerprint.to_ne_bytes())
}

/// Looks an op id up.
pub(super) fn find(connection: &Connection, op_id: &str) -> rusqlite::Result<Option<Stored>> {
    let sql = "SELECT fingerprint, epoch, seq, results FROM _pando_op WHERE op_id = ?1";
    let row = connection
        .prepare_cached(sql)?
        .query_row([op_id], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?)));
    row.optional()?
        .map(|(fingerprint, epoch, seq, results)| {
            let results = serde_json::from_str(&results).map_err(|why| {
                rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(why))
            })?;
            Ok(Stored { fingerprint: u64::from_ne_bytes(fingerprint.to_ne_bytes()), epoch, seq, results })
        })
        .transpose()
}

/// Stores the answer to a write, in its own transaction.
pub(super) fn store(
    connection: &Connection,
    request: &WriteRequest,
    epoch: u64,
    seq: u64,
    results: &Value,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO _pando_op (op_id, fingerprint, at, epoch, seq, results) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            request.op_id,
            signed(request.fingerprint),
            Timestamp::now().unix_seconds(),
            epoch,
            seq,
            results.to_string()
        ])
        .map(drop)
}

/// Removes up to two chunks of what is both beyond the count and older than the age.
pub(super) fn prune(connection: &Connection, keep: u64, keep_for: Duration) -> rusqlite::Result<()> {
    let before = Timestamp::now().unix_seconds() - i64::try_from(keep_for.as_secs()).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "DELETE FROM _pando_op WHERE n <= (SELECT max(n) FROM _pando_op) - ?1
                 AND n < (SELECT min(n) FROM _pando_op) + ?2 AND at < ?3",
        )?
        .execute(params![keep, 2 * PRUNE_CHUNK, before])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_is_forgotten_only_when_it_is_old_and_many_came_after_it() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../migrations/0001_pando.sql")).unwrap();
        let now = Timestamp::now().unix_seconds();
        let mut insert = connection
            .prepare(
                "INSERT INTO _pando_op (op_id, fingerprint, at, epoch, seq, results) VALUES (?1, -1, ?2, 1, 1, '[7]')",
            )
            .unwrap();
        for n in 1..=100 {
            insert.execute(params![format!("op-{n}"), if n <= 60 { now - 7_200 } else { now }]).unwrap();
        }
        let kept = |keep| {
            prune(&connection, keep, KEPT_OPS_FOR).unwrap();
            connection.query_row("SELECT count(*) FROM _pando_op", [], |row| row.get::<_, u64>(0)).unwrap()
        };
        assert_eq!(kept(100), 100);
        assert_eq!(kept(70), 70, "60 are old enough, 30 are too many");
        assert_eq!(kept(10), 40, "the young ones stay");
        let stored = find(&connection, "op-61").unwrap().unwrap();
        assert_eq!((stored.fingerprint, stored.results), (u64::MAX, serde_json::json!([7])));
        assert_eq!(find(&connection, "op-60").unwrap(), None);
    }
}
