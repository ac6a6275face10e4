//! What a failure says, and with which code it ends.

use super::*;
use crate::cli::args::AFTER_HELP;

fn empty_workdir() -> (tempfile::TempDir, Workdir) {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    (dir, workdir)
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let kinds = [
        (Kind::ReaderGone, 0),
        (Kind::Failed, 1),
        (Kind::Usage, 2),
        (Kind::Unreachable, 3),
        (Kind::NotAuthorised, 4),
        (Kind::Timeout, 5),
        (Kind::Conflict, 6),
        (Kind::Version, 7),
        (Kind::Warned, 8),
        (Kind::LostElection, 75),
        (Kind::Interrupted, 130),
        (Kind::Terminated, 143),
    ];
    let (_, help) = AFTER_HELP.split_once("Exit codes:").unwrap();
    let (_, readme) = include_str!("../../../README.md").split_once("Exit codes: ").unwrap();
    let readme = readme.lines().next().unwrap();
    for (kind, code) in kinds {
        assert_eq!(kind.code(), code, "{kind:?}");
        for document in [help, readme] {
            let mut words = document.split_whitespace().map(|word| word.trim_matches('`'));
            assert!(words.any(|word| word == code.to_string()), "{kind:?}, {code}: {document}");
        }
    }
}

#[test]
fn a_workdir_behind_a_closed_door_is_not_missing() {
    let missing = |kind: io::ErrorKind| WorkdirError::Missing { path: PathBuf::from("/w"), source: kind.into() };
    assert_eq!(Failure::workdir(&missing(io::ErrorKind::PermissionDenied)).kind, Kind::NotAuthorised);
    assert_eq!(Failure::workdir(&missing(io::ErrorKind::NotFound)).kind, Kind::Usage);
}

#[test]
fn a_damaged_database_beside_a_log_may_be_another_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pando.db");
    let hints = || {
        let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None);
        Failure::store(&StoreError::Sqlite { path: path.clone(), source }).hints
    };
    assert_eq!(hints().len(), 1);
    std::fs::write(dir.path().join("pando.db-wal"), "").unwrap();
    assert!(hints()[1].ends_with("pando.db-wal"), "{:?}", hints());
}

#[test]
fn a_refusal_exits_with_the_code_of_its_reason() {
    for (fault, code) in [
        (Fault::new(Code::NotPrimary, "x"), 3),
        (Fault::new(Code::PeerUnauthorized, "x"), 4),
        (Fault::new(Code::Forbidden, "x"), 4),
        (Fault::new(Code::Deadline, "x"), 5),
        (Fault::new(Code::Conflict, "x"), 6),
        (Fault::new(Code::KeyReused, "x"), 6),
        (Fault::new(Code::Fenced, "x"), 6),
        (Fault::new(Code::Version, "x"), 7),
        (Fault::new(Code::Sql, "x"), 1),
        (Fault::method_not_found("x"), 1),
        (Fault::invalid_params("id", "missing"), 1),
        (Fault::internal("x"), 1),
    ] {
        assert_eq!(Failure::refused(fault.clone()).kind.code(), code, "{fault:?}");
    }
}

#[test]
fn without_a_primary_the_next_step_is_named() {
    let (dir, workdir) = empty_workdir();
    let failure =
        Failure::call(CallError::NotSent(Cause::NoPrimary { workdir: dir.path().into(), held: false }), &workdir);
    assert_eq!(failure.kind.code(), 3);
    let text = failure.render(Palette::plain(), false).replace(&workdir.path().display().to_string(), "/w");
    insta::assert_snapshot!(text, @r"
    error: no primary in /w (lock is free)
    hint: start one with 'pando up'
    ");
}

#[test]
fn a_failure_is_also_one_json_line() {
    let fault = Fault::new(Code::Conflict, "UNIQUE constraint failed: sessions.id");
    let failure = Failure::refused(fault);
    let text = failure.render(Palette::plain(), true);
    insta::assert_snapshot!(text, @r#"
    error: UNIQUE constraint failed: sessions.id
    hint: read the row that is there, then decide
    {"error":{"kind":"conflict","message":"UNIQUE constraint failed: sessions.id","hints":["read the row that is there, then decide"],"data":{"rpc_code":-32000,"data":{"code":"E_CONFLICT","retryable":false}},"exit":6}}
    "#);
    assert_eq!(Failure::from_stderr(&text), Some(failure));
}

#[test]
fn a_write_that_waits_for_a_reader_says_to_end_that_read() {
    let full = || Fault::new(Code::BusyQueue, "the log is full");
    let hint = |fault: Fault| Failure::refused(fault).hints.remove(0);
    let readers = json!([{"pid": 7, "executable": "/bin/x", "instance_id": null}, {"pid": 9}]);
    insta::assert_snapshot!(hint(full().with("readers", readers)), @"end the read of pid 7,9, see what it is: 'ps -p 7,9'; writing goes on by itself then");
    insta::assert_snapshot!(hint(full().with("readers", json!([]))), @"end the read that keeps the log, find it: 'fuser -v .pando/pando.db'");
    insta::assert_snapshot!(hint(full()), @"try again in a moment: the write queue is full");
}

pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
    let missing = WorkdirError::Missing { path: PathBuf::from("/no"), source: io::ErrorKind::NotFound.into() };
    Failure::lock(&missing.into()).render(palette, false).trim_end().to_owned()
}
