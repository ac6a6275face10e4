//! A write that is sent again applies once, whoever is the primary by then.

use pando::{Batch, Fault, Instance, Options, Tx, Workdir, WriteError, Writes};
use serde_json::{Value, json};

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

#[test]
fn what_became_of_a_write_is_told_by_the_next_primary_and_stays() {
    let (sandbox, mut first) = with_counter();
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let applied: Value = add(&sandbox, "op-1", 1).json();
    let outcome = |op_id: &str| -> Value {
        pando(&sandbox, &["--json", "ipc", "call", "db.outcome", &json!({"op_id": op_id}).to_string()]).json()
    };
    assert_eq!(outcome("op-2"), json!({"outcome": "not_applied"}));
    first.kill();
    second.becomes("primary");
    let told = outcome("op-1");
    assert_eq!((&told["outcome"], &told["ack"]["seq"]), (&json!("applied"), &applied["seq"]), "{told}");
    let late = add(&sandbox, "op-2", 1);
    assert_eq!(late.code, Some(6), "{late}");
    assert!(late.stderr.contains("E_ABANDONED"), "{late}");
    assert_eq!(value(&sandbox), 1);
}

/// Moves money between the accounts of an application, and tells everyone.
fn transfer(tx: &Tx<'_>, cents: i64) -> Result<i64, Fault> {
    let held = tx.query_one("SELECT cents FROM accounts WHERE id = 1", (), |row| row.get::<i64>("cents"))?;
    let left = held.unwrap_or(0) - cents;
    if left < 0 {
        return Err(tx.refuse("insufficient funds"));
    }
    tx.execute("UPDATE accounts SET cents = ?1 WHERE id = 1", [left])?;
    tx.execute("UPDATE accounts SET cents = cents + ?1 WHERE id = 2", [cents])?;
    Ok(left)
}

async fn join_with_transfer(sandbox: &Sandbox) -> Instance {
    let writes = Writes::new();
    writes.register("transfer", transfer).unwrap();
    let options = Options { writes, ..Options::default() };
    Instance::join(Workdir::open(sandbox.path()).unwrap(), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_own_writes_run_on_whoever_leads() {
    let sandbox = Sandbox::new();
    let first = join_with_transfer(&sandbox).await;
    let second = join_with_transfer(&sandbox).await;
    let made = pando(
        &sandbox,
        &["db", "exec", "--ddl", "CREATE TABLE accounts (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL)"],
    );
    assert_eq!(made.code, Some(0), "{made}");
    let mut batch = Batch::new();
    let one = batch.execute("INSERT INTO accounts (cents) VALUES (100)", ());
    batch.execute("INSERT INTO accounts (id, cents) VALUES (?1 + 1, 0)", [one.last_insert_rowid()]);
    assert_eq!(second.db().transaction(batch).await.unwrap().results[1].rows_affected, 1);
    for (instance, left) in [(&first, 70), (&second, 40)] {
        assert_eq!(instance.db().named("transfer", &json!(30)).await.unwrap(), left);
    }
    let over_the_wire =
        json!({"method": "transfer", "params": 10, "meta": {"request_id": "r-1", "source_instance_id": "app"}});
    for _ in 0..2 {
        let answer = pando(&sandbox, &["--json", "ipc", "call", "db.write", &over_the_wire.to_string()]);
        assert_eq!(answer.json::<Value>(), 30, "once, however often it is sent");
    }
    first.leave().await;
    assert_eq!(second.db().named("transfer", &json!(30)).await.unwrap(), 0);
    let refused = second.db().named("transfer", &json!(1)).await.unwrap_err();
    assert!(
        matches!(&refused, WriteError::Refused(fault) if fault.message.ends_with("insufficient funds")),
        "{refused:?}"
    );
    let sum = second.db().query("SELECT cents FROM accounts ORDER BY id", (), |row| row.get::<i64>(0)).await.unwrap();
    assert_eq!(sum, [0, 100]);
    second.leave().await;
}
