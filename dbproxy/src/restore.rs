//! Puts a copy in the place of the database, so that nobody takes the one for the other.
//!
//! What is restored is a new database: it has an id of its own, so that no write that was meant for the former one lands in it; its terms
//! and event numbers go on behind those of both; and its journal begins with `db.restored`, so that every follower, wherever it
//! stands, is told either by that event or by a resync that its picture is out of date.

use std::fs;
use std::path::{Path, PathBuf};

use pando_ipc::{Lease, Timestamp};
use rusqlite::{Connection, TransactionBehavior};
use rustix::fs::RenameFlags;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backup::{CopyError, Draft, OnStep, Step, file, sqlite, sync_directory_of, verify};
use crate::incarnation::{self, Standing};
use crate::schema;

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
    let renewed = |behind, former| {
        renew(&draft.path, copy, behind, former).map_err(|source| sqlite("renew", &draft.path, source))
    };
    if fs::symlink_metadata(database).is_err() {
        let standing = renewed(copy, None)?;
        draft.name(database, RenameFlags::NOREPLACE)?;
        return Ok(Restored { standing, copy_of: copy.database, former: None });
    }
    let standing = match settle(database) {
        Ok(former) => renewed(former, Some(former.database))?,
        Err(error) => {
            tracing::warn!(path = %database.display(), %error, "the former database cannot be read");
            renewed(copy.far_behind(), None)?
        }
    };
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
    let last = Standing::of(&connection)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(last)
}

fn renew(path: &Path, copy: Standing, behind: Standing, former: Option<Uuid>) -> rusqlite::Result<Standing> {
    let failed = |why: std::io::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(why));
    let mut connection = Connection::open(path)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let standing = incarnation::renew(&transaction, copy, behind, former)?;
    incarnation::settle_in(&transaction, &incarnation::identity(path).map_err(failed)?)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(failed)?;
    Ok(standing)
}
