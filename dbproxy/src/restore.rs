//! Puts a copy in the place of the database, so that nobody takes the one for the other.
//!
//! What is restored is a new database: it has an id of its own, so that no write that was meant for the former one lands in it; its terms
//! and event numbers go on behind those of both; and its journal begins with `db.restored`, so that every follower, wherever it
//! stands, is told either by that event or by a resync that its picture is out of date.

use std::fs;
use std::path::{Path, PathBuf};

use pando_ipc::{Envelope, Lease, Timestamp, Topic, topic};
use rusqlite::{Connection, TransactionBehavior, params};
use rustix::fs::RenameFlags;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backup::{CopyError, Draft, OnStep, Standing, Step, file, sqlite, standing, sync_directory_of, verify};
use crate::journal::Journal;
use crate::schema;

/// How far terms and event numbers jump when the former database cannot tell how far it was.
pub const UNKNOWN_JUMP: u64 = 1_000_000;

/// A restored database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// What it is now.
    #[serde(flatten)]
    pub standing: Standing,
    /// The id that the copy had.
    pub copy_of: Uuid,
    /// Where the former database was put; `None` where there was none.
    pub former: Option<PathBuf>,
}

/// Puts the copy at `from` in the place of the database at `database`. Blocks.
///
/// Whoever holds the lease knows that nobody else is in the workdir, so no write is lost on the way. The former database is kept beside
/// the new one. The exchange is one step: at every moment there is one whole database or the other.
pub fn restore(
    _nobody_else: &Lease,
    from: &Path,
    database: &Path,
    stop: &CancellationToken,
    on_step: &OnStep,
) -> Result<Restored, CopyError> {
    let copy = verify(from)?;
    let draft = Draft::copy(from, database, stop, on_step)?;
    on_step(Step::Verifying);
    verify(&draft.path)?;
    if fs::symlink_metadata(database).is_err() {
        let standing = renew(&draft.path, copy, None).map_err(|source| sqlite("renew", &draft.path, source))?;
        draft.name(database, RenameFlags::NOREPLACE)?;
        return Ok(Restored { standing, copy_of: copy.database, former: None });
    }
    let last = settle(database).inspect_err(|error| {
        tracing::warn!(path = %database.display(), %error, "the former database cannot be read");
    });
    let unknown = Standing { epoch: copy.epoch + UNKNOWN_JUMP, seq: copy.seq + UNKNOWN_JUMP, ..copy };
    let former = last.unwrap_or(unknown);
    let standing = renew(&draft.path, copy, Some(former)).map_err(|source| sqlite("renew", &draft.path, source))?;
    let now = Timestamp::now().as_datetime().format("%Y%m%dT%H%M%S%.3fZ").to_string();
    let aside = schema::beside(database, &format!(".replaced-{now}"));
    // A log belongs to its own database: it goes first, and the exchange never pairs it with another.
    for suffix in ["-wal", "-shm"] {
        rename(&schema::beside(database, suffix), &schema::beside(&aside, suffix))?;
    }
    let exchanged = draft.path.clone();
    draft.name(database, RenameFlags::EXCHANGE)?;
    rename(&exchanged, &aside)?;
    sync_directory_of(database)?;
    Ok(Restored { standing, copy_of: copy.database, former: Some(aside) })
}

fn rename(from: &Path, to: &Path) -> Result<(), CopyError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("rename", from, error)),
        _ => Ok(()),
    }
}

/// Moves the former database's log into it, so that the file alone is all of it, and reads where it stands.
fn settle(database: &Path) -> rusqlite::Result<Standing> {
    let connection = schema::connect(database)?;
    let last = standing(&connection)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(last)
}

/// Makes the copy a database of its own, behind the former one. Returns where it stands.
fn renew(path: &Path, copy: Standing, former: Option<Standing>) -> rusqlite::Result<Standing> {
    let mut connection = Connection::open(path)?;
    let database = Uuid::new_v4();
    let epoch = former.map_or(copy.epoch, |former| former.epoch.max(copy.epoch));
    let behind = former.map_or(copy.seq, |former| former.seq.max(copy.seq));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let change = "UPDATE _pando_meta SET value = ?2 WHERE key = ?1";
    transaction.execute(change, params!["database", database.to_string()])?;
    transaction.execute(change, params!["epoch", epoch])?;
    let mut journal = Journal::load(&transaction, epoch)?;
    journal.begin_anew(&transaction, behind)?;
    let payload = json!({
        "database": database,
        "copy_of": copy.database,
        "former": former.map(|former| former.database),
        "copy_seq": copy.seq,
    });
    let event = journal.append(&transaction, Envelope::new("", Topic::known(topic::RESTORED), payload))?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))?;
    Ok(Standing { database, epoch, seq: event.seq.unwrap_or(behind) })
}
