//! The database from the shell: what is in it, copies of it, and what is put in its place.

use std::fs;
use std::time::Duration;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Outcome, PandoProcess, Sandbox, pando, tail};

/// How long an event may take.
const SOON: Duration = Duration::from_secs(10);

fn write(sandbox: &Sandbox, sql: &str) {
    let done = pando(sandbox, &["db", "exec", "--ddl", sql]);
    assert_eq!(done.code, Some(0), "{done}");
}

/// Starts a primary in a workdir with a table of all kinds of values.
fn with_values() -> (Sandbox, PandoProcess) {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    write(&sandbox, "CREATE TABLE kinds (id INTEGER PRIMARY KEY, value)");
    write(&sandbox, "CREATE INDEX kinds_value ON kinds (value)");
    write(&sandbox, "INSERT INTO kinds VALUES (1, 'text'), (2, NULL), (3, x'00ff'), (4, 1.5), (5, 'NULL')");
    (sandbox, instance)
}

#[track_caller]
fn check_done(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, Some(0), "{outcome}");
    assert_eq!(outcome.stderr, "", "{outcome}");
    outcome
}

#[test]
fn rows_are_printed_as_a_table_as_csv_and_as_json_with_and_without_a_primary() {
    let (sandbox, instance) = with_values();
    let query = "SELECT id, value FROM kinds ORDER BY id";
    let all = || {
        [&[][..], &["--csv"], &["--json"]]
            .map(|how| pando(&sandbox, &[&["db", "query", query], how].concat()).to_string())
    };
    let led = all();
    assert_snapshot!(led.join("\n"), @r#"
    $ pando db query SELECT id, value FROM kinds ORDER BY id
    id  value
     1  text
     2  NULL
     3  x'00ff'
     4  1.5
     5  'NULL'
    exit 0
    $ pando db query SELECT id, value FROM kinds ORDER BY id --csv
    id,value
    1,text
    2,
    3,x'00ff'
    4,1.5
    5,NULL
    exit 0
    $ pando db query SELECT id, value FROM kinds ORDER BY id --json
    {"columns":["id","value"],"rows":[[1,"text"],[2,null],[3,{"$blob":"AP8="}],[4,1.5],[5,"NULL"]]}
    exit 0
    "#);
    drop(instance);
    assert_eq!(all(), led);
}

#[test]
fn tables_schema_and_stats_tell_what_is_there() {
    let (sandbox, _instance) = with_values();
    let tables = check_done(pando(&sandbox, &["db", "tables"]));
    assert!(tables.stdout.contains("\nkinds             table        2     5   8192\n"), "{tables}");
    assert!(!tables.stdout.contains("_pando_"), "{tables}");
    let all: Value = pando(&sandbox, &["db", "tables", "--all", "--json"]).json();
    assert!(all["tables"].as_array().unwrap().iter().any(|table| table["name"] == "_pando_event"));
    assert_snapshot!(pando(&sandbox, &["db", "schema", "kinds"]), @r"
    $ pando db schema kinds
    CREATE TABLE kinds (id INTEGER PRIMARY KEY, value);
    CREATE INDEX kinds_value ON kinds (value);
    exit 0
    ");
    assert_snapshot!(pando(&sandbox, &["db", "schema", "kind"]).stderr.lines().last().unwrap(), @"hint: list them with 'pando db tables --all'");
    let stats: Value = pando(&sandbox, &["db", "stats", "--json"]).json();
    assert_eq!(stats["head"], sandbox.count("SELECT max(seq) FROM _pando_event"));
    assert_eq!(stats["epoch"], 1);
    check_done(pando(&sandbox, &["db", "stats"]));
}

#[test]
fn a_sound_database_passes_and_a_damaged_one_is_named_with_what_is_wrong() {
    let (sandbox, instance) = with_values();
    write(
        &sandbox,
        "CREATE TABLE big AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000) SELECT x, hex(randomblob(50)) AS y FROM n",
    );
    let asked: Value = pando(&sandbox, &["ipc", "call", "db.check"]).json();
    assert_eq!((&asked["ok"], &asked["problems"]), (&Value::Bool(true), &serde_json::json!([])));
    let sound = check_done(pando(&sandbox, &["db", "check"]));
    assert!(sound.stdout.starts_with("sound: "), "{sound}");
    drop(instance);
    check_done(pando(&sandbox, &["db", "backup", "good.db"]));
    let path = sandbox.path().join("good.db");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 40_960;
    bytes[at..at + 8_192].fill(0x55);
    fs::write(sandbox.workdir().database_path(), bytes).unwrap();
    drop(fs::remove_file(sandbox.workdir().pando_dir().join("pando.db-wal")));
    let damaged = pando(&sandbox, &["db", "check"]);
    assert_eq!(damaged.code, Some(1), "{damaged}");
    assert!(!damaged.stdout.is_empty(), "what is wrong is data: {damaged}");
    assert!(damaged.stderr.contains("pando db restore"), "{damaged}");
    check_done(pando(&sandbox, &["db", "restore", "good.db"]));
    check_done(pando(&sandbox, &["db", "check"]));
}

#[test]
fn a_restore_waits_for_nobody_and_names_who_is_there() {
    let (sandbox, mut instance) = with_values();
    let _redacted = sandbox.redact();
    check_done(pando(&sandbox, &["db", "backup", "copy.db"]));
    write(&sandbox, "DELETE FROM kinds");
    assert_snapshot!(pando(&sandbox, &["db", "restore", "copy.db"]), @r"
    $ pando db restore copy.db
    error: [workdir] is in use (held by [inst], pid [pid], [pando], since [time]); a restore would lose what is written meanwhile
    hint: end its instances first: 'pando down', and close the programs that 'pando ipc instances' still lists
    exit 6
    ");
    assert_snapshot!(pando(&sandbox, &["db", "backup", "copy.db"]), @r"
    $ pando db backup copy.db
    error: [workdir]/copy.db exists
    hint: name another file, or replace it with '--force'
    exit 6
    ");
    assert_snapshot!(pando(&sandbox, &["db", "backup", "--force", ".pando/ipc.lock"]), @r"
    $ pando db backup --force .pando/ipc.lock
    error: [workdir]/.pando/ipc.lock lies in [workdir]/.pando, which is for Pando's own files
    hint: name a file outside of [workdir]/.pando
    exit 2
    ");
    let mut observer = tail(&sandbox, &["db.*", "--since", "all"]);
    observer.wait_for("what was deleted", SOON, |line| line.text.contains("\"kinds\":{\"deleted\"").then_some(()));
    // Somebody whose read keeps the log: not all of it can be moved into the database.
    let reader = sandbox.database();
    let held = reader.unchecked_transaction().unwrap();
    held.query_row("SELECT count(*) FROM kinds", [], |_| Ok(())).unwrap();
    write(&sandbox, "INSERT INTO kinds VALUES (7, 'in the log')");
    check_done(pando(&sandbox, &["down"]));
    instance.end(SOON);
    assert_snapshot!(pando(&sandbox, &["db", "restore", "copy.db"]), @r"
    $ pando db restore copy.db
    error: somebody still reads [workdir]/.pando/pando.db, so its log cannot be moved into it
    hint: end who reads it, find it: 'fuser -v [workdir]/.pando/pando.db'; nothing was changed
    exit 6
    ");
    assert_eq!(sandbox.count("SELECT count(*) FROM kinds"), 1);
    drop(held);
    check_done(pando(&sandbox, &["db", "restore", "copy.db"]));
    assert_eq!(sandbox.count("SELECT count(*) FROM kinds"), 5);
    let (_next, role) = PandoProcess::primary(&sandbox);
    assert_eq!(role.epoch, Some(2));
    observer.wait_for("db.restored", SOON, |line| line.text.contains("\"db.restored\"").then_some(()));
    write(&sandbox, "INSERT INTO kinds VALUES (9, 'after')");
    observer.wait_for("the next change", SOON, |line| line.text.contains("\"kinds\":{\"created\":1}").then_some(()));
}

#[test]
fn a_foreign_reader_that_pins_the_log_is_named_once_and_its_end_is_told() {
    let (sandbox, _instance) = with_values();
    write(&sandbox, "CREATE TABLE blobs (b)");
    let mut observer = tail(&sandbox, &["--since", "0", "db.wal.*"]);
    let reader = sandbox.database();
    let held = reader.unchecked_transaction().unwrap();
    held.query_row("SELECT count(*) FROM kinds", [], |_| Ok(())).unwrap();
    for _ in 0..20 {
        write(&sandbox, "INSERT INTO blobs VALUES (zeroblob(8000000))");
    }
    let pinned: Value = observer.wait_for("db.wal.pinned", SOON, |line| serde_json::from_str(&line.text).ok());
    assert_eq!(pinned["topic"], "db.wal.pinned");
    assert_eq!(pinned["payload"]["readers"][0]["pid"], std::process::id(), "this test reads: {pinned}");
    drop(held);
    let released: Value = observer.wait_for("its end", SOON, |line| serde_json::from_str(&line.text).ok());
    assert_eq!(released["topic"], "db.wal.released", "one alarm, one end: {released}");
}
