use std::collections::{BTreeMap, BTreeSet};

use pando_ipc::Envelope;
use pando_ipc::rpc::Json;
use proptest::prelude::*;
use serde_json::json;

use super::events::Body;
use super::*;

fn opened(schema: &str) -> (Connection, Track) {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("PRAGMA recursive_triggers = ON; PRAGMA foreign_keys = ON;").unwrap();
    connection.execute_batch("CREATE TABLE _pando_meta (key TEXT PRIMARY KEY, value ANY) STRICT").unwrap();
    connection.execute_batch(schema).unwrap();
    let track = Track::install(&mut connection).unwrap();
    (connection, track)
}

fn tracked(schema: &str) -> (Connection, Track) {
    let (connection, track) = opened(schema);
    wish_for_all(&track, &connection);
    (connection, track)
}

/// Tracks each table.
fn wish_for_all(track: &Track, connection: &Connection) {
    let tables = strings(connection, "SELECT name FROM sqlite_schema WHERE type = ?1", "table").unwrap();
    wish_for(track, connection, tables.iter().map(String::as_str));
}

fn wish_for<'a>(track: &Track, connection: &Connection, tables: impl Iterator<Item = &'a str>) {
    for table in tables {
        let wish = json!(Tracked::table(table)).to_string();
        let sql = "INSERT INTO _pando_meta VALUES ('track.' || ?1, ?2) ON CONFLICT DO NOTHING";
        connection.execute(sql, [table, &wish]).unwrap();
    }
    track.renew(connection).unwrap();
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
fn only_the_word_that_is_no_function_may_replace_rows() {
    for sql in [
        "REPLACE INTO t",
        "INSERT/**/OR/**/Replace/**/INTO t",
        "UPDATE OR REPLACE\"t\"",
        "a UNIQUE ON CONFLICT REPLACE)",
    ] {
        assert!(may_replace(sql), "{sql}");
    }
    for sql in [
        "SELECT replace(a, 'b', 'c')",
        "SELECT REPLACE \n ('a')",
        "SET replaced = 1",
        "SET _replace = 1",
        "éreplace",
        "replac",
    ] {
        assert!(!may_replace(sql), "{sql}");
    }
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
    wish_for_all(&track, &connection);
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
    track.renew(&connection).unwrap();
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

#[test]
fn the_last_event_of_a_row_says_whether_it_is_there() {
    let insert = "INSERT INTO t VALUES ('a', 1)";
    for (sql, expected) in [
        (format!("{insert}; DELETE FROM t; {insert}"), ["db.t.deleted a", "db.t.created a"]),
        (
            "REPLACE INTO t VALUES ('a', 1); REPLACE INTO t VALUES ('a', 2)".to_owned(),
            ["db.t.deleted a", "db.t.created a"],
        ),
        (format!("{insert}; DELETE FROM t; {insert}; DELETE FROM t"), ["db.t.created a", "db.t.deleted a"]),
    ] {
        check("CREATE TABLE t (k PRIMARY KEY, v)", &sql, &expected);
    }
}

#[test]
fn rows_whose_keys_look_alike_are_told_apart() {
    let keys = "INSERT INTO t VALUES (1), ('1'), (x'31'), ('NULL'), (NULL)";
    let expected = ["db.t.created 1", "db.t.created 1", "db.t.created 31", "db.t.created NULL", "db.t.created NULL"];
    check("CREATE TABLE t (k PRIMARY KEY)", keys, &expected);
}

/// Tables of every kind: keys, cascades, triggers, conflicts that replace, no rowid, a virtual table with shadows.
const SCHEMA: &str = "
    CREATE TABLE p (id INTEGER PRIMARY KEY, a UNIQUE, b NOT NULL DEFAULT 0 CHECK (b < 6));
    CREATE TABLE c (id TEXT PRIMARY KEY, a UNIQUE ON CONFLICT REPLACE, b REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE n (id INTEGER, a, b REFERENCES p ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED, twice AS (a * 2) STORED);
    CREATE INDEX n_some ON n (a) WHERE a > 2;
    CREATE TABLE w (id PRIMARY KEY, a UNIQUE, b) WITHOUT ROWID;
    CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, a, b);
    CREATE TRIGGER p_goes AFTER DELETE ON p BEGIN INSERT INTO log (a, b) VALUES (OLD.a, OLD.b); END;
    CREATE TRIGGER p_comes BEFORE INSERT ON p WHEN NEW.a = 7 BEGIN SELECT RAISE(FAIL, 'seven'); END;
    CREATE TRIGGER w_changes AFTER UPDATE ON w BEGIN UPDATE n SET a = a + 1 WHERE id = NEW.id; END;
    CREATE VIEW v AS SELECT id, a FROM n;
    CREATE TRIGGER v_comes INSTEAD OF INSERT ON v BEGIN INSERT INTO n (id, a) VALUES (NEW.id, NEW.a); END;
    CREATE VIRTUAL TABLE text USING fts5(a);
    CREATE TRIGGER n_comes AFTER INSERT ON n BEGIN INSERT INTO text VALUES (NEW.a); END;";
const TABLES: [&str; 5] = ["p", "c", "n", "w", "log"];

fn statement() -> impl Strategy<Value = String> {
    let table = || prop::sample::select(&TABLES[..]);
    let or = || prop::sample::select(&["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT"][..]);
    let rows = prop::collection::vec((0..8, 0..8, 0..8), 1..4).prop_map(|rows| {
        let rows = rows.into_iter().map(|(id, a, b)| format!("({id}, {a}, {b})"));
        rows.collect::<Vec<_>>().join(", ")
    });
    let column = || prop::sample::select(&["id", "a", "b"][..]);
    prop_oneof![
        4 => (or(), table(), rows).prop_map(|(or, table, rows)| format!("INSERT {or} INTO {table} (id, a, b) VALUES {rows}")),
        1 => (table(), 0..8, 0..8).prop_map(|(table, a, b)| {
            format!("INSERT INTO {table} (id, a, b) VALUES ({a}, {b}, {a}) ON CONFLICT DO UPDATE SET b = {b} RETURNING a")
        }),
        1 => (or(), table(), table()).prop_map(|(or, to, from)| {
            format!("INSERT {or} INTO {to} (id, a, b) SELECT id, a, b FROM {from}")
        }),
        1 => (0..8, 0..8).prop_map(|(id, a)| format!("INSERT INTO v VALUES ({id}, {a})")),
        3 => (or(), table(), column(), 0..8, column(), 0..8).prop_map(|(or, table, set, to, of, least)| {
            format!("UPDATE {or} {table} SET {set} = {set} + {to} WHERE {of} >= {least}")
        }),
        2 => (table(), column(), 0..8).prop_map(|(table, of, least)| format!("DELETE FROM {table} WHERE {of} >= {least}")),
        1 => table().prop_map(|table| format!("DELETE FROM {table}")),
    ]
}

/// Writes down each change in a table, which SQLite takes back together with the change.
fn bear_witness(connection: &Connection) {
    let mut script = "CREATE TEMP TABLE witness (what); CREATE TEMP TABLE witness_row (what);".to_owned();
    for (table, (event, operation)) in TABLES
        .iter()
        .flat_map(|table| ["INSERT", "UPDATE", "DELETE"].into_iter().zip(Operation::ALL).map(move |o| (table, o)))
    {
        let operation = operation.as_str();
        let column = if *table == "n" { "rowid" } else { "id" };
        let key = |row: &str| format!("coalesce(CAST({row}.{column} AS TEXT), 'NULL')");
        let (old, new) = (key("OLD"), key("NEW"));
        let rows = match event {
            "INSERT" => format!("SELECT '{table} created ' || {new}"),
            "DELETE" => format!("SELECT '{table} deleted ' || {old}"),
            _ => format!(
                "SELECT '{table} updated ' || {new} WHERE {new} = {old}
                 UNION ALL SELECT '{table} deleted ' || {old} WHERE {new} <> {old}
                 UNION ALL SELECT '{table} created ' || {new} WHERE {new} <> {old}"
            ),
        };
        let _infallible = write!(
            script,
            "CREATE TEMP TRIGGER witness_{table}_{event} AFTER {event} ON main.{table}
             BEGIN INSERT INTO witness VALUES ('{table} {operation}'); INSERT INTO witness_row {rows}; END;"
        );
    }
    connection.execute_batch(&script).unwrap();
}

/// Runs a statement as the writer does. Tells whether it is certain what stays of it.
fn settled(connection: &Connection, track: &Track, sql: &str) -> bool {
    let before = connection.total_changes();
    let is_done = connection.execute_batch(sql).is_ok();
    track.end_statement(connection, before, is_done);
    is_done || connection.total_changes() == before || connection.changes() > 0
}

proptest! {
    #[test]
    fn what_is_told_is_what_was_changed(
        statements in prop::collection::vec(statement(), 1..12),
        tracked in prop::collection::vec(any::<bool>(), TABLES.len()),
    ) {
        let ((told, track), (witness, _)) = (opened(SCHEMA), opened(SCHEMA));
        let wished: Vec<_> = TABLES.into_iter().zip(tracked).filter_map(|(table, wish)| wish.then_some(table)).collect();
        wish_for(&track, &told, wished.iter().copied());
        bear_witness(&witness);
        // As in the writer: without a transaction a commit could fail besides.
        for connection in [&told, &witness] {
            connection.execute_batch("BEGIN").unwrap();
        }
        let mut is_certain = true;
        for sql in &statements {
            is_certain &= settled(&told, &track, sql);
            // One that fails keeps nothing here that it does not keep there.
            drop(witness.execute_batch(sql));
        }
        let collected = track.take();
        let counts = collected.tables.iter().flat_map(|table| {
            let counts = Operation::ALL.into_iter().zip(table.counts);
            counts.map(|(operation, count)| (format!("{} {}", table.name, operation.as_str()), count))
        });
        let counts: BTreeMap<_, _> = counts.filter(|(_, count)| *count > 0).collect();
        let rows: BTreeSet<_> = collected.rows.values().map(|row| {
            format!("{} {} {}", collected.tables[row.table].name, row.operation.as_str(), row.key.text)
        }).collect();
        // Who follows the events of rows has the rows.
        let mut followed = BTreeSet::new();
        for row in collected.rows.values() {
            let name = format!("{} {}", collected.tables[row.table].name, row.key.text);
            match row.operation {
                Operation::Deleted => followed.remove(&name),
                Operation::Created | Operation::Updated => followed.insert(name),
            };
        }
        let there = wished.iter().flat_map(|table| {
            let column = if *table == "n" { "rowid" } else { "id" };
            strings(&told, &format!("SELECT ?1 || ' ' || {column} FROM {table}"), table).unwrap()
        });
        let there: BTreeSet<_> = there.collect();
        let mut seen_rows: BTreeSet<String> =
            strings(&witness, "SELECT DISTINCT what FROM witness_row WHERE what <> ?1", "").unwrap().into_iter().collect();
        seen_rows.retain(|row| wished.iter().any(|table| row.split(' ').next() == Some(*table)));
        let mut seen = witness.prepare("SELECT what, count(*) FROM witness GROUP BY what").unwrap();
        let seen: BTreeMap<String, u64> =
            seen.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        if is_certain {
            prop_assert_eq!((counts, rows), (seen, seen_rows), "{:?}", statements);
            prop_assert_eq!(followed, there, "{:?}", statements);
        } else {
            // A trigger may have changed rows before its statement failed: then SQLite does not say whether they are still there.
            let missed = seen.iter().find(|(what, count)| counts.get(*what).is_none_or(|told| told < count));
            prop_assert_eq!(missed, None, "{:?}", statements);
            prop_assert_eq!(seen_rows.difference(&rows).next(), None, "{:?}", statements);
        }
    }
}
