//! Every fault that is made here for real is found by name, with its next step.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pando_dbproxy::file_system::FileSystem;
use pando_ipc::ports_for_path;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{PandoProcess, Sandbox, eventually, pando};

/// How long a role may take to be written down.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// Returns what the check found; the exit code tells the worst of all.
#[track_caller]
fn examine(sandbox: &Sandbox, id: &str) -> Value {
    let outcome = pando(sandbox, &["doctor", "--json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error} in {outcome}"));
    let code = match report["status"].as_str().unwrap() {
        "fault" => 1,
        "warning" => 8,
        _ => 0,
    };
    assert_eq!(outcome.code, Some(code), "{outcome}");
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id} in {report}")).clone()
}

#[track_caller]
fn check_finds(sandbox: &Sandbox, id: &str, status: &str, words: &str) {
    let finding = examine(sandbox, id);
    assert_eq!(finding["status"], status, "{finding}");
    let said = finding["summary"].as_str().unwrap();
    assert!(said.contains(words), "{words:?} in {finding}");
    let has_next = finding["remediation"].as_str().is_some_and(|next| !next.is_empty());
    assert_eq!(has_next, matches!(status, "warning" | "fault"), "{finding}");
}

/// A workdir in which a primary was, and is no more.
fn after_a_primary() -> Sandbox {
    let sandbox = Sandbox::new();
    let (mut instance, _) = PandoProcess::primary(&sandbox);
    instance.kill();
    sandbox
}

fn edit_lock(sandbox: &Sandbox, key: &str, value: Value) {
    let path = sandbox.workdir().lock_path();
    let mut info: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    info[key] = value;
    fs::write(&path, info.to_string()).unwrap();
}

#[test]
fn an_empty_and_a_healthy_workdir_have_no_fault() {
    let sandbox = Sandbox::new();
    check_finds(&sandbox, "primary.answers", "skipped", "nobody leads");
    check_finds(&sandbox, "database.opens", "skipped", "no database yet");
    let (_instance, role) = PandoProcess::primary(&sandbox);
    check_finds(&sandbox, "primary.answers", "ok", &role.instance_id);
    let report: Value = serde_json::from_str(&pando(&sandbox, &["doctor", "--json"]).stdout).unwrap();
    let troubled: Vec<_> = report["checks"].as_array().unwrap().iter().filter(|it| it["status"] == "fault").collect();
    assert!(troubled.is_empty(), "{troubled:?}");
}

#[test]
fn a_directory_that_others_may_enter_is_found() {
    let sandbox = after_a_primary();
    let dir = sandbox.workdir().pando_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    check_finds(&sandbox, "workdir.permissions", "warning", "(755)");
}

#[test]
fn a_lock_that_is_no_file_or_has_two_names_is_found() {
    let sandbox = Sandbox::new();
    sandbox.workdir().prepare().unwrap();
    fs::create_dir(sandbox.workdir().lock_path()).unwrap();
    check_finds(&sandbox, "lock.file", "fault", "no ordinary file");
    check_finds(&sandbox, "primary.answers", "fault", "");
    let sandbox = after_a_primary();
    fs::hard_link(sandbox.workdir().lock_path(), sandbox.path().join("alias")).unwrap();
    check_finds(&sandbox, "lock.file", "fault", "2 names");
}

#[test]
fn a_stopped_primary_and_its_removed_lock_are_found() {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    instance.signal(Signal::STOP);
    check_finds(&sandbox, "primary.answers", "fault", "is stopped");
    fs::remove_file(sandbox.workdir().lock_path()).unwrap();
    check_finds(&sandbox, "lock.inode", "fault", &instance.pid().to_string());
}

#[test]
fn another_release_and_another_protocol_are_found() {
    let sandbox = after_a_primary();
    edit_lock(&sandbox, "version", json!("9.9.9"));
    check_finds(&sandbox, "primary.version", "warning", "9.9.9");
    edit_lock(&sandbox, "protocol", json!(99));
    check_finds(&sandbox, "primary.version", "fault", "protocol 99");
}

#[test]
fn a_time_that_lies_ahead_is_found() {
    let sandbox = after_a_primary();
    edit_lock(&sandbox, "started_at", json!("2099-01-01T00:00:00Z"));
    check_finds(&sandbox, "host.clock", "warning", "2099");
}

#[test]
fn ports_that_somebody_else_sits_on_are_found() {
    // The range is everybody's: another program may have the port already, and let it go any time.
    let squat = |sandbox: Sandbox| {
        let port = ports_for_path(sandbox.path()).publish;
        let squatter = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        Some((sandbox, port, squatter))
    };
    let (sandbox, port, squatter) = std::iter::repeat_with(after_a_primary).find_map(squat).unwrap();
    check_finds(&sandbox, "primary.ports", "warning", &port.to_string());
    let (_instance, _) = PandoProcess::primary(&sandbox);
    check_finds(&sandbox, "primary.ports", "warning", "the primary is at");
    drop(squatter);
}

#[test]
fn sockets_that_nobody_listens_on_are_found() {
    let sandbox = after_a_primary();
    let run = sandbox.workdir().socket_dir().unwrap();
    for number in 0..5 {
        drop(UnixListener::bind(run.join(format!("9-{number}.rpc"))).unwrap());
    }
    check_finds(&sandbox, "sockets.stale", "warning", "nobody behind them");
}

#[test]
fn a_primary_that_changes_all_the_time_is_found() {
    let sandbox = Sandbox::new();
    for terms in 1..=6 {
        let (mut instance, _) = PandoProcess::primary(&sandbox);
        let log = sandbox.workdir().pando_dir().join("lifecycle.log");
        eventually("its role in the lifecycle log", WRITTEN_WITHIN, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            (text.matches(r#""what":"primary""#).count() == terms).then_some(())
        });
        instance.kill();
    }
    check_finds(&sandbox, "roles.steady", "warning", "6 instances");
}

#[test]
fn a_database_that_is_none_or_has_two_names_is_found() {
    let sandbox = after_a_primary();
    fs::hard_link(sandbox.workdir().database_path(), sandbox.path().join("alias.db")).unwrap();
    check_finds(&sandbox, "database.file", "fault", "2 names");
    let sandbox = Sandbox::new();
    sandbox.workdir().prepare().unwrap();
    fs::write(sandbox.workdir().database_path(), "no database at all, but long enough to look like one").unwrap();
    check_finds(&sandbox, "database.opens", "fault", "");
}

#[test]
fn settings_that_nobody_can_lead_with_are_found() {
    let sandbox = after_a_primary();
    check_finds(&sandbox, "workdir.settings", "skipped", "as usual");
    let path = sandbox.workdir().pando_dir().join("settings.json");
    fs::write(&path, r#"{"durability": "os"}"#).unwrap();
    check_finds(&sandbox, "workdir.settings", "ok", "durability os");
    fs::write(&path, r#"{"durabilty": "os"}"#).unwrap();
    check_finds(&sandbox, "workdir.settings", "fault", "durabilty");
}

#[test]
fn a_schema_of_another_release_is_found() {
    let sandbox = after_a_primary();
    let foreign = rusqlite::Connection::open(sandbox.workdir().database_path()).unwrap();
    let newest = sandbox.count("SELECT max(id) FROM _pando_migration");
    foreign.execute("INSERT INTO _pando_migration VALUES (99, 'later', 1, 'now', '9.9.9')", []).unwrap();
    check_finds(&sandbox, "database.opens", "fault", "99, made by pando 9.9.9");
    check_finds(&sandbox, "database.opens", "fault", &format!("knows up to {newest}"));
    foreign.execute("DELETE FROM _pando_migration WHERE id IN (99, ?1)", [newest]).unwrap();
    check_finds(&sandbox, "database.opens", "ok", &format!("to schema {newest}"));
}

#[test]
fn the_file_system_that_counts_is_that_of_the_database() {
    let sandbox = Sandbox::new();
    let of = |path: &Path| FileSystem::of(path).unwrap().name;
    let told = || {
        let status: Value = pando(&sandbox, &["--json", "status"]).json();
        [examine(&sandbox, "host.filesystem")["details"]["name"].clone(), status["file_system"].clone()]
    };
    assert_eq!(told(), [of(sandbox.path()), of(sandbox.path())], "there is no .pando yet");
    // A file system on which nobody has a workdir, so that it is another one wherever this runs.
    let other = Path::new("/proc");
    assert_ne!(of(other), of(sandbox.path()));
    symlink(other, sandbox.workdir().pando_dir()).unwrap();
    assert_eq!(told(), [of(other), of(other)]);
}

#[test]
fn a_large_log_and_who_reads_it_are_found() {
    let sandbox = after_a_primary();
    let path = sandbox.workdir().database_path();
    let writer = rusqlite::Connection::open(&path).unwrap();
    writer.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE big (b)").unwrap();
    let reader = sandbox.database();
    let held = reader.unchecked_transaction().unwrap();
    held.query_row("SELECT count(*) FROM big", [], |_| Ok(())).unwrap();
    writer.execute("INSERT INTO big VALUES (zeroblob(?1))", [70 << 20]).unwrap();
    check_finds(&sandbox, "database.wal", "warning", &std::process::id().to_string());
}

#[test]
fn a_cursor_without_its_events_and_a_broken_one_are_found() {
    let sandbox = after_a_primary();
    let dir = sandbox.workdir().pando_dir().join("cursors");
    fs::create_dir(&dir).unwrap();
    let cursor = json!({"name": "old", "database": "67e55044-10b1-426f-9247-bb680e5fe0c8", "seq": 5, "at": "2026-11-21T03:04:15Z"});
    fs::write(dir.join("old.json"), cursor.to_string()).unwrap();
    check_finds(&sandbox, "journal.cursors", "warning", "old");
    fs::write(dir.join("old.json"), "{").unwrap();
    check_finds(&sandbox, "journal.cursors", "fault", "old.json");
}

#[test]
fn few_descriptors_are_found() {
    let sandbox = after_a_primary();
    let line = format!("ulimit -n 128; exec '{}' doctor --json", env!("CARGO_BIN_EXE_pando"));
    let output = Command::new("bash").args(["-c", &line]).current_dir(sandbox.path()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = report["checks"].as_array().unwrap().iter().find(|it| it["id"] == "host.descriptors").unwrap();
    assert_eq!((&finding["status"], &finding["details"]["limit"]), (&json!("warning"), &json!(128)));
}

#[test]
fn a_bundle_is_private_and_never_overwrites() {
    let sandbox = after_a_primary();
    let path = sandbox.path().join("report.json");
    let args = ["doctor", "--bundle", path.to_str().unwrap()];
    assert_ne!(pando(&sandbox, &args).code, Some(1));
    let bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(bundle["report"]["checks"].is_array() && bundle["lifecycle"].is_array(), "{bundle}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let again = pando(&sandbox, &args);
    assert_eq!(again.code, Some(1), "it is there already");
    assert!(again.stderr.contains("hint: name another file"), "{again}");
}
