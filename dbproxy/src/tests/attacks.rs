//! Everything an attacker would try with SQL: to write what is ours, to leave the sandbox, to take the process down.

use pando_ipc::fault::Code;
use rusqlite::types::Value as Sql;

use super::*;

/// How long any one attack may take: the time limit of a write, and some room.
const BOUND: Duration = Duration::from_secs(20);

/// All that is ours, but for what successful writes add: rows of the reserved tables, and the schema's reserved part.
fn ours(bench: &Bench) -> Vec<Vec<Sql>> {
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    let mut all = Vec::new();
    for sql in [
        "SELECT key, value FROM _pando_meta ORDER BY key",
        "SELECT id, name, checksum, at FROM _pando_migration ORDER BY id",
        "SELECT topic, seq FROM _pando_topic",
        "SELECT name, tbl_name, sql FROM sqlite_schema WHERE tbl_name LIKE '\\_pando%' ESCAPE '\\' OR name LIKE '\\_pando%' ESCAPE '\\' ORDER BY name",
        "SELECT seq, envelope FROM _pando_event WHERE seq <= 2 ORDER BY seq",
    ] {
        let mut statement = connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement.query_map([], |row| (0..width).map(|at| row.get(at)).collect::<Result<Vec<Sql>, _>>());
        all.extend(rows.unwrap().map(Result::unwrap));
    }
    all
}

/// A database with tables of an application that may be turned against it.
async fn prey() -> (Bench, Writer) {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE notes (id INTEGER PRIMARY KEY, text)", "CREATE TABLE other (id, text)"])).await;
    apply(&writer, exec(&["INSERT INTO notes VALUES (1, 'one')"])).await;
    apply(&writer, exec(&["INSERT INTO other VALUES (1, 'two')"])).await;
    (bench, writer)
}

#[tokio::test]
async fn what_is_ours_cannot_be_written_by_any_route() {
    let (bench, writer) = prey().await;
    let before = ours(&bench);
    // Each is a sequence of writes; the last one must fail.
    let routes: &[&[&str]] = &[
        &["INSERT INTO main._pando_meta VALUES ('x', 1)"],
        &["INSERT INTO \"_PANDO_META\" VALUES ('x', 1)"],
        &["REPLACE INTO [_pando_meta] VALUES ('epoch', 99)"],
        &["INSERT INTO `_pando_meta` VALUES ('epoch', 9) ON CONFLICT (key) DO UPDATE SET value = 99"],
        &[
            "INSERT INTO notes (text) SELECT 'x' WHERE 1 RETURNING (SELECT 1)",
            "WITH x AS (SELECT 'epoch' AS k) UPDATE _pando_meta SET value = 99 FROM x WHERE key = k RETURNING *",
        ],
        &["/* c */ DELETE /* c */ FROM -- c\n _pando_event"],
        &["EXPLAIN DELETE FROM _pando_event"],
        &["EXPLAIN QUERY PLAN UPDATE _pando_meta SET value = 9"],
        &[
            "CREATE TRIGGER g AFTER INSERT ON notes BEGIN DELETE FROM _pando_event; END",
            "INSERT INTO notes (text) VALUES ('x')",
        ],
        &[
            "CREATE TRIGGER h BEFORE UPDATE ON other BEGIN UPDATE _pando_meta SET value = 99; END",
            "UPDATE other SET text = 'x'",
        ],
        &["CREATE VIEW v AS SELECT * FROM _pando_meta", "UPDATE v SET value = 99"],
        &[
            "CREATE TRIGGER i INSTEAD OF UPDATE ON v BEGIN UPDATE _pando_meta SET value = NEW.value; END",
            "UPDATE v SET value = 99",
        ],
        &["CREATE TABLE child (e REFERENCES _pando_event (seq) ON DELETE CASCADE)"],
        &["CREATE TABLE parent (id PRIMARY KEY)", "ALTER TABLE parent RENAME TO _pando_parent"],
        &["ALTER TABLE notes ADD COLUMN e REFERENCES _pando_event (seq)"],
        &["ALTER TABLE _pando_op ADD COLUMN x"],
        &["ALTER TABLE _pando_op RENAME COLUMN at TO x"],
        &["ALTER TABLE _pando_op DROP COLUMN at"],
        &["ALTER TABLE _pando_op RENAME TO mine"],
        &["CREATE TABLE \"_PaNdO_x\" AS SELECT 1"],
        &["CREATE TABLE IF NOT EXISTS _pando_x (a)"],
        &["CREATE VIEW _pando_v AS SELECT 1"],
        &["CREATE TRIGGER _pando_g AFTER INSERT ON notes BEGIN SELECT 1; END"],
        &["CREATE UNIQUE INDEX u ON _pando_event (topic)"],
        &["DROP INDEX _pando_client_at"],
        &["DROP TABLE IF EXISTS _pando_topic"],
        &["PRAGMA writable_schema = ON"],
        &["UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name LIKE '%pando%'"],
        &["INSERT INTO sqlite_master VALUES ('table', 'x', 'x', 0, 'CREATE TABLE x (a)')"],
        &["DELETE FROM main.sqlite_schema WHERE name = '_pando_op'"],
        &["UPDATE sqlite_dbpage SET data = zeroblob(4096) WHERE pgno = 1"],
        &["DELETE FROM dbstat"],
        &["INSERT INTO temp.sqlite_schema VALUES ('table', 'x', 'x', 0, '')"],
        &["CREATE TEMP TRIGGER g AFTER INSERT ON notes BEGIN DELETE FROM _pando_event; END"],
        &["CREATE TRIGGER temp.g AFTER INSERT ON main.notes BEGIN DELETE FROM _pando_event; END"],
        &["CREATE TABLE temp._pando_meta (key, value)"],
        &["CREATE TEMP VIEW _pando_meta AS SELECT 1"],
        &["CREATE TABLE g (a, b AS (pando_changed('sessions', 0, '', 'fake')) STORED)", "INSERT INTO g (a) VALUES (1)"],
        &["CREATE TABLE d (a, b DEFAULT (pando_changed('sessions', 0, '', 'fake')))", "INSERT INTO d (a) VALUES (1)"],
        &["CREATE TABLE k (a CHECK (pando_changed('sessions', 0, '', 'fake') IS NULL))", "INSERT INTO k VALUES (1)"],
        &["CREATE INDEX f ON notes (pando_changed('sessions', 0, '', 'fake'))"],
        &["CREATE TABLE _pando_track_0 (a)"],
        &["SELECT 1; DELETE FROM _pando_event"],
        &["SELECT 1;; DELETE FROM _pando_event"],
        &["DELETE FROM notes; COMMIT; DELETE FROM _pando_event"],
        &["DELETE FROM notes\0; DELETE FROM _pando_event"],
        &["SELECT 1 -- \r DELETE\n; DELETE FROM _pando_event"],
        &["SELECT 1 /* unfinished", "; DELETE FROM _pando_event"],
    ];
    for route in routes {
        for (mode, work) in [("exec", exec as fn(&[&str]) -> Work), ("ddl", ddl)] {
            let mut faults = Vec::new();
            for sql in *route {
                faults.extend(submit(&writer, work(&[sql])).await.err());
            }
            assert!(!faults.is_empty(), "{mode}: {route:?}");
            assert!(faults.iter().all(|fault| !fault.is(Code::Storage)), "{mode}: {route:?}: {faults:?}");
        }
        assert_eq!(ours(&bench), before, "{route:?}");
    }
    let cleaned = ["DROP TRIGGER g", "DROP TRIGGER h", "INSERT INTO notes (text) VALUES ('after')"];
    apply(&writer, ddl(&cleaned)).await;
    apply(&writer, session("alive")).await;
    bench.check_journal().await;
}

#[tokio::test]
async fn a_query_reaches_nothing_outside_and_changes_nothing() {
    let (bench, _writer) = prey().await;
    let before = ours(&bench);
    let readers = bench.readers();
    for sql in [
        "SELECT count(*) FROM pragma_wal_checkpoint",
        "SELECT * FROM pragma_wal_checkpoint('TRUNCATE')",
        "SELECT count(*) FROM pragma_journal_mode('DELETE')",
        "SELECT * FROM pragma_function_list",
        "SELECT * FROM pragma_user_version",
        "PRAGMA main.user_version = 9",
        "PRAGMA table_info = 9; PRAGMA user_version = 9",
        "PRAGMA optimize",
        "PRAGMA incremental_vacuum",
        "PRAGMA hard_heap_limit = 1",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA mmap_size = 0",
        "EXPLAIN DELETE FROM notes",
        "SELECT fts3_tokenizer('simple', x'00')",
        "SELECT LOAD_EXTENSION('x', 'y')",
        "SELECT writefile('/tmp/never', 'x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT edit('x')",
        "ATTACH 'file:/tmp/never?mode=rwc' AS x",
        "INSERT INTO notes (text) SELECT text FROM notes RETURNING id",
        "WITH gone AS (DELETE FROM notes RETURNING *) SELECT * FROM gone",
        "VALUES (1), (pando_changed('sessions', 0, '', 'fake'))",
        "CREATE TABLE IF NOT EXISTS notes (id)",
        "DROP TABLE IF EXISTS nothing_there",
    ] {
        assert!(readers.query(sql, (), QueryLimits::default()).await.is_err(), "{sql}");
    }
    assert_eq!(ours(&bench), before);
    assert_eq!(bench.value("SELECT count(*) FROM notes").await, 1);
}

/// Statements that would run for hours, or take all memory.
fn bombs() -> Vec<String> {
    let numbers =
        |limit: u64| format!("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {limit})");
    let endless = numbers(u64::MAX >> 1);
    let large = "hex(zeroblob(4000000))";
    vec![
        format!("{endless} SELECT count(*) FROM n"),
        format!("{endless} SELECT max(x) FROM n, n AS m, n AS o"),
        format!("{} SELECT count(*) FROM n AS a, n AS b, n AS c", numbers(100_000)),
        "SELECT hex(zeroblob(1000000000))".into(),
        "SELECT printf('%.*c', 1000000000, 'x')".into(),
        "SELECT printf('%1000000000d', 1)".into(),
        format!("SELECT length(replace({large}, '0', {large}))"),
        format!("{} SELECT length(group_concat({large})) FROM n", numbers(100)),
        "SELECT randomblob(2000000000)".into(),
        // Quadratic functions: an interrupt cannot reach into them.
        format!("{endless} SELECT count(instr(zeroblob(8000000), zeroblob(4000000) || x'01')) FROM n"),
        format!("{endless} SELECT count(replace({large}, substr({large}, 1, 4000000) || '1', 'x')) FROM n"),
        format!(
            "{} SELECT length(trim({large}, (SELECT group_concat(char(x + 100), '') FROM n) || '0')) FROM n, n AS m, n AS o",
            numbers(100_000)
        ),
        format!("SELECT {large} LIKE '%' || substr({large}, 1, 50000) || '1'"),
        format!("SELECT {large} GLOB '*' || substr({large}, 1, 50000) || '1'"),
        format!("SELECT json_set('{{}}'{})", ", '$.a', 1".repeat(64)),
        "SELECT json_patch(zeroblob(10), zeroblob(10))".into(),
        format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("SELECT {}1", "1+".repeat(400_000)),
        format!("SELECT {}1", "-".repeat(500_000)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(40_000)),
        format!("SELECT {}1", "1,".repeat(300_000)),
        format!("SELECT max({}1)", "1,".repeat(300_000)),
        format!("SELECT * FROM notes WHERE id IN ({}1)", "(SELECT 1),".repeat(80_000)),
        format!("SELECT {}1{}", "abs(".repeat(200_000), ")".repeat(200_000)),
        format!("SELECT * FROM notes{}", ", notes".repeat(70)),
        format!("SELECT json('{}')", "[".repeat(900_000)),
        format!("SELECT ?{}", i32::MAX),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_or_end_in_time_and_leave_the_writer_alive() {
    let bench = Bench::new();
    let tuning = Tuning { write_time: Duration::from_millis(300), ..Tuning::default() };
    let writer = bench.tuned(tuning);
    apply(&writer, ddl(&["CREATE TABLE notes (id INTEGER PRIMARY KEY, text)"])).await;
    let readers = bench.readers();
    let limits = QueryLimits { time: Duration::from_millis(300), ..QueryLimits::default() };
    for sql in bombs() {
        let shown = &sql[..sql.len().min(120)];
        let began = Instant::now();
        let written = submit(&writer, exec(&[&sql])).await;
        assert!(written.is_err(), "{shown}");
        let read = readers.query(sql.as_str(), (), limits).await;
        assert!(read.is_err(), "{shown}");
        assert!(began.elapsed() < BOUND, "{shown} took {:?}", began.elapsed());
    }
    apply(&writer, session("alive")).await;
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 1);
}
