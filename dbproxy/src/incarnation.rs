//! Which file a database is: a copy of one is a database of its own, with an id, terms and event numbers of its own.
//!
//! Two files with one id would take each other's writes, and their events would share numbers. So the database knows by which file it lives,
//! and a primary that finds it in another one (copied back by hand, a project directory that was copied as a whole) renews it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pando_ipc::{Envelope, Timestamp, Topic, topic};
use rusqlite::{Connection, OptionalExtension, params};
#[cfg(target_os = "linux")]
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use serde_json::json;
use uuid::Uuid;

use crate::journal::{self, Journal};
use crate::schema;
use crate::writer::move_ops;

/// How far terms and event numbers jump where nobody can tell how far the former database was.
pub const UNKNOWN_JUMP: u64 = 1_000_000;

/// Reads by which file the database lives.
pub(crate) const KNOWN_FILE: &str = "SELECT value FROM _pando_meta WHERE key = 'file'";

/// Where a database stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Standing {
    /// The database's own id.
    pub database: Uuid,
    /// Its latest term.
    pub epoch: u64,
    /// Number of its last event.
    pub seq: u64,
}

impl Standing {
    /// Reads where a database stands.
    pub(crate) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let (seq, epoch) = journal::head(connection)?;
        Ok(Self { database: schema::database_id(connection)?, epoch, seq })
    }

    /// Returns a standing behind all that a database may have become after this copy of it was made.
    pub(crate) fn far_behind(self) -> Self {
        Self { epoch: self.epoch + UNKNOWN_JUMP, seq: self.seq + UNKNOWN_JUMP, ..self }
    }
}

/// A file, whatever its path: its device and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    /// Returns the file that is at a path now, if there is one.
    pub(crate) fn at(path: &Path) -> io::Result<Option<Self>> {
        match Self::of(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the number alone. Who asks for a file's times as well makes Linux (since 6.13) give its next write a time of its own, which the next
    /// fsync has to write, too: a commit is then two writes and a flush, and not one.
    #[cfg(target_os = "linux")]
    fn of(path: &Path) -> io::Result<Self> {
        let found = statx(CWD, path, AtFlags::empty(), StatxFlags::INO)?;
        Ok(Self(makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
    }

    #[cfg(not(target_os = "linux"))]
    fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|meta| Self(meta.dev(), meta.ino()))
    }
}

/// The files beside a database by which its connections know of each other's commits: the write-ahead log and its index.
#[derive(Debug)]
pub(crate) struct LogFiles {
    log: (PathBuf, Option<FileId>),
    index: (PathBuf, Option<FileId>),
}

impl LogFiles {
    /// Returns those that a connection to this database has just opened.
    pub(crate) fn beside(database: &Path) -> Self {
        let [log, index] = ["-wal", "-shm"].map(|suffix| {
            let path = schema::beside(database, suffix);
            let file = FileId::at(&path).ok().flatten();
            (path, file)
        });
        Self { log, index }
    }

    /// Tells whether the log is still where others look for it. Where the system does not say, it is.
    pub(crate) fn has_log(&self) -> bool {
        Self::is_in_place(&self.log)
    }

    /// Tells the same of the index, by which those who move the log keep out of each other's way.
    pub(crate) fn has_index(&self) -> bool {
        Self::is_in_place(&self.index)
    }

    /// Takes both out of the way of another database. A log of which somebody still reads keeps another name: its database needs it.
    pub(crate) fn put_aside(&self) -> io::Result<()> {
        let (log, index) = (&self.log.0, &self.index.0);
        if fs::metadata(log)?.len() == 0 {
            return fs::remove_file(log).and_then(|()| fs::remove_file(index));
        }
        let now = Timestamp::now().as_datetime().format(".parted-%Y%m%dT%H%M%S%.3fZ").to_string();
        let aside = schema::beside(log, &now);
        fs::rename(log, &aside)?;
        tracing::error!(log = %aside.display(), "somebody still reads the database that was moved away: put its log beside it, as NAME-wal");
        fs::rename(index, schema::beside(index, &now))
    }

    fn is_in_place((path, file): &(PathBuf, Option<FileId>)) -> bool {
        file.is_some() && FileId::at(path).map_or(true, |now| now == *file)
    }
}

/// Returns what tells a file from all others: its number, and when it was made, for numbers are used again.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    // Some file systems do not know when.
    let made = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{}-{}", meta.ino(), made.as_nanos()))
}

/// Notes by which file the database lives, in the open transaction. Returns whether it is another one than it knew.
pub(crate) fn settle_in(connection: &Connection, identity: &str) -> rusqlite::Result<bool> {
    let known = connection.prepare_cached(KNOWN_FILE)?.query_row([], |row| row.get::<_, String>(0)).optional()?;
    if known.as_deref() != Some(identity) {
        let sql = "INSERT INTO _pando_meta (key, value) VALUES ('file', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        connection.execute(sql, [identity])?;
    }
    Ok(known.is_some_and(|known| known != identity))
}

/// Makes a copy a database of its own, in the open transaction: a new id, terms and event numbers behind those of `copy` and `behind`, and a
/// journal that begins with `db.restored`. `former` is the database in whose place it stands, if that is known. Returns where it stands.
pub(crate) fn renew(
    connection: &Connection,
    copy: Standing,
    behind: Standing,
    former: Option<Uuid>,
) -> rusqlite::Result<Standing> {
    let database = Uuid::new_v4();
    let (epoch, last) = (behind.epoch.max(copy.epoch), behind.seq.max(copy.seq));
    let change = "UPDATE _pando_meta SET value = ?2 WHERE key = ?1";
    connection.execute(change, params!["database", database.to_string()])?;
    connection.execute(change, params!["epoch", epoch])?;
    let mut journal = Journal::load(connection, epoch)?;
    move_ops(connection, journal.head())?;
    journal.begin_anew(connection, last)?;
    let payload = json!({
        "database": database,
        "copy_of": copy.database,
        "former": former,
        "copy_seq": copy.seq,
    });
    journal.append(connection, Envelope::new("", Topic::known(topic::RESTORED), payload), &mut None)?;
    Ok(Standing { database, epoch, seq: journal.head() })
}
