//! Every mistake a user can make is answered with what is wrong, the next step and the documented exit code.

use std::fs;
use std::time::Duration;

use insta::assert_snapshot;
use rustix::process::Signal;

use crate::support::{Outcome, PandoProcess, Sandbox, eventually, pando};

/// How long a process may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// Runs a command that must fail with this exit code, and say on stderr what and what next.
#[track_caller]
fn check_fails(sandbox: &Sandbox, code: i32, args: &[&str]) -> Outcome {
    let outcome = pando(sandbox, args);
    assert_eq!(outcome.code, Some(code), "{outcome}");
    assert_eq!(outcome.stdout, "", "stdout is for data: {outcome}");
    assert!(outcome.stderr.starts_with("error: "), "{outcome}");
    outcome
}

#[test]
fn a_workdir_that_is_not_there_is_a_usage_error() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let missing = check_fails(&sandbox, 2, &["--workdir", "/nowhere/at/all", "status"]);
    assert_snapshot!(missing, @"");
    fs::write(sandbox.path().join("file"), "").unwrap();
    let file = check_fails(&sandbox, 2, &["--workdir", "file", "up"]);
    assert_snapshot!(file, @"");
}

#[test]
fn a_command_that_is_not_there_is_a_usage_error() {
    let sandbox = Sandbox::new();
    assert_snapshot!(check_fails(&sandbox, 2, &["statsu"]), @"");
    assert_snapshot!(check_fails(&sandbox, 2, &["status", "--timeout", "soon"]), @"");
}

#[test]
fn a_file_in_place_of_the_directory_is_named() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    fs::write(sandbox.path().join(".pando"), "mine").unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @"");
    assert_eq!(fs::read_to_string(sandbox.path().join(".pando")).unwrap(), "mine");
}

#[test]
fn something_foreign_in_place_of_the_lock_is_named_and_left_alone() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    fs::create_dir(sandbox.workdir().lock_path()).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @"");
    fs::remove_dir(sandbox.workdir().lock_path()).unwrap();
    std::os::unix::fs::symlink("/dev/null", sandbox.workdir().lock_path()).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @"");
}

#[test]
fn a_database_that_is_none_is_named_and_left_alone() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    let text = "this is no database, and longer than the header of one would be: ".repeat(20);
    fs::write(sandbox.workdir().database_path(), &text).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @"");
    assert_eq!(fs::read_to_string(sandbox.workdir().database_path()).unwrap(), text);
}

#[test]
fn a_workdir_without_primary_is_said_at_once() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    assert_snapshot!(check_fails(&sandbox, 3, &["ipc", "call", "instance.ping"]), @"");
    assert_snapshot!(check_fails(&sandbox, 3, &["ipc", "tail"]), @"");
}

#[test]
fn a_lock_whose_holder_is_silent_is_no_primary() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    fs::write(sandbox.workdir().lock_path(), "not what you think").unwrap();
    let lock = fs::File::open(sandbox.workdir().lock_path()).unwrap();
    lock.lock().unwrap();
    assert_snapshot!(check_fails(&sandbox, 3, &["--timeout", "300ms", "ipc", "call", "instance.ping"]), @"");
}

#[test]
fn params_that_are_not_json_are_a_usage_error() {
    let sandbox = Sandbox::new();
    assert_snapshot!(check_fails(&sandbox, 2, &["ipc", "call", "session.get", "{id: 1}"]), @"");
}

#[test]
fn a_refused_call_says_why_and_what_to_do() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    // An unknown method, and the one that was meant.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "sesion.list"]), @"");
    // Params that do not fit name the field.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get", r#"{"id":5}"#]), @"");
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get"]), @"");
    // A session that is not there.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get", r#"{"id":"s-404"}"#]), @"");
    // A topic that is none.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "events.publish", r#"{"topic":"a b"}"#]), @"");
}

#[test]
fn bad_sql_says_what_sqlite_says() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_snapshot!(check_fails(&sandbox, 1, &["db", "exec", "SELEC 1"]), @"");
    assert_snapshot!(check_fails(&sandbox, 1, &["db", "query", "SELECT * FROM nowhere"]), @"");
    // A constraint is a conflict.
    let project = "INSERT INTO projects (id, name, path, status, initialized, created_at, updated_at) \
                   VALUES ('p', 'p', '/p', 'open', 0, 0, 0)";
    assert_eq!(pando(&sandbox, &["db", "exec", project]).code, Some(0));
    assert_snapshot!(check_fails(&sandbox, 6, &["db", "exec", project]), @"");
    // What is not for callers.
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "PRAGMA journal_mode = DELETE"]), @"");
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "DELETE FROM _pando_event"]), @"");
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "CREATE TABLE notes (id TEXT PRIMARY KEY)"]), @"");
}

#[test]
fn a_primary_that_is_stopped_is_a_timeout_that_names_it() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (instance, _) = PandoProcess::primary(&sandbox);
    instance.signal(Signal::STOP);
    let silent = check_fails(&sandbox, 5, &["--timeout", "300ms", "ipc", "call", "instance.info"]);
    instance.signal(Signal::CONT);
    assert_snapshot!(silent, @"");
}

#[test]
fn a_lost_election_names_the_holder() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_snapshot!(check_fails(&sandbox, 75, &["up", "--require-primary"]), @"");
}

#[test]
fn failures_are_one_json_object_for_programs() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let outcome = check_fails(&sandbox, 3, &["--json", "ipc", "call", "instance.ping"]);
    let last = outcome.stderr.lines().last().unwrap();
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["exit"], 3, "{outcome}");
}

#[track_caller]
fn check_ends(signal: Signal, code: i32) {
    let sandbox = Sandbox::new();
    let (mut instance, role) = PandoProcess::primary(&sandbox);
    instance.signal(signal);
    assert_eq!(instance.end(LEAVE).code(), Some(code), "{}", instance.stderr());
    let port = role.ports.unwrap().rpc;
    eventually("the port to be free", LEAVE, || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
}

#[test]
fn an_instance_that_is_asked_to_leave_succeeds() {
    check_ends(Signal::TERM, 0);
}

#[test]
fn an_instance_that_is_interrupted_says_so() {
    check_ends(Signal::INT, 130);
}

#[test]
fn down_ends_everyone_and_says_whom() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let down = pando(&sandbox, &["down"]);
    assert_eq!(down.code, Some(0), "{down}");
    for instance in [&mut first, &mut second] {
        assert_eq!(instance.end(LEAVE).code(), Some(0), "{}", instance.stderr());
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let pando = env!("CARGO_BIN_EXE_pando");
    let line = format!("'{pando}' ipc tail --since all | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}");
    let publish = || crate::support::pando(&sandbox, &["ipc", "publish", "note.made", "{}"]);
    let mut tail = std::process::Command::new("bash").args(["-c", &line]).current_dir(sandbox.path()).spawn().unwrap();
    let status = eventually("the end of a pipe that nobody reads", Duration::from_secs(20), || {
        publish();
        tail.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0));
}
