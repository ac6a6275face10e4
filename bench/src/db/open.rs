//! The peer: every process opens the file itself, as tools do today, with the settings that serve them best.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pando::Durability;
use rusqlite::{Connection, TransactionBehavior, params};

use super::{Activity, BODY_BYTES, COUNT, FILL, INSERT, Job, SCHEMA};
use crate::load::{Course, wait_until};
use crate::{Failure, fleet};

/// The database in the workdir.
pub(super) const FILE: &str = "peer.db";
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the database.
pub(super) fn create(path: &Path) -> Result<(), Failure> {
    let connection = Connection::open(path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    for sql in SCHEMA.iter().chain(&FILL) {
        connection.execute(sql, [])?;
    }
    Ok(())
}

/// Writes one transaction after the other.
pub(super) fn work(job: &Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let mut connection = Connection::open(job.workdir.join(FILE))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let synchronous = match job.durability {
        Durability::Disk => "FULL",
        Durability::Os => "NORMAL",
    };
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}"))?;
    let Some(Activity::Write { .. }) = job.activity else { return Err("the peer only writes".into()) };
    let body = "x".repeat(BODY_BYTES);
    ready()?;
    let mut course = Course::begin(job.pace);
    while let Some(due) = course.next() {
        wait_until(due);
        let written = write(&mut connection, job.number, &body);
        course.ended(due, written.is_ok());
    }
    fleet::done(Some(&course.outcome()))
}

fn write(connection: &mut Connection, number: u32, body: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.prepare_cached(INSERT)?.execute(params![number, micros(), body])?;
    transaction.prepare_cached(COUNT)?.execute([number])?;
    transaction.commit()
}

/// Returns the microseconds since this process first asked, as they stand in the rows.
pub(super) fn micros() -> i64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    i64::try_from(START.elapsed().as_micros()).unwrap_or(i64::MAX)
}
