//! Why a database cannot be opened.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::trouble::Trouble;

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot use database {path}: {source}")]
    File {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link, a directory, ..: an alias of a database would get a WAL of its own.
    #[error("database {path} is not a regular file; remove it or put the file itself there")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A second name leads to the same file: it would get a WAL of its own.
    #[error("database {path} has {links} hard links; two names of one database corrupt it: keep one")]
    HardLinked {
        /// The database file.
        path: PathBuf,
        /// How many names it has.
        links: u64,
    },
    /// The file system cannot be trusted with locks.
    #[error("database {path} lies on a file system ({file_system}) where two primaries could lead at once: {why}")]
    UnsafeFileSystem {
        /// The database file.
        path: PathBuf,
        /// What kind it is.
        file_system: String,
        /// Why it is not safe.
        why: &'static str,
    },
    /// The file system cannot do WAL.
    #[error("database {path} stays in journal mode {mode:?}: its file system cannot hold a WAL (no shared memory?)")]
    NoWal {
        /// The database file.
        path: PathBuf,
        /// The journal mode it is in.
        mode: String,
    },
    /// A newer binary has migrated the database.
    #[error(
        "database {path} has schema version {found}, made by pando {made_by}; this is pando {own} and knows up to {known}: upgrade it"
    )]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// Its schema's version.
        found: u32,
        /// The release that migrated it.
        made_by: String,
        /// The newest version this binary knows.
        known: u32,
        /// This binary's release.
        own: &'static str,
    },
    /// The primary's binary is older than this one, and has not brought the database as far as this one needs it.
    #[error(
        "database {path} has schema version {found}, made by pando {made_by}; this is pando {own} and needs {needed}: its primary is older"
    )]
    OlderSchema {
        /// The database file.
        path: PathBuf,
        /// Its schema's version.
        found: u32,
        /// The release that migrated it.
        made_by: String,
        /// The version this binary needs.
        needed: u32,
        /// This binary's release.
        own: &'static str,
    },
    /// A migration that was applied is not the one this binary has under that number.
    #[error("migration {id} ({name}) of database {path} is not the one this binary knows: another product's database?")]
    MigrationDiffers {
        /// The database file.
        path: PathBuf,
        /// The migration's number.
        id: u32,
        /// Its name in the database.
        name: String,
    },
    /// A migration failed; it was rolled back.
    #[error("migration {id} ({name}) of database {path} failed: {source}")]
    MigrationFailed {
        /// The database file.
        path: PathBuf,
        /// The migration's number.
        id: u32,
        /// Its name.
        name: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The workdir's settings cannot be read.
    #[error("cannot read the settings {path}: {why}")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// SQLite refused.
    #[error("cannot open database {path}: {source}")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the {name} thread: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Returns what the disk did, when it did.
    pub fn trouble(&self) -> Option<Trouble> {
        self.sqlite().and_then(Trouble::of)
    }

    /// Tells whether another program is in the middle of a write: the database itself is well.
    pub fn is_busy(&self) -> bool {
        let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
        self.sqlite().and_then(rusqlite::Error::sqlite_error_code).is_some_and(|code| busy.contains(&code))
    }

    fn sqlite(&self) -> Option<&rusqlite::Error> {
        match self {
            Self::Sqlite { source, .. } | Self::MigrationFailed { source, .. } => Some(source),
            _ => None,
        }
    }
}
