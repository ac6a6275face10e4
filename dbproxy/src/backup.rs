//! Copies of the database: consistent under load, verified, and there only when they are complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode};
use rustix::fs::{CWD, RenameFlags, link, renameat_with, unlink};
use rustix::io::Errno;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::{self, Depth};
use crate::incarnation::Standing;
use crate::read_only::ReadOnly;
use crate::schema::{self, StoreError};
use crate::trouble::Trouble;

/// Instructions of SQLite's machine between two looks at how far a copy is.
const TICK: i32 = 100_000;
/// Follows the name of a copy until it is complete; what makes it unique comes behind.
const PARTIAL: &str = ".partial-";

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Pages are being copied.
    Copying {
        /// Bytes written so far.
        bytes: u64,
        /// Bytes of the original: at most so many will be written.
        of: u64,
    },
    /// The copy is complete and read through.
    Verifying,
}

/// Told how a copy goes on, from the thread that makes it.
pub type OnStep = Arc<dyn Fn(Step) + Send + Sync>;

/// A finished copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The copy.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// What it holds.
    #[serde(flatten)]
    pub standing: Standing,
}

/// Why a database cannot be copied or replaced.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file is where the copy should go.
    #[error("{path} exists")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The copy would replace the original.
    #[error("{path} is the database itself")]
    Itself {
        /// The file.
        path: PathBuf,
    },
    /// The copy would lie among Pando's own files.
    #[error("{path} lies in {dir}, which is for Pando's own files")]
    Inside {
        /// Where the copy should go.
        path: PathBuf,
        /// The directory of the database.
        dir: PathBuf,
    },
    /// The copy would replace something else than a file.
    #[error("{path} is {what}, not a file")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody still reads or writes the database that is to be replaced. Nothing was changed.
    #[error("somebody still reads {path}, so its log cannot be moved into it")]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The disk keeps the log of the database that is to be replaced from being moved into it. Nothing was changed.
    #[error("cannot move the log of {path} into it: {source}")]
    Unsettled {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system refused.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite failed.
    #[error("cannot {what} {path}: {source}")]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {}", .problems.first().map_or("", String::as_str))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problems: Vec<String>,
    },
    /// The file is a database of somebody else.
    #[error("{path} is no database of Pando's: {why}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// This binary does not know the schema.
    #[error(transparent)]
    Schema(StoreError),
    /// It was cancelled; nothing is left of it.
    #[error("cancelled")]
    Cancelled,
}

impl CopyError {
    /// Returns what the disk has to do with it.
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Sqlite { source, .. } | Self::Unsettled { source, .. } => Trouble::of(source),
            _ => None,
        }
    }
}

/// Copies the database at `database` to `to`, as it is at one moment, while others write. Blocks.
///
/// The copy is one file of mode 0600 without free pages. It gets its name once it is verified and on disk; a file that is there
/// stays as it was unless `overwrite` is set. Nothing but a file is replaced, and nothing in the directory of the database, which is
/// Pando's own. The copy is a long read: the write-ahead log grows meanwhile.
pub fn back_up(
    database: &Path,
    to: &Path,
    overwrite: bool,
    stop: &CancellationToken,
    on_step: &OnStep,
) -> Result<Copied, CopyError> {
    let to = std::path::absolute(to).map_err(|source| file("use", to, source))?;
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    if identity(&to).is_some_and(|id| Some(id) == identity(database)) {
        return Err(CopyError::Itself { path: to });
    }
    check_target(database, &to)?;
    if !overwrite && fs::symlink_metadata(&to).is_ok() {
        return Err(CopyError::Exists { path: to });
    }
    let draft = Draft::copy(database, &to, stop, on_step)?;
    on_step(Step::Verifying);
    let standing = verify(&draft.path, stop)?;
    draft.place(&to, if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE })?;
    sync_directory_of(&to)?;
    let bytes = fs::metadata(&to).map_err(|source| file("look at", &to, source))?.len();
    Ok(Copied { path: to, bytes, standing })
}

/// Checks that a copy may go there.
fn check_target(database: &Path, to: &Path) -> Result<(), CopyError> {
    let directory = |path: &Path| path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    if let (Some(own), Some(dir)) = (directory(database), directory(to))
        && dir.starts_with(&own)
    {
        return Err(CopyError::Inside { path: to.to_owned(), dir: own });
    }
    // What is wrong with a path that leads nowhere is said by whoever makes the copy.
    let Ok(kind) = fs::symlink_metadata(to).map(|meta| meta.file_type()) else { return Ok(()) };
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_block_device() || kind.is_char_device() => "a device",
        _ if kind.is_fifo() => "a pipe",
        _ => "a socket",
    };
    Err(CopyError::NotAFile { path: to.to_owned(), what })
}

/// Checks that a file is a sound database of Pando's that this binary understands.
pub(crate) fn verify(path: &Path, stop: &CancellationToken) -> Result<Standing, CopyError> {
    let mut file = open(path)?;
    let connection = &mut file.connection;
    let stopped = stop.clone();
    let watched = connection.progress_handler(TICK, Some(move || stopped.is_cancelled()));
    let health = watched.and_then(|()| catalog::check(connection, Depth::Full));
    let health = health.map_err(|source| cut_off("check", path, source))?;
    // What is left takes no time.
    connection.progress_handler(0, None::<fn() -> bool>).map_err(|source| sqlite("check", path, source))?;
    if !health.ok {
        return Err(CopyError::Damaged { path: path.to_owned(), problems: health.problems });
    }
    let standing = Standing::of(connection)
        .map_err(|error| CopyError::Foreign { path: path.to_owned(), why: crate::refusal::message_of(&error) })?;
    schema::check_known(connection, path).map_err(CopyError::Schema)?;
    file.check().map_err(|source| sqlite("check", path, source))?;
    Ok(standing)
}

/// Opens a database for reading, without the guard: `VACUUM INTO` counts as ATTACH.
fn open(path: &Path) -> Result<ReadOnly, CopyError> {
    // Absolute: a relative path may begin with `file:`, which SQLite reads as a URI.
    let absolute = std::path::absolute(path).map_err(|source| file("use", path, source))?;
    ReadOnly::open(&absolute).map_err(|source| sqlite("open", path, source))
}

/// A copy without its name yet; it is removed unless it gets one.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) path: PathBuf,
    kept: bool,
}

impl Draft {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, kept: false }
    }

    /// Copies a database into a new file in the directory of `place`, and brings it to the disk.
    pub(crate) fn copy(
        from: &Path,
        place: &Path,
        stop: &CancellationToken,
        on_step: &OnStep,
    ) -> Result<Self, CopyError> {
        let mut original = open(from)?;
        let source = &mut original.connection;
        let path = schema::beside(place, &format!("{PARTIAL}{}", Uuid::new_v4().simple()));
        // Made by us for its mode; SQLite takes an empty file as it is.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let made = made.map_err(|source| file("make", &path, source))?;
        let draft = Self::at(path);
        let of = bytes_of(source).map_err(|error| sqlite("read", from, error))?;
        let (told, stopped, seen) = (Arc::clone(on_step), stop.clone(), draft.path.clone());
        let look = move || {
            told(Step::Copying { bytes: fs::metadata(&seen).map_or(0, |meta| meta.len()), of });
            stopped.is_cancelled()
        };
        let copied = source.progress_handler(TICK, Some(look)).and_then(|()| {
            let into = ToSqlOutput::Borrowed(ValueRef::Text(draft.path.as_os_str().as_bytes()));
            source.execute("VACUUM INTO ?1", [into])
        });
        copied.and_then(|_| original.check()).map_err(|error| cut_off("copy", from, error))?;
        // SQLite does not sync what it vacuums into.
        made.sync_all().map_err(|source| file("write", &draft.path, source))?;
        Ok(draft)
    }

    /// Returns the unfinished copies of a database of this name, with what SQLite left beside them.
    pub(crate) fn left_beside(place: &Path) -> Vec<PathBuf> {
        let (Some(dir), Some(name)) = (place.parent(), place.file_name()) else { return vec![] };
        let start = [name.as_bytes(), PARTIAL.as_bytes()].concat();
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().as_bytes().starts_with(&start)).map(|entry| entry.path()).collect()
    }

    /// Gives the copy a name that nothing has, and that is not its last one.
    pub(crate) fn rename(&mut self, to: &Path) -> Result<(), CopyError> {
        rename(&self.path, to, RenameFlags::NOREPLACE)?;
        to.clone_into(&mut self.path);
        Ok(())
    }

    /// Gives the copy its place, in one step.
    pub(crate) fn place(mut self, to: &Path, how: RenameFlags) -> Result<(), CopyError> {
        rename(&self.path, to, how)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in [schema::beside(&self.path, "-journal"), self.path.clone()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an unfinished copy stays behind");
                }
                _ => {}
            }
        }
    }
}

fn rename(from: &Path, to: &Path, how: RenameFlags) -> Result<(), CopyError> {
    let renamed = renameat_with(CWD, from, CWD, to, how);
    let renamed = if how == RenameFlags::NOREPLACE { or_link(renamed, from, to) } else { renamed };
    renamed.map_err(|error| match error {
        Errno::EXIST => CopyError::Exists { path: to.to_owned() },
        error => file("rename a copy to", to, error.into()),
    })
}

/// Links and unlinks where a file system (NFS is one) cannot rename without replacing: that never replaces either.
fn or_link(renamed: rustix::io::Result<()>, from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renamed {
        Err(Errno::INVAL | Errno::NOSYS) => link(from, to).and_then(|()| unlink(from)),
        renamed => renamed,
    }
}

fn bytes_of(connection: &Connection) -> rusqlite::Result<u64> {
    let one = |pragma| connection.query_row(pragma, [], |row| row.get::<_, u64>(0));
    Ok(one("PRAGMA page_count")? * one("PRAGMA page_size")?)
}

pub(crate) fn sync_directory_of(path: &Path) -> Result<(), CopyError> {
    let dir = path.parent().unwrap_or(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| file("sync", dir, source))
}

pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> CopyError {
    CopyError::File { what, path: path.to_owned(), source }
}

/// Returns what an error means to a copy that may have been cancelled.
fn cut_off(what: &'static str, path: &Path, source: rusqlite::Error) -> CopyError {
    match source.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => CopyError::Cancelled,
        _ => sqlite(what, path, source),
    }
}

pub(crate) fn sqlite(what: &'static str, path: &Path, source: rusqlite::Error) -> CopyError {
    CopyError::Sqlite { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_gets_its_name_without_replacing_where_the_file_system_cannot_rename_so() {
        let dir = tempfile::tempdir().unwrap();
        let [copy, taken, free] = ["copy", "taken", "free"].map(|name| dir.path().join(name));
        fs::write(&copy, "copy").unwrap();
        fs::write(&taken, "precious").unwrap();
        for answer in [Errno::INVAL, Errno::NOSYS] {
            assert_eq!(or_link(Err(answer), &copy, &taken), Err(Errno::EXIST));
            assert_eq!(fs::read(&taken).unwrap(), b"precious");
            or_link(Err(answer), &copy, &free).unwrap();
            assert!(!copy.exists());
            fs::rename(&free, &copy).unwrap();
        }
        assert_eq!(or_link(Err(Errno::ACCESS), &copy, &free), Err(Errno::ACCESS));
    }

    #[test]
    fn an_unfinished_copy_goes_with_its_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        for path in [&path, &schema::beside(&path, "-journal")] {
            fs::write(path, "").unwrap();
        }
        drop(Draft::at(path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
