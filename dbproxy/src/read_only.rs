//! Opening the database for reading, also where nothing can be written.

use std::fmt::Write;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Error, OpenFlags, ffi};
use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::schema;

/// A connection that cannot write.
#[derive(Debug)]
pub(crate) struct ReadOnly {
    pub(crate) connection: Connection,
    frozen: Option<Frozen>,
}

/// A file that is read as one that nobody changes, without locks and without a log.
#[derive(Debug)]
struct Frozen {
    path: PathBuf,
    state: State,
}

/// What changes when a file is written.
#[derive(Debug, PartialEq, Eq)]
struct State {
    file: (u64, u64),
    bytes: u64,
    written: (i64, i64),
}

impl ReadOnly {
    /// Opens the database at an absolute path.
    ///
    /// SQLite reads a database in WAL mode by its log, and makes one where there is none. On a file system that is read-only it cannot, and needs not:
    /// the file alone is all of it. Elsewhere that may not be written the same file may well be; [`Self::check`] tells.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if !is_alone_on_read_only(path) {
            return Ok(Self { connection: Connection::open_with_flags(path, flags)?, frozen: None });
        }
        let frozen = Frozen { path: path.to_owned(), state: State::of(path).map_err(|why| unreadable(&why))? };
        let connection = Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI)?;
        Ok(Self { connection, frozen: Some(frozen) })
    }

    /// Tells whether it is to be opened anew for each read, because it does not see what others write.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Checks that what was read since it was opened is one state of the database: where the file system is read-only here alone, somebody may have written.
    pub(crate) fn check(&self) -> rusqlite::Result<()> {
        let Some(Frozen { path, state }) = &self.frozen else { return Ok(()) };
        if State::of(path).map_err(|why| unreadable(&why))? == *state && !has_log(path) {
            return Ok(());
        }
        let why = "somebody began to write while it was read; read again".to_owned();
        Err(Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), Some(why)))
    }
}

impl State {
    fn of(path: &Path) -> io::Result<Self> {
        let of = |meta: Metadata| Self {
            file: (meta.dev(), meta.ino()),
            bytes: meta.len(),
            written: (meta.mtime(), meta.mtime_nsec()),
        };
        fs::metadata(path).map(of)
    }
}

/// Tells whether a database has no log, and cannot have one here.
fn is_alone_on_read_only(path: &Path) -> bool {
    !has_log(path) && statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn has_log(path: &Path) -> bool {
    fs::metadata(schema::beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

fn unreadable(why: &io::Error) -> Error {
    Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(why.to_string()))
}

/// Returns the name by which SQLite opens a file that nobody changes; what means something in a URI is escaped.
fn immutable_uri(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(*byte)),
            other => _ = write!(uri, "%{other:02X}"),
        }
    }
    uri + "?immutable=1"
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rusqlite::ErrorCode;

    use super::*;

    /// Opens a database as if its file system were read-only.
    fn freeze(path: &Path) -> ReadOnly {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(immutable_uri(path), flags).unwrap();
        let frozen = Frozen { path: path.to_owned(), state: State::of(path).unwrap() };
        ReadOnly { connection, frozen: Some(frozen) }
    }

    #[test]
    fn any_path_is_a_uri_and_a_write_meanwhile_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["plain", "a b", "a%20b", "a?b#c", "ü"].map(OsStr::new).into_iter().chain([OsStr::from_bytes(b"\xff")])
        {
            let path = dir.path().join(name);
            let writer = Connection::open(&path).unwrap();
            writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (7);").unwrap();
            drop(writer);
            let frozen = freeze(&path);
            let read = frozen.connection.query_row("SELECT a FROM t", [], |row| row.get(0));
            assert_eq!((read, frozen.check()), (Ok(7), Ok(())), "{name:?}");
            let writer = Connection::open(&path).unwrap();
            writer.execute_batch("INSERT INTO t VALUES (8)").unwrap();
            let busy = |frozen: &ReadOnly| frozen.check().unwrap_err().sqlite_error_code();
            assert_eq!(busy(&frozen), Some(ErrorCode::DatabaseBusy), "it has a log");
            drop(writer);
            assert_eq!(busy(&frozen), Some(ErrorCode::DatabaseBusy), "the log was moved to it");
        }
    }
}
