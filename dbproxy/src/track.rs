//! What a write changed: TEMP triggers on the writer's connection report to a collector in memory.
//!
//! SQLite's `update_hook` misses rows that REPLACE removes and reports what was rolled back. Triggers see every row,
//! also those of cascades and of the schema's own triggers, and being TEMP they leave no trace in the schema.
//!
//! Each write that changed rows makes one [`SUMMARY`] with the tables and the operations. A table that is tracked has an event for each
//! row besides, before it.

mod events;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};
use serde_json::{Map, Value};

use crate::guard::{CHANGED, RESERVED, TRACKER, begins};
use crate::tracked::Tracked;
use crate::value::SqlValue;
pub(crate) use events::Author;

/// Topic of the event that each write makes that changed rows.
pub(crate) const SUMMARY: &str = "db.changed";
/// Most row events of one table in one write; beyond it a single `db.<entity>.bulk` event carries counts.
pub const MAX_ROW_EVENTS: usize = 1_000;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Created = 0,
    Updated = 1,
    Deleted = 2,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    fn of(number: usize) -> Option<Self> {
        Self::ALL.get(number).copied()
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Debug)]
struct Row {
    table: usize,
    operation: Operation,
    key: String,
    session: String,
    /// Values that an application wishes to see, see [`Tracked`].
    columns: Map<String, Value>,
}

#[derive(Debug)]
struct Table {
    name: String,
    /// Changed rows by operation.
    counts: [u64; 3],
    /// Rows that have an event, or would have if they were fewer.
    rows: usize,
}

/// The rows changed by one write.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    tables: Vec<Table>,
    rows: Vec<Row>,
    /// Where each row that was seen stands in `rows`.
    seen: HashMap<(usize, Operation, String), usize>,
}

impl Collector {
    /// Counts a changed row. Returns its table's place.
    fn count(&mut self, name: &str, operation: Operation) -> usize {
        let table = self.tables.iter().position(|table| table.name == name).unwrap_or_else(|| {
            self.tables.push(Table { name: name.to_owned(), counts: [0; 3], rows: 0 });
            self.tables.len() - 1
        });
        self.tables[table].counts[operation as usize] += 1;
        table
    }

    fn push(&mut self, name: &str, operation: Operation, key: String, session: String, columns: Map<String, Value>) {
        let table = self.count(name, operation);
        let entry = &mut self.tables[table];
        if entry.rows > MAX_ROW_EVENTS {
            return;
        }
        match self.seen.entry((table, operation, key.clone())) {
            // The event tells of the row as the write leaves it.
            Entry::Occupied(known) => {
                if let Some(row) = self.rows.get_mut(*known.get()) {
                    row.columns = columns;
                }
            }
            Entry::Vacant(unknown) => {
                entry.rows += 1;
                unknown.insert(self.rows.len());
                if entry.rows <= MAX_ROW_EVENTS {
                    self.rows.push(Row { table, operation, key, session, columns });
                }
            }
        }
    }
}

/// Change capture on the writer's connection.
#[derive(Debug)]
pub(crate) struct Track {
    collector: Arc<Mutex<Collector>>,
}

impl Track {
    /// Installs the function and the triggers.
    pub(crate) fn install(connection: &Connection) -> rusqlite::Result<Self> {
        let track = Self { collector: Arc::default() };
        let collector = Arc::clone(&track.collector);
        // Direct only: neither a view nor a trigger of the schema may call it.
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
        connection.create_scalar_function(CHANGED, -1, flags, move |context| {
            report(context, &mut lock(&collector));
            Ok(None::<i64>)
        })?;
        Self::renew(connection)?;
        Ok(track)
    }

    /// Makes the triggers anew, after the schema changed.
    pub(crate) fn renew(connection: &Connection) -> rusqlite::Result<()> {
        let mut script = Vec::new();
        let named = format!(
            "SELECT name FROM temp.sqlite_master WHERE type = 'trigger' AND substr(name, 1, {}) = ?1",
            TRACKER.len()
        );
        for name in strings(connection, &named, TRACKER)? {
            script.push(format!("DROP TRIGGER temp.{};", quoted(&name)));
        }
        let sql = "SELECT name FROM pragma_table_list WHERE schema = ?1 AND type = 'table'";
        let tables = strings(connection, sql, "main")?;
        let ordinary = tables.iter().filter(|table| !begins(table, RESERVED) && !begins(table, "sqlite_"));
        for (number, table) in ordinary.enumerate() {
            let wish = Tracked::of(connection, table)?;
            let rows = if wish.rows { Some(columns(connection, table, &wish)?) } else { None };
            triggers(&mut script, number, table, rows.as_ref());
        }
        connection.execute_batch(&script.concat())
    }

    /// Forgets what was collected: a write begins, or was rolled back.
    pub(crate) fn clear(&self) {
        drop(self.take());
    }

    /// Takes what was collected.
    pub(crate) fn take(&self) -> Collector {
        std::mem::take(&mut lock(&self.collector))
    }
}

fn lock(collector: &Mutex<Collector>) -> MutexGuard<'_, Collector> {
    collector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a call of the triggers: table and operation; of a tracked table also session, number of key columns, the key, for an update the old
/// key, then names and values of more columns.
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
    let columns: Map<_, _> = columns.map(|at| (text(at), value(at + 1).to_json())).collect();
    if operation == Operation::Updated {
        let old = keys(4 + count);
        if new != old {
            collector.push(&table, Operation::Deleted, old, session.clone(), Map::new());
            return collector.push(&table, Operation::Created, new, session, columns);
        }
    }
    collector.push(&table, operation, new, session, columns);
}

/// Returns a row's key as text; several columns are a JSON array.
fn key(columns: &[SqlValue]) -> String {
    match columns {
        [single] => single.to_string(),
        several => Value::Array(several.iter().map(SqlValue::to_json).collect()).to_string(),
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

/// Adds the triggers of a table, which report its rows when they are given.
fn triggers(script: &mut Vec<String>, number: usize, table: &str, rows: Option<&Columns>) {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let name = literal(table);
    for (event, operation) in ["INSERT", "UPDATE", "DELETE"].into_iter().zip(Operation::ALL) {
        let mut report = format!("{name}, {}", operation as usize);
        if let Some(Columns { key, session, carried }) = rows {
            let row = if operation == Operation::Deleted { "OLD" } else { "NEW" };
            let session = session.as_ref().map_or("NULL".to_owned(), |column| format!("{row}.{}", quoted(column)));
            let _infallible = write!(report, ", {session}, {}", key.len());
            let former = (operation == Operation::Updated).then_some("OLD");
            for row in [row].into_iter().chain(former) {
                report.extend(key.iter().map(|column| format!(", {row}.{}", quoted(column))));
            }
            report.extend(carried.iter().map(|column| format!(", {}, {row}.{}", literal(column), quoted(column))));
        }
        script.push(format!(
            "CREATE TEMP TRIGGER {TRACKER}{number}_{event} AFTER {event} ON main.{} BEGIN SELECT {CHANGED}({report}); END;",
            quoted(table)
        ));
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn strings(connection: &Connection, sql: &str, param: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare(sql)?.query_map([param], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use pando_ipc::Envelope;
    use pando_ipc::rpc::Json;
    use serde_json::json;

    use super::events::Body;
    use super::*;

    fn tracked(schema: &str) -> (Connection, Track) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("PRAGMA recursive_triggers = ON; PRAGMA foreign_keys = ON;").unwrap();
        connection.execute_batch("CREATE TABLE _pando_meta (key TEXT PRIMARY KEY, value ANY) STRICT").unwrap();
        connection.execute_batch(schema).unwrap();
        let track = Track::install(&connection).unwrap();
        wish_for_all(&connection);
        (connection, track)
    }

    /// Tracks each table.
    fn wish_for_all(connection: &Connection) {
        for table in strings(connection, "SELECT name FROM sqlite_schema WHERE type = ?1", "table").unwrap() {
            let wish = json!(Tracked::table(table.as_str())).to_string();
            let sql = "INSERT INTO _pando_meta VALUES ('track.' || ?1, ?2) ON CONFLICT DO NOTHING";
            connection.execute(sql, [table, wish]).unwrap();
        }
        Track::renew(connection).unwrap();
    }

    /// Takes the change events: topic, and what the payload tells.
    fn changes(track: &Track) -> Vec<(String, Value)> {
        let author = Author { source: "i", path: &Json::of(&"/w"), method: "exec" };
        let told = |event: Envelope<Body<'_>>| {
            let mut payload = json!(event.payload);
            let mut detail = payload["payload"].take();
            assert_eq!(detail.as_object_mut().unwrap().shift_remove("method").unwrap(), "exec");
            let (topic, time) = (event.topic.to_string(), event.timestamp);
            let about = json!({"instance_id": "i", "path": "/w", "topic": topic, "payload": null, "timestamp": time});
            assert_eq!(payload.to_string(), about.to_string());
            (topic, detail)
        };
        track.take().events(author).map(told).collect()
    }

    /// Takes the changes of rows; the last one, the summary, is looked at by tests of its own.
    fn taken(track: &Track) -> Vec<String> {
        let mut changes = changes(track);
        assert_eq!(changes.pop().unwrap().0, SUMMARY);
        let seen = changes.into_iter().map(|(topic, detail)| {
            let key = detail.get("key").and_then(Value::as_str).unwrap_or("-");
            format!("{topic} {key}")
        });
        seen.collect()
    }

    #[track_caller]
    fn check(schema: &str, sql: &str, expected: &[&str]) {
        let (connection, track) = tracked(schema);
        connection.execute_batch(sql).unwrap();
        assert_eq!(taken(&track), expected);
    }

    #[test]
    fn each_row_is_reported_once_per_operation() {
        check(
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
            "INSERT INTO t VALUES (7, 1); UPDATE t SET b = 2; UPDATE t SET b = 3; DELETE FROM t",
            &["db.t.created 7", "db.t.updated 7", "db.t.deleted 7"],
        );
    }

    #[test]
    fn replace_and_delete_without_where_report_the_rows_they_remove() {
        check(
            "CREATE TABLE t (a TEXT PRIMARY KEY, b UNIQUE); INSERT INTO t VALUES ('x', 1), ('y', 2)",
            "REPLACE INTO t VALUES ('z', 1); DELETE FROM t",
            &["db.t.deleted x", "db.t.created z", "db.t.deleted y", "db.t.deleted z"],
        );
    }

    #[test]
    fn cascades_and_triggers_of_the_schema_are_seen() {
        check(
            "CREATE TABLE p (id TEXT PRIMARY KEY); CREATE TABLE c (id TEXT PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);
             CREATE TABLE log (what); CREATE TRIGGER l AFTER DELETE ON p BEGIN INSERT INTO log VALUES (OLD.id); END;
             INSERT INTO p VALUES ('p'); INSERT INTO c VALUES ('c1', 'p'), ('c2', 'p')",
            "DELETE FROM p",
            &["db.c.deleted c1", "db.c.deleted c2", "db.p.deleted p", "db.log.created 1"],
        );
    }

    #[test]
    fn a_key_is_the_primary_key_or_the_rowid_and_a_changed_key_is_another_row() {
        check(
            "CREATE TABLE two (a TEXT, b INT, PRIMARY KEY (b, a)) WITHOUT ROWID; CREATE TABLE none (x)",
            "INSERT INTO two VALUES ('k', 1); INSERT INTO none VALUES ('v'); UPDATE two SET b = 2",
            &["db.two.created [1,\"k\"]", "db.none.created 1", "db.two.deleted [1,\"k\"]", "db.two.created [2,\"k\"]"],
        );
    }

    #[test]
    fn odd_names_and_a_new_table_are_followed() {
        let (connection, track) = tracked("CREATE TABLE \"a b\"\"'*\" (\"k k\" PRIMARY KEY)");
        connection.execute_batch("CREATE TABLE later (rowid TEXT)").unwrap();
        wish_for_all(&connection);
        connection.execute_batch("INSERT INTO \"a b\"\"'*\" VALUES (1.5); INSERT INTO later VALUES ('x')").unwrap();
        assert_eq!(taken(&track), ["db.a_b\"'_.created 1.5", "db.later.created 1"]);
    }

    #[test]
    fn one_event_tells_the_tables_and_operations_of_a_write() {
        let (connection, track) = tracked(
            "CREATE TABLE p (id TEXT PRIMARY KEY); CREATE TABLE c (id TEXT PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);
             INSERT INTO p VALUES ('p'); INSERT INTO c VALUES ('c1', 'p'), ('c2', 'p')",
        );
        connection.execute("DELETE FROM _pando_meta", []).unwrap();
        Track::renew(&connection).unwrap();
        let summary = |sql: &str| {
            connection.execute_batch(sql).unwrap();
            changes(&track)
        };
        let one = |tables: Value| vec![(SUMMARY.to_owned(), json!({"tables": tables}))];
        let gone = summary("DELETE FROM p; INSERT INTO p VALUES ('q')");
        assert_eq!(gone, one(json!({"c": {"deleted": 2}, "p": {"created": 1, "deleted": 1}})));
        let more = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000)
                    INSERT INTO c SELECT x, 'q' FROM n";
        assert_eq!(summary(more), one(json!({"c": {"created": 5000}})));
        assert_eq!(summary("UPDATE p SET id = 'r' WHERE id = 'none'; SELECT 1"), []);
    }

    #[test]
    fn many_rows_of_a_table_become_one_event_with_counts() {
        let (connection, track) =
            tracked("CREATE TABLE t (a INTEGER PRIMARY KEY, b); CREATE TABLE u (a INTEGER PRIMARY KEY)");
        let insert = |count: usize| {
            let sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?1)
                       INSERT INTO t (a) SELECT x FROM n";
            connection.execute(sql, [count]).unwrap();
            connection.execute("INSERT OR IGNORE INTO u VALUES (1)", []).unwrap();
        };
        insert(MAX_ROW_EVENTS);
        assert_eq!(changes(&track).len(), MAX_ROW_EVENTS + 2);
        connection.execute_batch("DELETE FROM t; DELETE FROM u").unwrap();
        track.clear();
        insert(MAX_ROW_EVENTS + 1);
        connection.execute("UPDATE t SET b = 1 WHERE a < 3", []).unwrap();
        let changes = changes(&track);
        assert_eq!(changes.len(), 3);
        let counts = json!({"table": "t", "created": MAX_ROW_EVENTS + 1, "updated": 2, "deleted": 0});
        assert_eq!(changes[1], ("db.t.bulk".to_owned(), counts));
    }
}
