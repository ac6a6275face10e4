//! A write that is sent again applies once, whoever is the primary by then.

use serde_json::Value;

use crate::support::{Outcome, PandoProcess, Sandbox, pando};

/// Starts a primary in a workdir with a table of counters.
fn with_counter() -> (Sandbox, PandoProcess) {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    for statement in [
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        "INSERT INTO counters VALUES ('a', 0)",
    ] {
        let done = pando(&sandbox, &["db", "exec", "--ddl", statement]);
        assert_eq!(done.code, Some(0), "{done}");
    }
    (sandbox, instance)
}

/// Adds to the counter under an op id.
fn add(sandbox: &Sandbox, op_id: &str, how_much: i64) -> Outcome {
    let statement = format!("UPDATE counters SET value = value + {how_much} WHERE name = 'a'");
    pando(sandbox, &["--json", "db", "exec", "--op-id", op_id, &statement])
}

fn value(sandbox: &Sandbox) -> i64 {
    sandbox.count("SELECT value FROM counters WHERE name = 'a'")
}

#[test]
fn a_retried_write_applies_once() {
    let (sandbox, _instance) = with_counter();
    let first: Value = add(&sandbox, "op-1", 1).json();
    let again: Value = add(&sandbox, "op-1", 1).json();
    assert_eq!((&first["seq"], &first["results"]), (&again["seq"], &again["results"]), "the stored answer comes back");
    assert_eq!(value(&sandbox), 1);
    add(&sandbox, "op-2", 1).json::<Value>();
    assert_eq!(value(&sandbox), 2, "another op is another write");
}

#[test]
fn a_write_retried_after_a_takeover_applies_once() {
    let (sandbox, mut first) = with_counter();
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let before: Value = add(&sandbox, "op-1", 1).json();
    first.kill();
    second.becomes("primary");
    let after: Value = add(&sandbox, "op-1", 1).json();
    assert_eq!((&before["seq"], &before["results"]), (&after["seq"], &after["results"]));
    assert_eq!(value(&sandbox), 1);
}

#[test]
fn an_op_id_used_for_another_write_is_a_conflict() {
    let (sandbox, _instance) = with_counter();
    add(&sandbox, "op-1", 1).json::<Value>();
    let other = add(&sandbox, "op-1", 5);
    assert_eq!(other.code, Some(6), "{other}");
    assert!(other.stderr.contains("E_KEY_REUSED"), "{other}");
    assert_eq!(value(&sandbox), 1);
}

#[test]
fn what_was_written_is_read_at_once_from_the_file() {
    let (sandbox, _instance) = with_counter();
    for turn in 1..=5 {
        add(&sandbox, &format!("op-{turn}"), 1).json::<Value>();
        let read: Value = pando(&sandbox, &["--json", "db", "query", "SELECT value FROM counters"]).json();
        assert_eq!(read["rows"][0][0], turn, "{read}");
    }
}

#[test]
fn a_failing_write_leaves_nothing_behind() {
    let (sandbox, _instance) = with_counter();
    let head = |sandbox: &Sandbox| sandbox.count("SELECT max(seq) FROM _pando_event WHERE topic LIKE 'db.%'");
    let before = head(&sandbox);
    let statements = serde_json::json!({"statements": [
        {"sql": "INSERT INTO counters VALUES ('b', 1)"},
        {"sql": "INSERT INTO counters VALUES ('a', 1)"},
    ]});
    let failed = pando(&sandbox, &["ipc", "call", "db.exec", &statements.to_string()]);
    assert_eq!(failed.code, Some(6), "{failed}");
    assert_eq!(sandbox.count("SELECT count(*) FROM counters"), 1, "they commit or fail together");
    assert_eq!(head(&sandbox), before, "no event of what was rolled back");
}

#[test]
fn the_durability_of_a_workdir_outlives_the_primary_that_set_it() {
    let sandbox = Sandbox::new();
    let mut first = PandoProcess::start(&sandbox, &["--durability", "os"]);
    first.becomes("primary");
    first.kill();
    let (_second, _) = PandoProcess::primary(&sandbox);
    let write = pando(&sandbox, &["--json", "db", "exec", "--ddl", "CREATE TABLE t (a)"]).json::<Value>();
    let status = pando(&sandbox, &["--json", "status"]).json::<Value>();
    assert_eq!((&write["durability"], &status["primary"]["durability"]), (&"os".into(), &"os".into()));
    let text = std::fs::read_to_string(sandbox.workdir().database_path().with_file_name("settings.json")).unwrap();
    assert!(text.contains(r#""durability": "os""#), "{text}");
}
