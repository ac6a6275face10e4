//! Which tables have an event for each row that changes, and what it carries: as an application wishes.

use pando_ipc::Fault;
use pando_ipc::fault::Code;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::db::Db;
use crate::deliver::WriteError;
use crate::guard::{RESERVED, begins};
use crate::named::Named;
use crate::refusal::{Word, invalid, refuse};
use crate::tx::Tx;

/// The write's name.
pub const TRACK: &str = "Track";
/// Most columns that the events of a table carry, and most that are its key: both, and a key that was, are arguments of one function. More are refused as
/// invalid.
pub const MAX_TRACKED_COLUMNS: usize = 30;

/// Tables whose rows are tracked without anybody's wish: those of the agent store.
pub(crate) const AGENT_STORE: &[&str] =
    &["sessions", "messages", "files", "projects", "prompt_templates", "session_scores", "skills"];

/// The triggers of the agent store. None of them starts itself again.
pub(crate) const AGENT_STORE_TRIGGERS: &str =
    "'messages_count_up', 'messages_count_down', 'messages_count_moved', 'sessions_touch', 'messages_touch',
    'files_touch', 'projects_touch', 'prompt_templates_touch', 'skills_touch'";

/// Asks for an event for each row of a table that changes, and says what it carries besides the row's key: the primary key or the rowid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// The table.
    pub table: String,
    /// Columns that stand for the row in place of its primary key; none for that.
    #[serde(default)]
    pub key: Vec<String>,
    /// Columns whose values the events carry: the new ones, and the last ones of a deleted row; none for the old key of a row whose key changed. Such a column cannot be dropped; one that is renamed is no
    /// longer carried.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Whether there are such events at all.
    #[serde(default = "yes")]
    pub rows: bool,
}

fn yes() -> bool {
    true
}

impl Tracked {
    /// Asks for events that carry nothing but the row's key.
    pub fn table(table: impl Into<String>) -> Self {
        Self { table: table.into(), key: Vec::new(), columns: Vec::new(), rows: true }
    }

    /// Asks for no events of rows: only the summary of each write names the table.
    pub fn none(table: impl Into<String>) -> Self {
        Self { rows: false, ..Self::table(table) }
    }

    /// Names the row by these columns.
    #[must_use]
    pub fn key<S: Into<String>>(mut self, key: impl IntoIterator<Item = S>) -> Self {
        self.key = key.into_iter().map(Into::into).collect();
        self
    }

    /// Carries the values of these columns.
    #[must_use]
    pub fn columns<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.columns = columns.into_iter().map(Into::into).collect();
        self
    }

    fn check(&self, method: &str) -> Result<(), Fault> {
        for (field, list) in [("params.key", &self.key), ("params.columns", &self.columns)] {
            if list.len() > MAX_TRACKED_COLUMNS {
                let what = format!("has {} columns, not {MAX_TRACKED_COLUMNS} at most", list.len());
                return Err(invalid(method, field, what));
            }
        }
        Ok(())
    }

    /// Reads the wish for a table, or the usual one.
    pub(crate) fn of(connection: &Connection, table: &str) -> rusqlite::Result<Self> {
        let sql = "SELECT value FROM main._pando_meta WHERE key = 'track.' || ?1";
        let text: Option<String> = connection.prepare_cached(sql)?.query_row([table], |row| row.get(0)).optional()?;
        let usual = || if AGENT_STORE.contains(&table) { Self::table(table) } else { Self::none(table) };
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(usual))
    }
}

impl Db {
    /// Asks for events of each row of a table that changes, from now on and for every instance; stated again, it is replaced.
    pub async fn track(&self, tracked: &Tracked) -> Result<(), WriteError> {
        self.named(TRACK, &json!(tracked)).await.map(drop)
    }
}

/// The named write.
pub(crate) struct SetTracked;

fn read(method: &str, params: &Value) -> Result<Tracked, Fault> {
    serde_json::from_value(params.clone()).map_err(|why| invalid(method, "params", why))
}

impl Named for SetTracked {
    fn read(&self, params: &Value) -> Result<Value, Fault> {
        let tracked = read(TRACK, params)?;
        tracked.check(TRACK)?;
        Ok(json!(tracked))
    }

    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault> {
        set_tracked(tx, &read(TRACK, params)?)?;
        Ok(Value::Null)
    }
}

/// Notes a wish and makes the triggers for it, in the open transaction.
pub(crate) fn set_tracked(tx: &Tx<'_>, tracked: &Tracked) -> Result<(), Fault> {
    let method = tx.method();
    tracked.check(method)?;
    let missing = |what: String| refuse(Code::NotFound, Word::InvalidParams, method, what);
    let table = tx.own(|connection| {
        let sql =
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name = ?1 COLLATE NOCASE";
        connection.query_row(sql, [&tracked.table], |row| row.get::<_, String>(0)).optional()
    })?;
    let table = table
        .filter(|table| !begins(table, RESERVED))
        .ok_or_else(|| missing(format!("no table {:?}", tracked.table)))?;
    for column in tracked.key.iter().chain(&tracked.columns) {
        let known = tx.own(|connection| {
            let sql = "SELECT count(*) FROM pragma_table_xinfo(?1) WHERE name = ?2 COLLATE NOCASE";
            connection.query_row(sql, [&table, column], |row| row.get::<_, u32>(0))
        })?;
        if known == 0 {
            return Err(missing(format!("table {table} has no column {column:?}")));
        }
    }
    tx.own(|connection| {
        let sql = "INSERT INTO main._pando_meta (key, value) VALUES ('track.' || ?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        connection.execute(sql, [&table, &json!(tracked).to_string()])
    })?;
    tx.renew_track()
}
