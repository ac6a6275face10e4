//! When the disk misbehaves, writes fail and say so, reads go on, and nothing that was acknowledged is lost.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::support::{Outcome, PandoProcess, Sandbox, eventually, may_mount, pando, pando_read_only};

/// How long a service may take to come back.
const SOON: Duration = Duration::from_secs(10);

/// Inserts a row of about 8 KiB.
fn insert(sandbox: &Sandbox) -> Outcome {
    pando(sandbox, &["--json", "db", "exec", "INSERT INTO notes (text) VALUES (hex(randomblob(4096)))"])
}

fn with_notes() -> (Sandbox, PandoProcess) {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    let made = pando(&sandbox, &["db", "exec", "--ddl", "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"]);
    assert_eq!(made.code, Some(0), "{made}");
    (sandbox, instance)
}

/// Writes until a write fails. Returns how many did not, and the failure.
fn write_until_it_fails(sandbox: &Sandbox) -> (i64, Outcome) {
    for acknowledged in 0..100 {
        let written = insert(sandbox);
        if written.code != Some(0) {
            return (acknowledged, written);
        }
    }
    panic!("no write failed");
}

#[test]
fn without_room_writes_fail_reads_go_on_and_with_room_writing_goes_on_by_itself() {
    let (sandbox, instance) = with_notes();
    let log = sandbox.workdir().pando_dir().join("pando.db-wal");
    let pid = Pid::from_raw(instance.pid().try_into().unwrap());
    let limit = |bytes| prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    limit(Some(fs::metadata(log).unwrap().len() + 100_000));

    let (acknowledged, failed) = write_until_it_fails(&sandbox);
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(failed.stderr.contains("\"E_STORAGE\"") && failed.stderr.contains("hint: "), "{failed}");
    assert_eq!(insert(&sandbox).code, Some(1), "the next one fails, too");
    let read: Value = pando(&sandbox, &["ipc", "call", "db.query", r#"{"sql": "SELECT count(*) FROM notes"}"#]).json();
    assert_eq!(read["rows"][0][0], acknowledged, "what was acknowledged is there, and no more");

    limit(None);
    assert_eq!(insert(&sandbox).code, Some(0));
    assert_eq!(sandbox.count("SELECT count(*) FROM notes"), acknowledged + 1);
    let sound = pando(&sandbox, &["db", "check"]);
    assert_eq!(sound.code, Some(0), "{sound}");
}

#[test]
fn what_was_left_on_a_read_only_file_system_can_be_read_and_copied() {
    let (sandbox, instance) = with_notes();
    // Some systems let nobody mount anything.
    let Ok(()) = may_mount(sandbox.path()) else { return };
    let copy = sandbox.root().join("copy.db");
    let check = |rows: i64| {
        let read = |args: &[&str]| {
            let outcome = pando_read_only(&sandbox, args);
            assert_eq!(outcome.code, Some(0), "{outcome}");
            outcome.stdout
        };
        assert_eq!(read(&["db", "query", "--csv", "SELECT count(*) FROM notes"]), format!("count(*)\r\n{rows}\r\n"));
        read(&["db", "stats"]);
        read(&["db", "check"]);
        read(&["db", "backup", "--force", copy.to_str().unwrap()]);
        let restored = Sandbox::new();
        let outcome = pando(&restored, &["db", "restore", copy.to_str().unwrap()]);
        assert_eq!(outcome.code, Some(0), "{outcome}");
        assert_eq!(restored.count("SELECT count(*) FROM notes"), rows);
    };
    insert(&sandbox).json::<Value>();
    check(1);
    let down = pando(&sandbox, &["down"]);
    assert_eq!(down.code, Some(0), "{down}");
    drop(instance);
    assert!(!sandbox.workdir().pando_dir().join("pando.db-wal").exists());
    check(1);
    let (instance, _) = PandoProcess::primary(&sandbox);
    insert(&sandbox).json::<Value>();
    drop(instance);
    assert!(sandbox.workdir().pando_dir().join("pando.db-wal").exists(), "it was killed");
    check(2);
}

#[test]
fn a_database_that_is_replaced_underneath_is_noticed_and_followers_are_told() {
    let (sandbox, _instance) = with_notes();
    let path = sandbox.workdir().database_path();
    insert(&sandbox).json::<Value>();
    let copied = pando(&sandbox, &["db", "backup", "copy.db"]);
    assert_eq!(copied.code, Some(0), "{copied}");
    insert(&sandbox).json::<Value>();
    let before: Value = pando(&sandbox, &["ipc", "call", "instance.info"]).json();
    fs::rename(sandbox.path().join("copy.db"), &path).unwrap();
    // The log belongs to the former file; whoever replaces a database by hand takes it away, too.
    for suffix in ["pando.db-wal", "pando.db-shm"] {
        fs::remove_file(sandbox.workdir().pando_dir().join(suffix)).unwrap();
    }
    let after = eventually("a primary of the new file", SOON, || {
        drop(insert(&sandbox));
        let info = pando(&sandbox, &["ipc", "call", "instance.info"]);
        let info: Value = serde_json::from_str(&info.stdout).ok()?;
        (info["database"] != before["database"]).then_some(info)
    });
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64(), "{after}");
    let events: Value =
        pando(&sandbox, &["ipc", "call", "events.since", r#"{"after": 0, "topics": ["db.restored"]}"#]).json();
    assert_eq!(events["events"][0]["payload"]["copy_of"], before["database"], "{events}");
}

#[test]
fn a_damaged_database_says_so_with_the_next_step() {
    let (sandbox, instance) = with_notes();
    let large = "INSERT INTO notes (text) VALUES (hex(randomblob(1000000)))";
    assert_eq!(pando(&sandbox, &["db", "exec", large]).code, Some(0));
    assert_eq!(pando(&sandbox, &["down"]).code, Some(0));
    drop(instance);
    let path = sandbox.workdir().database_path();
    let mut bytes = fs::read(&path).unwrap();
    let pages_of_notes = bytes.len() / 2;
    bytes[pages_of_notes..pages_of_notes + 8_192].fill(0x55);
    fs::write(&path, &bytes).unwrap();
    let (instance, _) = PandoProcess::primary(&sandbox);
    let failed = pando(&sandbox, &["db", "query", "SELECT count(*) FROM notes WHERE text LIKE '%x%'"]);
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(failed.stderr.contains("malformed") && failed.stderr.contains("pando db restore"), "{failed}");
    drop(instance);
    bytes[4_096..].fill(0x55);
    fs::write(&path, &bytes).unwrap();
    let refused = pando(&sandbox, &["up"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.stderr.contains("malformed") && refused.stderr.contains("pando db restore"), "{refused}");
}
