//! Every mistake a user can make is answered with what is wrong, the next step and the documented exit code.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use insta::assert_snapshot;
use rustix::process::Signal;

use crate::support::{Outcome, PandoProcess, Sandbox, eventually, pando, pando_bound_by_modes};

/// How long a process may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// Runs a command that must fail with this exit code, and say on stderr what and what next.
#[track_caller]
fn check_fails(sandbox: &Sandbox, code: i32, args: &[&str]) -> Outcome {
    let outcome = pando(sandbox, args);
    assert_eq!(outcome.code, Some(code), "{outcome}");
    assert_eq!(outcome.stdout, "", "stdout is for data: {outcome}");
    assert!(outcome.stderr.starts_with("error: "), "{outcome}");
    let next_step = ["hint: ", "'"].iter().any(|mark| outcome.stderr.contains(mark));
    assert!(next_step, "the next step is named: {outcome}");
    outcome
}

#[test]
fn a_workdir_that_is_not_there_is_a_usage_error() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let missing = check_fails(&sandbox, 2, &["--workdir", "/nowhere/at/all", "status"]);
    assert_snapshot!(missing, @r"
    $ pando --workdir /nowhere/at/all status
    error: no workdir at /nowhere/at/all: No such file or directory (os error 2)
    hint: make it first, 'mkdir -p /nowhere/at/all', or name another with '--workdir DIR'
    exit 2
    ");
    fs::write(sandbox.path().join("file"), "").unwrap();
    let file = check_fails(&sandbox, 2, &["--workdir", "file", "up"]);
    assert_snapshot!(file, @r"
    $ pando --workdir file up
    error: workdir [workdir]/file is not a directory
    hint: name the directory that holds it with '--workdir DIR'
    exit 2
    ");
}

#[test]
fn a_command_that_is_not_there_is_a_usage_error() {
    let sandbox = Sandbox::new();
    assert_snapshot!(check_fails(&sandbox, 2, &["statsu"]), @r"
    $ pando statsu
    error: unrecognized subcommand 'statsu'

      tip: a similar subcommand exists: 'status'

    Usage: pando [OPTIONS] <COMMAND>

    For more information, try '--help'.
    exit 2
    ");
    assert_snapshot!(check_fails(&sandbox, 2, &["status", "--timeout", "soon"]), @r"
    $ pando status --timeout soon
    error: invalid value 'soon' for '--timeout <TIME>': write a number and a unit, such as 500ms, 5s or 1m

    For more information, try '--help'.
    exit 2
    ");
}

#[test]
fn a_file_in_place_of_the_directory_is_named() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    fs::write(sandbox.path().join(".pando"), "mine").unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @r"
    $ pando up
    error: cannot use [workdir]/.pando: not a directory
    hint: make it a directory you may write to: 'ls -ld [workdir]/.pando'
    exit 1
    ");
    assert_eq!(fs::read_to_string(sandbox.path().join(".pando")).unwrap(), "mine");
}

#[test]
fn a_directory_that_we_may_not_write_to_is_named() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let fails = || {
        let outcome = pando_bound_by_modes(&sandbox, &["up"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome}");
        outcome
    };
    let read_only = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o500)).unwrap();
    let writable = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    read_only(sandbox.path());
    assert_snapshot!(fails(), @r"
    $ pando up
    error: cannot use [workdir]/.pando: Permission denied (os error 13)
    hint: make it a directory you may write to: 'ls -ld [workdir]'
    exit 1
    ");
    writable(sandbox.path());
    sandbox.workdir().prepare().unwrap();
    read_only(&sandbox.path().join(".pando"));
    assert_snapshot!(fails(), @r"
    $ pando up
    error: cannot lock [workdir]/.pando/ipc.lock: Permission denied (os error 13)
    hint: make it yours and writable: 'ls -ld [workdir]/.pando'
    exit 1
    ");
    writable(&sandbox.path().join(".pando"));
}

#[test]
fn something_foreign_in_place_of_the_lock_is_named_and_left_alone() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    fs::create_dir(sandbox.workdir().lock_path()).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @r"
    $ pando up
    error: [workdir]/.pando/ipc.lock is not a regular file; move it away, Pando makes its own
    hint: look at it: 'ls -l [workdir]/.pando/ipc.lock'
    exit 1
    ");
    fs::remove_dir(sandbox.workdir().lock_path()).unwrap();
    std::os::unix::fs::symlink("/dev/null", sandbox.workdir().lock_path()).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @r"
    $ pando up
    error: [workdir]/.pando/ipc.lock is not a regular file; move it away, Pando makes its own
    hint: look at it: 'ls -l [workdir]/.pando/ipc.lock'
    exit 1
    ");
}

#[test]
fn a_database_that_somebody_else_writes_is_not_to_be_moved_away() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (mut instance, _) = PandoProcess::primary(&sandbox);
    instance.kill();
    let mut other = rusqlite::Connection::open(sandbox.workdir().database_path()).unwrap();
    let write = other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @r"
    $ pando up
    error: cannot open database [workdir]/.pando/pando.db: database is locked
    hint: another program is in the middle of a write, find it: 'fuser -v [workdir]/.pando/pando.db'
    exit 1
    ");
    write.rollback().unwrap();
}

#[test]
fn a_database_that_is_none_is_named_and_left_alone() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    let text = "this is no database, and longer than the header of one would be: ".repeat(20);
    fs::write(sandbox.workdir().database_path(), &text).unwrap();
    assert_snapshot!(check_fails(&sandbox, 1, &["up"]), @r"
    $ pando up
    error: cannot open database [workdir]/.pando/pando.db: file is not a database
    hint: if it is no database of Pando's, move it away; Pando then makes a new one: 'mv [workdir]/.pando/pando.db elsewhere'
    exit 1
    ");
    assert_eq!(fs::read_to_string(sandbox.workdir().database_path()).unwrap(), text);
}

#[test]
fn a_workdir_without_primary_is_said_at_once() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    assert_snapshot!(check_fails(&sandbox, 3, &["ipc", "call", "instance.ping"]), @r"
    $ pando ipc call instance.ping
    error: no primary in [workdir] (lock is free)
    hint: start one with 'pando up'
    exit 3
    ");
    assert_snapshot!(check_fails(&sandbox, 5, &["-q", "ipc", "tail", "--limit", "1", "--timeout", "1s"]), @r"
    $ pando -q ipc tail --limit 1 --timeout 1s
    error: what was waited for did not come within 1s
    hint: give it longer with '--timeout 30s', or see who leads: 'pando status'
    exit 5
    ");
}

#[test]
fn a_lock_whose_holder_is_silent_is_no_primary() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    sandbox.workdir().prepare().unwrap();
    fs::write(sandbox.workdir().lock_path(), "not what you think").unwrap();
    let lock = fs::File::open(sandbox.workdir().lock_path()).unwrap();
    lock.lock().unwrap();
    assert_snapshot!(check_fails(&sandbox, 3, &["--timeout", "300ms", "ipc", "call", "instance.ping"]), @r"
    $ pando --timeout 300ms ipc call instance.ping
    error: no primary answers in [workdir] (its lock is held, by whom is not said)
    hint: find the holder: 'fuser -v [workdir]/.pando/ipc.lock'
    exit 3
    ");
}

#[test]
fn an_empty_op_id_is_a_usage_error() {
    let sandbox = Sandbox::new();
    assert_snapshot!(check_fails(&sandbox, 2, &["db", "exec", "--op-id", "", "SELECT 1"]), @r"
    $ pando db exec --op-id  SELECT 1
    error: invalid value '' for '--op-id <ID>': it is empty; name the write, or leave '--op-id' out

    For more information, try '--help'.
    exit 2
    ");
}

#[test]
fn params_that_are_not_json_are_a_usage_error() {
    let sandbox = Sandbox::new();
    assert_snapshot!(check_fails(&sandbox, 2, &["ipc", "call", "session.get", "{id: 1}"]), @r#"
    $ pando ipc call session.get {id: 1}
    error: params are not JSON: key must be a string at line 1 column 2, in "{id: 1}"
    hint: keep JSON in single quotes, so that the shell leaves it alone: '{"session_id":"s1"}'
    exit 2
    "#);
    assert_snapshot!(check_fails(&sandbox, 2, &["ipc", "call", "db.exec", r#"{"sql":"x","sql":"y"}"#]), @r#"
    $ pando ipc call db.exec {"sql":"x","sql":"y"}
    error: params are not JSON: key "sql" stands twice at line 1 column 21, in "{\"sql\":\"x\",\"sql\":\"y\"}"
    hint: keep JSON in single quotes, so that the shell leaves it alone: '{"session_id":"s1"}'
    exit 2
    "#);
}

#[test]
fn a_refused_call_says_why_and_what_to_do() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    // An unknown method, and the one that was meant.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "sesion.list"]), @r#"
    $ pando ipc call sesion.list
    error: the primary has no method "sesion.list"
    hint: did you mean 'instance.list' or 'message.list' or 'session.list'?
    hint: list them: 'pando ipc methods'
    exit 1
    "#);
    // Params that do not fit name the field.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get", r#"{"id":5}"#]), @r#"
    $ pando ipc call session.get {"id":5}
    error: ipc: invalid params: id: invalid type: integer `5`, expected a string
    hint: see what each method takes: 'pando ipc methods'
    exit 1
    "#);
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get"]), @r"
    $ pando ipc call session.get
    error: ipc: invalid params: missing field `id`
    hint: see what each method takes: 'pando ipc methods'
    exit 1
    ");
    // A session that is not there.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "session.get", r#"{"id":"s-404"}"#]), @r#"
    $ pando ipc call session.get {"id":"s-404"}
    error: no session "s-404"; 'session.list' names them
    exit 1
    "#);
    // A topic that is none.
    assert_snapshot!(check_fails(&sandbox, 1, &["ipc", "call", "events.publish", r#"{"topic":"a b"}"#]), @r#"
    $ pando ipc call events.publish {"topic":"a b"}
    error: dbproxy: INVALID_PARAMS (publish): topic: topic "a b" holds ' '; a topic has no spaces and no control characters, and only a pattern has a '*' (for any text)
    hint: see what each method takes: 'pando ipc methods'
    exit 1
    "#);
}

#[test]
fn bad_sql_says_what_sqlite_says() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_snapshot!(check_fails(&sandbox, 1, &["db", "exec", "SELEC 1"]), @r#"
    $ pando db exec SELEC 1
    error: dbproxy: INVALID_PARAMS (exec): near "SELEC": syntax error
    hint: see the tables: pando db query 'SELECT name, sql FROM sqlite_schema'
    exit 1
    "#);
    assert_snapshot!(check_fails(&sandbox, 1, &["db", "query", "SELECT * FROM nowhere"]), @r"
    $ pando db query SELECT * FROM nowhere
    error: dbproxy: INVALID_PARAMS (query): no such table: nowhere
    hint: see the tables: pando db query 'SELECT name, sql FROM sqlite_schema'
    exit 1
    ");
    // What the command line gives to it.
    assert_snapshot!(check_fails(&sandbox, 2, &["db", "exec", "DELETE FROM skills WHERE id = ?"]), @r"
    $ pando db exec DELETE FROM skills WHERE id = ?
    error: dbproxy: INVALID_PARAMS (exec): params: 0 given, 1 wanted
    hint: repeat '--param' once for each '?', with a value of SQLite as JSON
    exit 2
    ");
    let large = ["db", "query", "SELECT ?", "--param", "100000000000000000001"];
    assert_snapshot!(check_fails(&sandbox, 2, &large), @r"
    $ pando db query SELECT ? --param 100000000000000000001
    error: dbproxy: INVALID_PARAMS (query): param[0]: 100000000000000000001 is no integer of 64 bits; write it as text, or with a fraction
    hint: repeat '--param' once for each '?', with a value of SQLite as JSON
    exit 2
    ");
    assert_snapshot!(check_fails(&sandbox, 2, &["db", "query", "SELECT 1; SELECT 2"]), @r"
    $ pando db query SELECT 1; SELECT 2
    error: dbproxy: INVALID_PARAMS (query): sql: more than one statement; send one statement per string
    hint: give one statement, and run the command once for each
    exit 2
    ");
    // A constraint is a conflict.
    let project = "INSERT INTO projects (id, name, path, status, initialized, created_at, updated_at) \
                   VALUES ('p', 'p', '/p', 'open', 0, 0, 0)";
    assert_eq!(pando(&sandbox, &["db", "exec", project]).code, Some(0));
    assert_snapshot!(check_fails(&sandbox, 6, &["db", "exec", project]), @r"
    $ pando db exec INSERT INTO projects (id, name, path, status, initialized, created_at, updated_at) VALUES ('p', 'p', '/p', 'open', 0, 0, 0)
    error: dbproxy: CONFLICT (exec): UNIQUE constraint failed: projects.path
    hint: read the row that is there, then decide
    exit 6
    ");
    // What is not for callers.
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "PRAGMA journal_mode = DELETE"]), @r"
    $ pando db exec PRAGMA journal_mode = DELETE
    error: dbproxy: INVALID_PARAMS (exec): PRAGMA journal_mode is not allowed here
    hint: schema changes need '--ddl'; transactions, PRAGMA and ATTACH are not for callers
    exit 4
    ");
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "DELETE FROM _pando_event"]), @r"
    $ pando db exec DELETE FROM _pando_event
    error: dbproxy: INVALID_PARAMS (exec): writing to _pando_event is not allowed: names with _pando_ are reserved
    hint: schema changes need '--ddl'; transactions, PRAGMA and ATTACH are not for callers
    exit 4
    ");
    assert_snapshot!(check_fails(&sandbox, 4, &["db", "exec", "CREATE TABLE notes (id TEXT PRIMARY KEY)"]), @r#"
    $ pando db exec CREATE TABLE notes (id TEXT PRIMARY KEY)
    error: dbproxy: INVALID_PARAMS (exec): changing the schema (sqlite_master) is not allowed without "ddl": true; applications use migrations
    hint: schema changes need '--ddl'; transactions, PRAGMA and ATTACH are not for callers
    exit 4
    "#);
}

#[test]
fn a_primary_that_is_stopped_is_a_timeout_that_names_it() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (instance, _) = PandoProcess::primary(&sandbox);
    instance.signal(Signal::STOP);
    let silent = check_fails(&sandbox, 5, &["--timeout", "300ms", "ipc", "call", "instance.info"]);
    instance.signal(Signal::CONT);
    assert_snapshot!(silent, @r"
    $ pando --timeout 300ms ipc call instance.info
    error: the primary of [workdir] gave no answer within 300ms ([inst], pid [pid], stopped, [pando], since [time]): connection to [inst] failed: it has not answered yet
    hint: if it stays silent, end it and another instance takes over: 'pando ipc evict'
    hint: see who holds the workdir: 'pando status'
    exit 5
    ");
}

#[test]
fn a_lost_election_names_the_holder() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_snapshot!(check_fails(&sandbox, 75, &["up", "--require-primary"]), @r"
    $ pando up --require-primary
    error: [workdir] already has a primary: [inst], pid [pid], [pando], since [time]
    hint: join as a secondary: leave out '--require-primary'
    hint: or end the others first: 'pando down'
    exit 75
    ");
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
