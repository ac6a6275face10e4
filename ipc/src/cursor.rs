//! Named places in the stream of events, one small file each: how far a consumer got, across its restarts and ours.
//!
//! They are files and not rows because consumers read the journal without any primary, and only a primary writes the
//! database. A cursor names the database that its number belongs to, so that one of another database is recognised.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::envelope::Timestamp;
use crate::topic::Pattern;
use crate::workdir::{Workdir, WorkdirError, private_dir};

/// Longest name of a cursor, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Extension of a cursor's file.
const EXTENSION: &str = "json";

/// A place in the journal of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The database's own id.
    pub database: Uuid,
    /// Everything up to this event was taken.
    pub seq: u64,
}

/// How far a consumer got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Its name: 1 to [`MAX_NAME_BYTES`] letters, digits, `.`, `_` and `-`, not beginning with a dot.
    pub name: String,
    /// How far it got.
    #[serde(flatten)]
    pub bookmark: Bookmark,
    /// What it follows; everything when empty. Unread events are counted by it.
    #[serde(default)]
    pub topics: Vec<Pattern>,
    /// When it was moved last.
    pub at: Timestamp,
}

/// Why a cursor cannot be read or moved.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The name is none.
    #[error(
        "{0:?} is no name of a cursor; write up to {MAX_NAME_BYTES} letters, digits, '.', '_' and '-', a dot not first"
    )]
    Name(String),
    /// The directory of the cursors cannot be used.
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no cursor. It is left as it is: taking it for empty would lose the place for good.
    #[error("{path} holds no cursor ({why}); remove it to begin anew")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: serde_json::Error,
    },
}

/// The cursors of a workdir: `.pando/cursors/<name>.json`.
#[derive(Debug, Clone)]
pub struct Cursors(PathBuf);

impl Cursors {
    /// Returns the cursors of a workdir. Creates nothing.
    pub fn of(workdir: &Workdir) -> Self {
        Self(workdir.pando_dir().join("cursors"))
    }

    /// Returns a cursor, or `None` when there is none of that name.
    pub fn read(&self, name: &str) -> Result<Option<Cursor>, CursorError> {
        let path = self.path(name)?;
        match fs::read(&path) {
            Ok(bytes) => {
                let cursor = serde_json::from_slice(&bytes).map_err(|why| CursorError::Malformed { path, why })?;
                Ok(Some(cursor))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CursorError::Io { path, source }),
        }
    }

    /// Moves a cursor, or makes it; returns where it is then. Within one database it never moves back: of two consumers that
    /// share it, the one that is ahead counts.
    pub fn advance(&self, cursor: Cursor) -> Result<Cursor, CursorError> {
        let path = self.path(&cursor.name)?;
        private_dir(self.0.parent().unwrap_or(&self.0))?;
        private_dir(&self.0)?;
        let io = |source| CursorError::Io { path: path.clone(), source };
        // Two processes may move one cursor; the lock is on the directory, which is never replaced.
        let lock = File::open(&self.0).map_err(io)?;
        lock.lock().map_err(io)?;
        let ahead = self.read(&cursor.name)?.filter(|kept| {
            kept.bookmark.database == cursor.bookmark.database && kept.bookmark.seq > cursor.bookmark.seq
        });
        if let Some(kept) = ahead {
            return Ok(kept);
        }
        let fresh = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            let mut text = serde_json::to_vec_pretty(&cursor)?;
            text.push(b'\n');
            file.write_all(&text)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(io)?;
        Ok(cursor)
    }

    /// Removes a cursor; tells whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, CursorError> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(CursorError::Io { path, source }),
        }
    }

    /// Returns all cursors, by name.
    pub fn list(&self) -> Result<Vec<Cursor>, CursorError> {
        let io = |source| CursorError::Io { path: self.0.clone(), source };
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(io(source)),
        };
        let mut cursors = Vec::new();
        for entry in entries {
            let path = entry.map_err(io)?.path();
            let is_cursor = path.extension().is_some_and(|extension| extension == EXTENSION);
            if let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_cursor) {
                cursors.extend(self.read(name)?);
            }
        }
        cursors.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(cursors)
    }

    fn path(&self, name: &str) -> Result<PathBuf, CursorError> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('.') || !name.chars().all(is_good) {
            return Err(CursorError::Name(name.to_owned()));
        }
        Ok(self.0.join(format!("{name}.{EXTENSION}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursors() -> (tempfile::TempDir, Cursors) {
        let dir = tempfile::tempdir().unwrap();
        let cursors = Cursors::of(&Workdir::open(dir.path()).unwrap());
        (dir, cursors)
    }

    fn cursor(name: &str, database: u128, seq: u64) -> Cursor {
        let bookmark = Bookmark { database: Uuid::from_u128(database), seq };
        Cursor { name: name.into(), bookmark, topics: vec![Pattern::new("a.*").unwrap()], at: Timestamp::now() }
    }

    #[test]
    fn a_cursor_is_there_again_and_moves_forward_alone() {
        let (_dir, cursors) = cursors();
        assert_eq!(cursors.read("mine").unwrap(), None);
        assert!(cursors.list().unwrap().is_empty());
        let first = cursors.advance(cursor("mine", 1, 7)).unwrap();
        assert_eq!(cursors.read("mine").unwrap(), Some(first));
        assert_eq!(cursors.advance(cursor("mine", 1, 5)).unwrap().bookmark.seq, 7);
        assert_eq!(cursors.advance(cursor("mine", 1, 9)).unwrap().bookmark.seq, 9);
        assert_eq!(cursors.advance(cursor("mine", 2, 1)).unwrap().bookmark.seq, 1, "another database counts anew");
        cursors.advance(cursor("a", 1, 1)).unwrap();
        let names: Vec<_> = cursors.list().unwrap().into_iter().map(|cursor| cursor.name).collect();
        assert_eq!(names, ["a", "mine"]);
        assert!(cursors.remove("a").unwrap() && !cursors.remove("a").unwrap());
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let (_dir, cursors) = cursors();
        for bad in ["", "../x", "a/b", ".hidden", "a b", "é", &"x".repeat(65)] {
            assert!(matches!(cursors.read(bad), Err(CursorError::Name(_))), "{bad:?}");
        }
        assert!(cursors.read("build.bot_1-x").is_ok());
    }

    #[test]
    fn a_broken_file_is_an_error_and_stays_as_it_is() {
        let (_dir, cursors) = cursors();
        cursors.advance(cursor("mine", 1, 7)).unwrap();
        let path = cursors.path("mine").unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(cursors.read("mine"), Err(CursorError::Malformed { .. })));
        assert!(cursors.advance(cursor("mine", 1, 9)).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }
}
