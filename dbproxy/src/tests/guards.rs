//! What forwarded SQL may not do.

use pando_ipc::fault::Code;

use super::*;

#[track_caller]
fn check_forbidden(sql: &str, result: Result<Ack, Fault>) {
    let fault = result.expect_err(sql);
    assert!(fault.is(Code::Forbidden), "{sql}: {fault}");
    assert!(fault.message.starts_with("dbproxy: INVALID_PARAMS (exec): "), "{sql}: {fault}");
}

#[tokio::test]
async fn each_forbidden_class_of_sql_is_refused() {
    let bench = Bench::new();
    let writer = bench.writer();
    for sql in [
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version",
        "SELECT * FROM pragma_database_list",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT pando_write",
        "RELEASE pando_write",
        "ROLLBACK TO pando_write",
        "SELECT load_extension('x')",
        "SELECT pando_changed('sessions', 0, 's', 'fake')",
        "SELECT fts3_tokenizer('simple')",
        "INSERT INTO _pando_meta VALUES ('x', 1)",
        "UPDATE _PANDO_meta SET value = 99",
        "DELETE FROM _pando_event",
        "WITH x AS (SELECT 1) INSERT INTO _pando_op SELECT * FROM _pando_op",
        "CREATE TABLE t (a)",
        "CREATE INDEX i ON sessions (title)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER g AFTER INSERT ON sessions BEGIN SELECT 1; END",
        "DROP TABLE sessions",
        "ALTER TABLE sessions ADD COLUMN x",
        "ANALYZE",
        "REINDEX",
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMP TRIGGER g AFTER INSERT ON sessions BEGIN SELECT 1; END",
        "CREATE TEMP VIEW v AS SELECT 1",
        "DROP TRIGGER temp._pando_track_0_INSERT",
        "CREATE VIRTUAL TABLE f USING fts5 (a)",
    ] {
        check_forbidden(sql, submit(&writer, exec(&[sql])).await);
    }
    for sql in [
        "ATTACH ':memory:' AS other",
        "PRAGMA writable_schema = ON",
        "COMMIT",
        "CREATE TABLE _pando_mine (a)",
        "CREATE INDEX _pando_i ON sessions (title)",
        "CREATE INDEX i ON _pando_event (at)",
        "CREATE TRIGGER g AFTER INSERT ON _pando_event BEGIN SELECT 1; END",
        "DROP TABLE _pando_op",
        "DROP INDEX _pando_client_at",
        "ALTER TABLE _pando_event RENAME TO e",
        "ALTER TABLE skills RENAME TO _pando_skills",
        "CREATE TABLE spy (a REFERENCES _pando_event (seq))",
        "CREATE TEMP TABLE t (a)",
        "CREATE VIRTUAL TABLE f USING fts5 (a)",
        "UPDATE _pando_meta SET value = 99",
        "DROP TABLE Sessions",
        "CREATE TABLE pragma_mine (a)",
        "CREATE VIEW Pragma_mine AS SELECT 1",
    ] {
        check_forbidden(sql, submit(&writer, ddl(&[sql])).await);
    }
    assert_eq!(writer.head(), 0, "nothing happened");
    apply(&writer, session("alive")).await;
}

#[tokio::test]
async fn vacuum_and_the_catalog_stay_out_of_reach() {
    let bench = Bench::new();
    let writer = bench.writer();
    for sql in ["VACUUM", "VACUUM INTO '/tmp/never'", "UPDATE sqlite_master SET sql = ''", "DELETE FROM sqlite_schema"]
    {
        assert!(submit(&writer, exec(&[sql])).await.is_err(), "{sql}");
        assert!(submit(&writer, ddl(&[sql])).await.is_err(), "{sql}");
    }
    apply(&writer, session("alive")).await;
}

#[tokio::test]
async fn a_string_holds_one_statement() {
    let bench = Bench::new();
    let writer = bench.writer();
    for sql in [
        "DELETE FROM sessions; DELETE FROM files",
        "SELECT 1; COMMIT",
        "SELECT 1; -- \n /* */ SELECT 2",
        "",
        "  -- nothing\n",
        ";",
        "SELECT 1\0",
    ] {
        let fault = submit(&writer, exec(&[sql])).await.expect_err(sql);
        assert!(fault.message.starts_with("dbproxy: INVALID_PARAMS (exec): "), "{sql}: {fault}");
    }
    apply(&writer, exec(&["SELECT 1; -- a comment\n "])).await;
}

#[tokio::test]
async fn sizes_are_limited() {
    let bench = Bench::new();
    let writer = bench.writer();
    let long = format!("SELECT '{}'", "x".repeat(crate::MAX_SQL_BYTES));
    let rows = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10001) SELECT x FROM n";
    let bytes = "SELECT hex(zeroblob(5000000))";
    let value = "SELECT length(zeroblob(100000000))";
    for sql in [long.as_str(), rows, bytes, value] {
        let fault = submit(&writer, exec(&[sql])).await.expect_err(sql);
        assert!(fault.is(Code::TooLarge), "{fault}");
    }
    let parts = ["SELECT hex(zeroblob(2500000))"; 2];
    assert!(submit(&writer, exec(&parts)).await.unwrap_err().is(Code::TooLarge), "the limit is the whole write's");
}

#[tokio::test]
async fn statements_of_ours_cannot_be_met_by_their_text() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let ours = "INSERT INTO _pando_event (seq, epoch, topic, prev, at, envelope) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let params = (9, 1, "a", 0, 0, "{}");
    let work = Work::Exec { statements: vec![Statement::new(ours, params)], ddl: false };
    check_forbidden(ours, submit(&writer, work).await);
}

#[tokio::test]
async fn a_trigger_of_the_application_gains_no_rights_in_a_named_write() {
    let bench = Bench::new();
    let writer = bench.writer();
    let sneaky = "CREATE TRIGGER sneaky AFTER INSERT ON sessions BEGIN UPDATE _pando_meta SET value = 99; END";
    apply(&writer, ddl(&[sneaky])).await;
    let fault = submit(&writer, session("a")).await.unwrap_err();
    assert!(fault.is(Code::Forbidden), "{fault}");
    let fake = "CREATE TRIGGER sneaky AFTER INSERT ON sessions BEGIN SELECT pando_changed('files', 0, '', 'x'); END";
    apply(&writer, ddl(&["DROP TRIGGER sneaky", fake])).await;
    assert!(submit(&writer, session("a")).await.is_err());
    assert_eq!(bench.value("SELECT value FROM _pando_meta WHERE key = 'epoch'").await, 1);
}

#[tokio::test]
async fn parameters_must_fit() {
    let bench = Bench::new();
    let writer = bench.writer();
    let named = |name: &str| crate::Params::named([(name, 1)]);
    for (sql, params) in [
        ("SELECT ?", crate::Params::default()),
        ("SELECT 1", [1].into()),
        ("SELECT :a", named("b")),
        ("SELECT :a, :b", named("a")),
        ("SELECT :a", named("@a")),
    ] {
        let work = Work::Exec { statements: vec![Statement::new(sql, params)], ddl: false };
        let fault = submit(&writer, work).await.expect_err(sql);
        assert!(fault.message.starts_with("dbproxy: INVALID_PARAMS (exec): params: "), "{sql}: {fault}");
    }
}

#[tokio::test]
async fn the_schema_may_be_changed_when_that_is_said() {
    let bench = Bench::new();
    let writer = bench.writer();
    for sql in [
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
        "CREATE TABLE c AS SELECT 1 AS x",
        "CREATE UNIQUE INDEX t_b ON t (b)",
        "CREATE VIEW v AS SELECT b FROM t",
        "CREATE TRIGGER g INSTEAD OF INSERT ON v BEGIN INSERT INTO t (b) VALUES (NEW.b); END",
        "ALTER TABLE t ADD COLUMN d",
        "ALTER TABLE c RENAME COLUMN x TO y",
        "ALTER TABLE t DROP COLUMN d",
        "INSERT INTO v VALUES (7)",
        "ANALYZE",
        "REINDEX",
        "DROP TRIGGER g",
        "DROP VIEW v",
        "DROP INDEX t_b",
        "DROP TABLE t",
    ] {
        submit(&writer, ddl(&[sql])).await.expect(sql);
    }
    let told = bench.events.lock().unwrap()[0].payload.read::<Value>().unwrap()["payload"].clone();
    assert_eq!(told, json!({"method": "exec", "tables": {"t": {"created": 1}}}), "through a view and a trigger");
}
