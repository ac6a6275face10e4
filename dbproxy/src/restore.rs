//! Puts a copy in the place of the database, so that nobody takes the one for the other.
//!
//! What is restored is a new database: it has an id of its own, so that no write that was meant for the former one lands in it; its terms
//! and event numbers go on behind those of both; and its journal begins with `db.restored`, so that every follower, wherever it
//! stands, is told either by that event or by a resync that its picture is out of date.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pando_ipc::{Lease, Timestamp};
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, DEFAULT_NAME, ErrorCode, TransactionBehavior};
use rustix::fs::RenameFlags;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backup::{CopyError, Draft, OnStep, Step, file, sqlite, sync_directory_of, verify};
use crate::incarnation::{self, Standing};
use crate::schema;
use crate::trouble::Trouble;

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

/// What is in the place that a copy is to take.
enum Former {
    /// Nothing.
    None,
    /// A database whose log was moved into it: its file alone is all of it.
    Settled(Standing),
    /// A file that cannot be read; its log may hold what it lacks.
    Unreadable,
}

/// Puts the copy at `from` in the place of the database at `database`. Blocks.
///
/// Whoever holds the lease knows that nobody else is in the workdir, so no write is lost on the way. The former database is kept beside
/// the new one. The exchange is one step: at every moment there is one whole database or the other. A former database that somebody
/// still reads, or whose log the disk keeps from being moved into it, stays where it is.
pub fn restore(
    _nobody_else: &Lease,
    from: &Path,
    database: &Path,
    stop: &CancellationToken,
    on_step: &OnStep,
) -> Result<Restored, CopyError> {
    remove_stale_drafts(from, database);
    let copy = verify(from, stop)?;
    let draft = Draft::copy(from, database, stop, on_step)?;
    on_step(Step::Verifying);
    verify(&draft.path, stop)?;
    let former = settle(database)?;
    let (behind, former_id) = match former {
        Former::None => (copy, None),
        Former::Settled(former) => (former, Some(former.database)),
        Former::Unreadable => (copy.far_behind(), None),
    };
    let standing = renew(&draft.path, copy, behind, former_id);
    let standing = standing.map_err(|source| sqlite("renew", &draft.path, source))?;
    let now = Timestamp::now().as_datetime().format("%Y%m%dT%H%M%S%.3fZ").to_string();
    let aside = schema::beside(database, &format!(".replaced-{now}"));
    if stop.is_cancelled() {
        return Err(CopyError::Cancelled);
    }
    replace(draft, database, &aside, &former)?;
    let aside = (!matches!(former, Former::None)).then_some(aside);
    Ok(Restored { standing, copy_of: copy.database, former: aside })
}

/// Gives the copy its place, and what was there the name `aside`. Where that fails, all is as it was.
fn replace(mut draft: Draft, database: &Path, aside: &Path, former: &Former) -> Result<(), CopyError> {
    let how = match former {
        Former::None => RenameFlags::NOREPLACE,
        Former::Settled(_) => {
            // The exchange leaves the former database under the copy's name: that must be no name of an unfinished copy, which the next
            // restore would remove.
            draft.rename(aside)?;
            RenameFlags::EXCHANGE
        }
        Former::Unreadable => {
            // A second name for it: with its log it is whole there wherever this ends, and nobody opens a file of two names without its log.
            fs::hard_link(database, aside).map_err(|source| file("link to", aside, source))?;
            RenameFlags::empty()
        }
    };
    // A log belongs to its own database: it goes first, and the exchange never pairs it with another.
    let placed = move_log(database, aside).and_then(|()| {
        draft.place(database, how).or_else(|error| {
            move_log(aside, database)?;
            Err(error)
        })
    });
    if placed.is_err() && matches!(former, Former::Unreadable) {
        fs::remove_file(aside).map_err(|source| file("remove", aside, source))?;
    }
    placed?;
    sync_directory_of(database)
}

/// Moves a database's log and the log's index from one name to another, or neither.
fn move_log(from: &Path, to: &Path) -> Result<(), CopyError> {
    let rename = |from: PathBuf, to: PathBuf| match fs::rename(&from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("rename", &from, error)),
        _ => Ok(()),
    };
    let [log, index] = ["-wal", "-shm"].map(|suffix| move |path: &Path| schema::beside(path, suffix));
    rename(log(from), log(to))?;
    rename(index(from), index(to)).or_else(|error| {
        rename(log(to), log(from))?;
        Err(error)
    })
}

/// Moves the former database's log into it, so that the file alone is all of it, and reads where it stands.
fn settle(database: &Path) -> Result<Former, CopyError> {
    if fs::symlink_metadata(database).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(Former::None);
    }
    let settled = schema::connect(database).and_then(|connection| {
        let last = Standing::of(&connection)?;
        // Says that it is busy unless all of the log is moved and nobody reads it any more.
        connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::TRUNCATE)?;
        Ok(last)
    });
    let error = match settled {
        Ok(last) => return Ok(Former::Settled(last)),
        Err(error) => error,
    };
    if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) {
        return Err(CopyError::InUse { path: database.to_owned() });
    }
    match Trouble::of(&error) {
        None | Some(Trouble::Damaged | Trouble::Foreign) => {
            tracing::warn!(path = %database.display(), %error, "the former database cannot be read");
            Ok(Former::Unreadable)
        }
        // It may be sound: what was acknowledged may stand in its log alone.
        Some(_) => Err(CopyError::Unsettled { path: database.to_owned(), source: error }),
    }
}

/// Removes what restores that were killed have left. Whoever holds the lease knows that none is at work.
fn remove_stale_drafts(from: &Path, database: &Path) {
    let from = fs::canonicalize(from).ok();
    for draft in Draft::left_beside(database) {
        if fs::canonicalize(&draft).ok() == from {
            continue;
        }
        if let Err(error) = fs::remove_file(&draft) {
            tracing::warn!(path = %draft.display(), %error, "an unfinished copy stays behind");
        }
    }
}

fn renew(path: &Path, copy: Standing, behind: Standing, former: Option<Uuid>) -> rusqlite::Result<Standing> {
    let failed = |why: io::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(why));
    let mut connection = Connection::open(path)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let standing = incarnation::renew(&transaction, copy, behind, former)?;
    incarnation::settle_in(&transaction, &incarnation::identity(path).map_err(failed)?)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(failed)?;
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: Standing = Standing { database: Uuid::nil(), epoch: 1, seq: 1 };

    /// Checks that all is as it was after an exchange that cannot be: a file of it is missing, or there is one too many.
    #[track_caller]
    fn check_stays(former: &Former, there: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in there {
            fs::write(at(name), name).unwrap();
        }
        let draft = Draft::at(at("draft"));
        replace(draft, &at("pando.db"), &at("aside"), former).unwrap_err();
        let kept: Vec<_> = there.iter().filter(|name| **name != "draft").collect();
        for name in &kept {
            assert_eq!(fs::read_to_string(at(name)).ok().as_deref(), Some(**name));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), kept.len());
    }

    #[test]
    fn an_exchange_that_fails_leaves_the_database_its_log() {
        check_stays(&Former::None, &["draft", "pando.db", "pando.db-wal", "pando.db-shm"]);
        check_stays(&Former::Settled(STANDING), &["draft", "pando.db-wal", "pando.db-shm"]);
        check_stays(&Former::Unreadable, &["pando.db", "pando.db-wal", "pando.db-shm"]);
    }
}
