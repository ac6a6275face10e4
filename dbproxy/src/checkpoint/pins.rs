//! Who keeps the write-ahead log from beginning anew, and for how long: one incident, one alarm, one end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pando_ipc::{Topic, topic};
use serde::Serialize;
use serde_json::json;

use crate::schema::beside;

/// Size of the log at which a reader that pins it becomes an alarm, in bytes.
pub const PINNED_BYTES: u64 = 64 << 20;
/// Locks on these bytes of the index are read marks; see SQLite's "WAL-mode file format", "WAL locks". Who holds the first of them reads
/// the database file alone, so nothing can be moved into it; the others read the log, so it cannot begin anew.
const READ_LOCKS: std::ops::RangeInclusive<u64> = 123..=127;

/// A process that reads the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReaderProcess {
    /// Its id.
    pub pid: u32,
    /// Its program, when the system tells.
    pub executable: Option<PathBuf>,
    /// The instance that it is, when it is the one that writes.
    pub instance_id: Option<String>,
}

/// The log cannot begin anew, because somebody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Bytes of the log.
    pub wal_bytes: u64,
    /// Who reads; empty when the system does not tell.
    pub readers: Vec<ReaderProcess>,
}

/// What to tell everyone.
#[derive(Debug)]
pub(super) enum News {
    Pinned(Pinned),
    Released { wal_bytes: u64, lasted_ms: u64 },
}

impl News {
    pub(super) fn topic(&self) -> Topic {
        Topic::known(match self {
            Self::Pinned(_) => topic::WAL_PINNED,
            Self::Released { .. } => topic::WAL_RELEASED,
        })
    }

    pub(super) fn payload(&self) -> serde_json::Value {
        match self {
            Self::Pinned(Pinned { wal_bytes, readers }) => json!({"wal_bytes": wal_bytes, "readers": readers}),
            Self::Released { wal_bytes, lasted_ms } => json!({"wal_bytes": wal_bytes, "lasted_ms": lasted_ms}),
        }
    }
}

/// From the first time that a reader was in the way until none is.
#[derive(Debug)]
pub(super) struct Incident {
    since: Instant,
    /// Seen at every look: who only passed by is struck.
    suspects: BTreeSet<u32>,
    /// Whether there was a look: whom the first one finds may be passing by.
    looked: bool,
    /// Largest size seen.
    wal_bytes: u64,
    alarmed: bool,
}

impl Incident {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), suspects: BTreeSet::new(), looked: false, wal_bytes: 0, alarmed: false }
    }

    /// Takes another look: `now` are those who read. Returns the alarm, once, and not before it can name who was there at two looks in a row.
    pub(super) fn look(&mut self, now: BTreeSet<u32>, instance: &str, wal_bytes: u64) -> Option<News> {
        let lasting: BTreeSet<u32> = self.suspects.intersection(&now).copied().collect();
        // Where nobody is to be seen, the system does not tell, and there is nobody to wait for.
        let is_known = std::mem::replace(&mut self.looked, true) && (!lasting.is_empty() || now.is_empty());
        self.suspects = if lasting.is_empty() { now } else { lasting };
        self.wal_bytes = self.wal_bytes.max(wal_bytes);
        if self.alarmed || !is_known || wal_bytes < PINNED_BYTES {
            return None;
        }
        self.alarmed = true;
        Some(News::Pinned(self.pinned(instance)))
    }

    /// Returns how things stand.
    pub(super) fn pinned(&self, instance: &str) -> Pinned {
        let reader = |pid: &u32| ReaderProcess {
            pid: *pid,
            executable: fs::read_link(format!("/proc/{pid}/exe")).ok(),
            instance_id: (*pid == std::process::id()).then(|| instance.to_owned()),
        };
        Pinned { wal_bytes: self.wal_bytes, readers: self.suspects.iter().map(reader).collect() }
    }

    /// Returns the end of an alarm, if there was one.
    pub(super) fn end(self) -> Option<News> {
        let lasted_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.alarmed.then_some(News::Released { wal_bytes: self.wal_bytes, lasted_ms })
    }
}

/// Returns the processes that read from the write-ahead log of a database; none where the system does not tell.
pub fn log_readers(database: &Path) -> BTreeSet<u32> {
    readers_of(&beside(database, "-shm"))
}

/// Returns the processes that read from the log with this index, as the kernel's table of locks says; none where there is no such table.
fn readers_of(index: &Path) -> BTreeSet<u32> {
    let Ok(inode) = fs::metadata(index).map(|meta| meta.ino()) else { return BTreeSet::new() };
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    table.lines().filter_map(|line| reader(line, inode)).collect()
}

/// Reads a line such as `4: POSIX  ADVISORY  READ 1234 fe:00:5678 124 124`. The device is left out: some file systems name another one there.
fn reader(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "POSIX" {
        return None;
    }
    let (pid, file, first, last) = (words.nth(2)?, words.next()?, words.next()?, words.next()?);
    let is_it = file.rsplit(':').next()?.parse() == Ok(inode);
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let reads = is_it && last <= *READ_LOCKS.end() && READ_LOCKS.contains(&first);
    pid.parse().ok().filter(|_| reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_those_who_lock_a_read_mark() {
        for (line, expected) in [
            ("4: POSIX  ADVISORY  READ 1234 fe:00:77 124 124", Some(1234)),
            ("5: POSIX  ADVISORY  READ 1234 00:2a:77 127 127", Some(1234)),
            ("6: POSIX  ADVISORY  READ 1234 fe:00:77 123 123", Some(1234)),
            ("7: POSIX  ADVISORY  READ 1234 fe:00:77 122 122", None),
            ("7: POSIX  ADVISORY  READ 1234 fe:00:77 128 128", None),
            ("8: POSIX  ADVISORY  READ 1234 fe:00:78 124 124", None),
            ("8: -> POSIX  ADVISORY  WRITE 99 fe:00:77 124 127", None),
            ("9: FLOCK  ADVISORY  WRITE 1234 fe:00:77 0 EOF", None),
            ("", None),
        ] {
            assert_eq!(reader(line, 77), expected, "{line}");
        }
    }

    #[test]
    fn only_who_was_there_at_two_looks_is_accused() {
        let accused = |looks: &[&[u32]]| {
            let mut incident = Incident::new();
            looks.iter().find_map(|readers| {
                match incident.look(readers.iter().copied().collect(), "inst-A", PINNED_BYTES)? {
                    News::Pinned(pinned) => Some(pinned.readers.iter().map(|it| it.pid).collect::<Vec<_>>()),
                    News::Released { .. } => None,
                }
            })
        };
        assert_eq!(accused(&[&[1, 2]]), None, "each may be on its way out");
        assert_eq!(accused(&[&[1, 2], &[2, 3]]), Some(vec![2]));
        assert_eq!(accused(&[&[1, 2], &[3], &[3, 4]]), Some(vec![3]), "the first ones only came by");
        assert_eq!(accused(&[&[]]), None);
        assert_eq!(accused(&[&[], &[]]), Some(vec![]), "the system does not tell");
    }
}
