//! What a write changed: an update hook and TEMP triggers on the writer's connection report to a collector in memory.
//!
//! SQLite's update hook costs little and tells of every row that comes or changes, also those of cascades and of the schema's own
//! triggers. It misses rows that REPLACE removes and tables WITHOUT ROWID; triggers see those, and the keys and columns of a tracked
//! table. A trigger makes SQLite copy each page that a statement changes before it does so: there is none where the hook is enough.
//! Being TEMP, triggers leave no trace in the schema. Both report what a failed statement took back: [`Track::end_statement`] forgets it,
//! unless the statement had changed rows by triggers of the schema before it failed: then SQLite does not say what stayed, and all is told.
//!
//! SQLite fires the triggers of a row that REPLACE removes with `recursive_triggers` alone, by which a trigger that changes its own table would start itself
//! again. Where the schema has triggers of its own the setting is therefore off, but for statements that may replace.
//!
//! Each write that changed rows makes one [`SUMMARY`] with the tables and the operations. A table that is tracked has an event for each
//! row besides, before it.

mod collector;
mod events;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::hooks::Action;
use serde_json::{Map, Value};

use crate::guard::{CHANGED, RESERVED, TRACKER, begins};
use crate::tracked::{AGENT_STORE_TRIGGERS, Tracked};
use crate::value::SqlValue;
pub use collector::MAX_ROW_EVENTS;
use collector::{Collector, Key, Operation};
pub(crate) use events::Author;

/// Topic of the event that each write makes that changed rows.
pub(crate) const SUMMARY: &str = "db.changed";

/// Most bytes of the values that one event carries. Beyond it the event says that they are left out: it has to fit into a frame, escapes included.
pub const MAX_COLUMNS_BYTES: usize = 512 << 10;

/// What stands in a statement that may replace rows, as a word.
const REPLACE: &[u8] = b"replace";

/// What is known of the changes of a write.
#[derive(Debug, Default)]
struct Seen {
    /// Tables that virtual tables keep their rows in; nobody is told of those.
    shadows: HashSet<String>,
    /// What the statement that runs has changed.
    statement: Collector,
    /// What those before it have.
    write: Collector,
    /// Whether `recursive_triggers` is off, but for statements that may replace.
    recurses_on_demand: bool,
    /// The schema was looked at in a transaction that is still open.
    is_schema_open: bool,
    /// The row that the statement inserted last into each table, whoever's it is.
    inserted: Vec<(String, i64)>,
}

impl Seen {
    /// Takes a call of the update hook.
    fn note(&mut self, action: Action, database: &str, table: &str, rowid: i64) {
        if action == Action::SQLITE_INSERT {
            match self.inserted.iter_mut().find(|(known, _)| known == table) {
                Some((_, last)) => *last = rowid,
                None => self.inserted.push((table.to_owned(), rowid)),
            }
        }
        let operation = match action {
            Action::SQLITE_INSERT => Operation::Created,
            Action::SQLITE_UPDATE => Operation::Updated,
            // There is a trigger for it.
            _ => return,
        };
        if database == "main" && !is_internal(table) && !self.shadows.contains(table) {
            self.statement.count(table, operation);
        }
    }
}

/// Change capture on the writer's connection.
#[derive(Debug)]
pub(crate) struct Track {
    seen: Arc<Mutex<Seen>>,
}

impl Track {
    /// Installs the hook, the function and the triggers.
    pub(crate) fn install(connection: &mut Connection) -> rusqlite::Result<Self> {
        let track = Self { seen: Arc::default() };
        let seen = Arc::clone(&track.seen);
        let note = move |action, database: &str, table: &str, rowid| lock(&seen).note(action, database, table, rowid);
        connection.update_hook(Some(note))?;
        let seen = Arc::clone(&track.seen);
        // Direct only: neither a view nor a trigger of the schema may call it.
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
        connection.create_scalar_function(CHANGED, -1, flags, move |context| {
            report(context, &mut lock(&seen).statement);
            Ok(None::<i64>)
        })?;
        track.renew(connection)?;
        Ok(track)
    }

    /// Takes the triggers away before a statement that may alter a table, for SQLite refuses one that a trigger does not fit any more. [`Self::renew`]
    /// follows, or the transaction is taken back.
    pub(crate) fn lift(&self, connection: &Connection) -> rusqlite::Result<()> {
        lock(&self.seen).is_schema_open = !connection.is_autocommit();
        let named = format!(
            "SELECT name FROM temp.sqlite_master WHERE type = 'trigger' AND substr(name, 1, {}) = ?1",
            TRACKER.len()
        );
        let drop = |name: &String| format!("DROP TRIGGER temp.{};", quoted(name));
        let script: String = strings(connection, &named, TRACKER)?.iter().map(drop).collect();
        connection.execute_batch(&script)
    }

    /// Makes the triggers anew, after the schema changed.
    pub(crate) fn renew(&self, connection: &Connection) -> rusqlite::Result<()> {
        self.lift(connection)?;
        let mut script = Vec::new();
        let listed = |filter| format!("SELECT name FROM pragma_table_list WHERE schema = ?1 AND {filter}");
        lock(&self.seen).shadows = strings(connection, &listed("type = 'shadow'"), "main")?.into_iter().collect();
        let on_demand = recurses_on_demand(connection)?;
        script.push(format!("PRAGMA recursive_triggers = {};", if on_demand { "OFF" } else { "ON" }));
        lock(&self.seen).recurses_on_demand = on_demand;
        let tables = strings(connection, &listed("type = 'table'"), "main")?;
        let unhooked = strings(connection, &listed("type = 'table' AND wr"), "main")?;
        for (number, table) in tables.iter().filter(|table| !is_internal(table)).enumerate() {
            let wish = Tracked::of(connection, table)?;
            let rows = if wish.rows { Some(columns(connection, table, &wish)?) } else { None };
            triggers(&mut script, number, table, !unhooked.contains(table), rows.as_ref());
        }
        connection.execute_batch(&script.concat())
    }

    /// Looks at the schema anew where a transaction that changed it was taken back.
    pub(crate) fn schema_was_taken_back(&self, connection: &Connection) -> rusqlite::Result<()> {
        if lock(&self.seen).is_schema_open { self.renew(connection) } else { Ok(()) }
    }

    /// Notes that the schema stays as it is.
    pub(crate) fn schema_is_committed(&self) {
        lock(&self.seen).is_schema_open = false;
    }

    /// Begins a statement. Until what it returns is dropped, the triggers of what it replaces are fired.
    pub(crate) fn begin_statement<'c>(&self, connection: &'c Connection, sql: &str) -> rusqlite::Result<Recursion<'c>> {
        let mut seen = lock(&self.seen);
        seen.inserted.clear();
        if !(seen.recurses_on_demand && may_replace(sql)) {
            return Ok(Recursion(None));
        }
        connection.execute_batch("PRAGMA recursive_triggers = ON")?;
        Ok(Recursion(Some(connection)))
    }

    /// Tells whether the statement has inserted a row of this id. An upsert that has updated one has not, and where there are no row ids nobody has.
    pub(crate) fn has_inserted(&self, rowid: i64) -> bool {
        lock(&self.seen).inserted.iter().any(|(_, last)| *last == rowid)
    }

    /// Ends a statement that began when its connection had made so many changes: what it changed belongs to the write, or is forgotten, for SQLite has
    /// taken it back. Of a statement that failed stays what SQLite counts: the first rows of an `INSERT OR FAIL`, usually nothing.
    pub(crate) fn end_statement(&self, connection: &Connection, changes_before: u64, is_done: bool) {
        self.settle(is_done || connection.total_changes() > changes_before);
    }

    fn settle(&self, stays: bool) {
        let Seen { statement, write, .. } = &mut *lock(&self.seen);
        let ended = std::mem::take(statement);
        if stays {
            write.absorb(ended);
        }
    }

    /// Forgets what was collected: a write begins, or was rolled back.
    pub(crate) fn clear(&self) {
        drop(self.take());
    }

    /// Takes what was collected.
    pub(crate) fn take(&self) -> Collector {
        self.settle(true);
        std::mem::take(&mut lock(&self.seen).write)
    }
}

/// Whether triggers start themselves again, for one statement.
#[derive(Debug)]
pub(crate) struct Recursion<'c>(Option<&'c Connection>);

impl Drop for Recursion<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0
            && let Err(error) = connection.execute_batch("PRAGMA recursive_triggers = OFF")
        {
            tracing::error!(%error, "triggers start themselves again from now on");
        }
    }
}

/// Tells whether the schema has triggers that may start themselves again, and nothing that replaces by itself.
fn recurses_on_demand(connection: &Connection) -> rusqlite::Result<bool> {
    let triggers =
        format!("SELECT sql FROM main.sqlite_schema WHERE type = ?1 AND name NOT IN ({AGENT_STORE_TRIGGERS}) LIMIT 1");
    if strings(connection, &triggers, "trigger")?.is_empty() {
        return Ok(false);
    }
    let hints = "SELECT sql FROM main.sqlite_schema WHERE type IN ('table', 'trigger') AND sql LIKE ?1";
    Ok(!strings(connection, hints, "%replace%")?.iter().any(|sql| may_replace(sql)))
}

/// Tells whether SQL holds `replace` as a word of its own that is no call of the function: only such SQL replaces rows.
fn may_replace(sql: &str) -> bool {
    let is_name =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii());
    let sql = sql.as_bytes();
    sql.windows(REPLACE.len()).enumerate().any(|(at, word)| {
        let (before, behind) = (&sql[..at], &sql[at + REPLACE.len()..]);
        let is_word = word.eq_ignore_ascii_case(REPLACE) && !is_name(before.last()) && !is_name(behind.first());
        is_word && !behind.trim_ascii_start().starts_with(b"(")
    })
}

/// Tells whether nobody is told of a table's rows, for they are ours or SQLite's.
fn is_internal(table: &str) -> bool {
    begins(table, RESERVED) || begins(table, "sqlite_")
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a call of the triggers. Table and operation count a row; a row to tell of has also session, number of key columns, the key, for an
/// update the old key, then names and values of more columns.
fn report(context: &Context<'_>, collector: &mut Collector) {
    let value = |at: usize| SqlValue::from_ref(context.get_raw(at));
    let text = |at: usize| match value(at) {
        SqlValue::Null => String::new(),
        value => value.to_string(),
    };
    let Some(operation) = context.get(1).ok().and_then(Operation::of) else { return };
    if context.len() == 2 {
        if let Ok(table) = context.get_raw(0).as_str() {
            collector.count(table, operation);
        }
        return;
    }
    let (table, session) = (text(0), text(2));
    let SqlValue::Integer(count) = value(3) else { return };
    let Ok(count) = usize::try_from(count) else { return };
    let keys = |first: usize| key(&(first..first + count).map(value).collect::<Vec<_>>());
    let new = keys(4);
    let rest = 4 + if operation == Operation::Updated { 2 * count } else { count };
    let columns = (rest..context.len().saturating_sub(1)).step_by(2);
    let bytes: usize = columns.clone().map(|at| value(at + 1).weight()).sum();
    let columns = (bytes <= MAX_COLUMNS_BYTES).then(|| columns.map(|at| (text(at), value(at + 1).to_json())).collect());
    if operation == Operation::Updated {
        let old = keys(4 + count);
        if new != old {
            collector.push(&table, Operation::Deleted, old, session.clone(), Some(Map::new()));
            return collector.push(&table, Operation::Created, new, session, columns);
        }
    }
    collector.push(&table, operation, new, session, columns);
}

/// Returns a row's key; several columns are a JSON array as text.
fn key(columns: &[SqlValue]) -> Key {
    let identity = Value::Array(columns.iter().map(SqlValue::to_json).collect()).to_string();
    match columns {
        [single] => Key { text: single.to_string(), identity },
        _ => Key { text: identity.clone(), identity },
    }
}

/// The columns that a table's triggers report.
struct Columns {
    key: Vec<String>,
    session: Option<String>,
    /// What events carry besides.
    carried: Vec<String>,
}

fn columns(connection: &Connection, table: &str, wish: &Tracked) -> rusqlite::Result<Columns> {
    let all = strings(connection, "SELECT name FROM pragma_table_xinfo(?1)", table)?;
    // A column that was dropped or renamed since is none any more.
    let known = |wished: &[String]| -> Vec<String> {
        wished.iter().filter(|name| all.iter().any(|column| column.eq_ignore_ascii_case(name))).cloned().collect()
    };
    let mut key = strings(connection, "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk", table)?;
    let taken = |name: &str| all.iter().any(|column| column.eq_ignore_ascii_case(name));
    if key.is_empty() {
        // A table whose columns take all three names hides its rowid; then the whole row is the key.
        match ["rowid", "_rowid_", "oid"].into_iter().find(|name| !taken(name)) {
            Some(rowid) => key.push(rowid.to_owned()),
            None => key.clone_from(&all),
        }
    }
    let wished = known(&wish.key);
    if !wished.is_empty() && wished.len() == wish.key.len() {
        key = wished;
    }
    let session = match table {
        "sessions" => key.first().cloned(),
        _ => taken("session_id").then(|| "session_id".to_owned()),
    };
    Ok(Columns { key, session, carried: known(&wish.columns) })
}

/// Adds the triggers of a table: they count what the update hook does not see, and report its rows when they are given.
fn triggers(script: &mut Vec<String>, number: usize, table: &str, is_hooked: bool, rows: Option<&Columns>) {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    for (event, operation) in ["INSERT", "UPDATE", "DELETE"].into_iter().zip(Operation::ALL) {
        let about = format!("{}, {}", literal(table), operation as usize);
        let mut body = String::new();
        if !is_hooked || operation == Operation::Deleted {
            let _infallible = write!(body, "SELECT {CHANGED}({about}); ");
        }
        if let Some(Columns { key, session, carried }) = rows {
            let row = if operation == Operation::Deleted { "OLD" } else { "NEW" };
            let session = session.as_ref().map_or("NULL".to_owned(), |column| format!("{row}.{}", quoted(column)));
            let mut report = format!("{about}, {session}, {}", key.len());
            let former = (operation == Operation::Updated).then_some("OLD");
            for row in [row].into_iter().chain(former) {
                report.extend(key.iter().map(|column| format!(", {row}.{}", quoted(column))));
            }
            report.extend(carried.iter().map(|column| format!(", {}, {row}.{}", literal(column), quoted(column))));
            let _infallible = write!(body, "SELECT {CHANGED}({report}); ");
        }
        if !body.is_empty() {
            script.push(format!(
                "CREATE TEMP TRIGGER {TRACKER}{number}_{event} AFTER {event} ON main.{} BEGIN {body}END;",
                quoted(table)
            ));
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn strings(connection: &Connection, sql: &str, param: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([param], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests;
