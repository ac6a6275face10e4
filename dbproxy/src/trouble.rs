//! What a disk can do to a database, and what to do about it.

use rusqlite::{Error, ErrorCode, ffi};

/// Why SQLite could not use its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no room.
    Full,
    /// The file system, or the file, is read-only.
    ReadOnly,
    /// Reading or writing failed.
    Io,
    /// The file holds what cannot be.
    Damaged,
    /// The file is no database.
    Foreign,
    /// The file, or one beside it, cannot be opened.
    Unopenable,
    /// There is no memory.
    Memory,
}

impl Trouble {
    /// Tells whether an error is trouble with the file, and which.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        Some(match error.sqlite_error_code()? {
            ErrorCode::DiskFull => Self::Full,
            ErrorCode::ReadOnly => Self::ReadOnly,
            ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed | ErrorCode::NoLargeFileSupport => {
                Self::Io
            }
            ErrorCode::DatabaseCorrupt => Self::Damaged,
            ErrorCode::NotADatabase => Self::Foreign,
            ErrorCode::CannotOpen => Self::Unopenable,
            ErrorCode::OutOfMemory => Self::Memory,
            _ => return None,
        })
    }

    /// Returns its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Io => "io",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Unopenable => "unopenable",
            Self::Memory => "memory",
        }
    }

    /// Returns what to do about it.
    pub fn next_step(self) -> &'static str {
        match self {
            Self::Full => "make room, see 'df -h'; writing goes on by itself",
            Self::ReadOnly => "make the file system writable, see 'mount'; writing goes on by itself",
            Self::Io => "see what the system says of the disk, 'dmesg'; writing goes on by itself when it works again",
            Self::Damaged => "see how bad it is, 'pando db check'; 'pando db restore FILE' puts a copy in its place",
            Self::Foreign => "if it is no database of Pando's, move it away; Pando then makes a new one",
            Self::Unopenable => "check who owns the database and the files beside it, 'ls -l .pando'",
            Self::Memory => "free some memory",
        }
    }
}

/// Tells whether a COMMIT that failed with this error may have reached the disk all the same, to come to light when the log is read after a crash.
///
/// A write that failed or had no room leaves no valid end of the transaction; what fails behind the last write may.
pub(crate) fn may_have_committed(error: &Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    Trouble::of(error) == Some(Trouble::Io) && extended != Some(ffi::SQLITE_IOERR_WRITE)
}
