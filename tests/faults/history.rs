//! What happened in a trial, as files of JSON lines in one directory: the checker needs nothing else.
//!
//! | file | by whom | what |
//! |---|---|---|
//! | `<name>.instance.jsonl` | an instance | its calls, its roles, the events that a subscriber in it saw |
//! | `<name>.tail.jsonl` | `pando ipc tail --json` | the events that an observer saw |
//! | `deeds.jsonl` | the harness | what it started, killed, stopped and broke, and what it measured |
//! | `<n>.database.jsonl` | the harness | a database at the end |

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::{Event, Record};

/// Something that the harness did or saw, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dated {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) at: u64,
    pub(crate) deed: Deed,
}

/// What the harness did or saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    /// An instance was started.
    Start { who: String, pid: u32, args: Vec<String> },
    /// It is about to be killed.
    Kill { who: String },
    /// It is about to be asked to leave, by SIGTERM.
    Term { who: String },
    /// It is about to be stopped.
    Stop { who: String },
    /// It goes on.
    Continue { who: String },
    /// It has ended.
    End { who: String, status: String },
    /// It said in its log that something went wrong.
    Said { who: String, error: String },
    /// Something was broken.
    Fault { name: String, detail: String },
    /// What an instance uses.
    Usage { who: String, resident_kib: u64, descriptors: u64 },
    /// Bytes of the write-ahead log.
    Wal { bytes: u64 },
    /// Something that should have gone with the last instance.
    Left { what: String },
}

impl Deed {
    /// Returns who was asked to leave.
    pub(crate) fn asked_to_leave(&self) -> Option<&str> {
        if let Self::Term { who } = self { Some(who) } else { None }
    }
}

/// A database at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Database {
    pub(crate) id: String,
    pub(crate) epoch: u64,
    /// What `PRAGMA integrity_check` says.
    pub(crate) integrity: String,
    /// The rows of the trial's table: rowid and op.
    pub(crate) rows: Vec<(u64, String)>,
    /// The journal, in order of `seq`.
    pub(crate) events: Vec<Journaled>,
}

impl Database {
    /// Reads what is in a database file.
    pub(crate) fn read(path: &Path) -> Self {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        let event = |row: &Row<'_>| {
            let envelope: Value = serde_json::from_str(&row.get::<_, String>(4)?).unwrap();
            let (seq, epoch, topic) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?);
            let (seq, epoch) = (u64::try_from(seq).unwrap(), u64::try_from(epoch).unwrap());
            let event = Event { seq, epoch, topic, mark: Event::mark(&envelope["payload"]) };
            Ok(Journaled { prev: u64::try_from(row.get::<_, i64>(3)?).unwrap(), event })
        };
        let mut events =
            connection.prepare("SELECT seq, epoch, topic, prev, envelope FROM _pando_event ORDER BY seq").unwrap();
        let row = |row: &Row<'_>| Ok((u64::try_from(row.get::<_, i64>(0)?).unwrap(), row.get(1)?));
        // A database that was moved away at once has no table yet.
        let rows = match connection.prepare("SELECT rowid, op FROM trial ORDER BY rowid") {
            Ok(mut rows) => rows.query_map([], row).unwrap().map(Result::unwrap).collect(),
            Err(_) => Vec::new(),
        };
        Self {
            id: one("SELECT value FROM _pando_meta WHERE key = 'database'"),
            epoch: one("SELECT CAST(value AS TEXT) FROM _pando_meta WHERE key = 'epoch'").parse().unwrap(),
            integrity: one("PRAGMA integrity_check"),
            events: events.query_map([], event).unwrap().map(Result::unwrap).collect(),
            rows,
        }
    }
}

/// An event of the journal, with the `seq` of the one before it on its topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Journaled {
    pub(crate) prev: u64,
    #[serde(flatten)]
    pub(crate) event: Event,
}

/// What an observer printed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Printed {
    #[serde(default)]
    pub(crate) seq: Option<u64>,
    #[serde(default)]
    pub(crate) epoch: u64,
    #[serde(default)]
    pub(crate) topic: String,
    #[serde(default)]
    pub(crate) payload: Value,
    #[serde(default)]
    pub(crate) resync: Option<Value>,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) instances: BTreeMap<String, Vec<Record>>,
    pub(crate) tails: BTreeMap<String, Vec<Printed>>,
    pub(crate) deeds: Vec<Dated>,
    pub(crate) databases: Vec<Database>,
}

impl History {
    /// Reads the files of a directory.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut history = Self::default();
        for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if let Some(name) = file.strip_suffix(".instance.jsonl") {
                history.instances.insert(name.to_owned(), lines(&path));
            } else if let Some(name) = file.strip_suffix(".tail.jsonl") {
                history.tails.insert(name.to_owned(), lines(&path));
            } else if file == "deeds.jsonl" {
                history.deeds = lines(&path);
            } else if file.ends_with(".database.jsonl") {
                history.databases.extend(lines(&path));
            }
        }
        history
    }
}

/// Reads JSON lines; a last line without its end is what a killed process was about to say.
fn lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let read = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{}:{}: {error}: {line}", path.display(), number + 1))
    };
    whole.lines().enumerate().map(read).collect()
}
