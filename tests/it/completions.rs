//! The shell completes what is there: methods, topics, instances, cursors and tables, within a moment and without a word of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{PandoProcess, Sandbox, binary, pando};

/// Longest time to an answer when the primary says nothing: well below the two seconds after which it counts as silent.
const A_MOMENT: Duration = Duration::from_millis(1_500);

/// Loads the script as a user does, and asks for what follows the words in the way bash does at the press of the key.
const BASH: &str = r#"
eval "$(pando completions bash)"
completer=$(complete -p pando | sed 's/.*-F \([^ ]*\).*/\1/')
COMP_WORDS=(pando "$@") COMP_CWORD=$# COMP_TYPE=9
"$completer" pando "${@: -1}" "${COMP_WORDS[-2]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Returns what bash offers for the last of the words.
#[track_caller]
fn offered(sandbox: &Sandbox, words: &[&str]) -> Vec<String> {
    let mut bash = Command::new("bash");
    let pando = binary(sandbox.path());
    let dir = Path::new(pando.get_program()).parent().unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    bash.args(["--norc", "--noprofile", "-c", BASH, "bash"]).args(words).env("PATH", path).current_dir(sandbox.path());
    let Output { stdout, stderr, .. } = bash.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&stderr), "", "{words:?}");
    let offered = String::from_utf8(stdout).unwrap();
    offered.lines().filter(|line| !line.is_empty() && !line.starts_with('-')).map(str::to_owned).collect()
}

/// Asks in the way of another shell.
fn answer(sandbox: &Sandbox, shell: &str, words: &[&str]) -> (String, String) {
    let mut command = binary(sandbox.path());
    command.env("PANDO_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    let Output { stdout, stderr, .. } = command.arg("--").args(words).output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn bash_offers_what_is_there() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    assert_eq!(pando(&sandbox, &["ipc", "publish", "build.done", "{}"]).code, Some(0));
    let sql = "INSERT INTO sessions (id, title) VALUES ('s-1', 'Plan'), ('not $(plain)', 'x')";
    assert_eq!(pando(&sandbox, &["db", "exec", sql]).code, Some(0));
    assert_eq!(pando(&sandbox, &["ipc", "tail", "--since", "all", "--until", "now", "--cursor", "c-1"]).code, Some(0));
    let check = |words: &[&str], expected: &[&str]| assert_eq!(offered(&sandbox, words), expected, "{words:?}");
    check(&["ipc", "call", "session.l"], &["session.list"]);
    check(&["ipc", "describe", "events.h"], &["events.head"]);
    check(&["ipc", "tail", "bu"], &["build.done"]);
    check(&["ipc", "tail", "build.done", "llm.t"], &["llm.token"]);
    check(&["ipc", "publish", "bui"], &["build.done"]);
    check(&["ipc", "tail", "--cursor", ""], &["c-1"]);
    check(&["ipc", "cursors", "--remove", "c"], &["c-1"]);
    check(&["ipc", "tail", "--session", ""], &["s-1"]);
    check(&["ipc", "tail", "--instance", ""], &[&role.instance_id]);
    check(&["down", "--instance", "inst"], &[&role.instance_id]);
    check(&["db", "schema", "session"], &["session_scores", "sessions"]);
    check(&["db", "sch"], &["schema"]);
    check(&["man", "ipc", "descr"], &["describe"]);
}

#[test]
fn another_workdir_on_the_command_line_is_the_one_that_is_asked() {
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let (_instance, _) = PandoProcess::primary(&elsewhere);
    assert_eq!(pando(&elsewhere, &["ipc", "publish", "build.done", "{}"]).code, Some(0));
    let named = elsewhere.path().to_str().unwrap();
    assert_eq!(offered(&sandbox, &["--workdir", named, "ipc", "tail", "build"]), ["build.done"]);
    assert_eq!(offered(&sandbox, &["ipc", "tail", "build"]), [""; 0]);
}

#[test]
fn without_a_primary_the_release_and_the_files_are_asked() {
    let sandbox = Sandbox::new();
    assert_eq!(offered(&sandbox, &["ipc", "call", "events.h"]), ["events.head"]);
    assert_eq!(offered(&sandbox, &["ipc", "tail", "llm.t"]), ["llm.token"]);
    assert_eq!(offered(&sandbox, &["ipc", "tail", "--cursor", ""]), [""; 0]);
    assert_eq!(offered(&sandbox, &["down", "--instance", ""]), [""; 0]);
    let (mut instance, role) = PandoProcess::primary(&sandbox);
    assert_eq!(pando(&sandbox, &["ipc", "publish", "build.done", "{}"]).code, Some(0));
    assert_eq!(pando(&sandbox, &["down"]).code, Some(0));
    instance.end(Duration::from_secs(10));
    assert_eq!(offered(&sandbox, &["ipc", "tail", "build"]), ["build.done"]);
    assert_eq!(offered(&sandbox, &["ipc", "tail", "--instance", ""]), [role.instance_id]);
}

#[test]
fn a_primary_that_says_nothing_is_not_waited_for() {
    let sandbox = Sandbox::new();
    let (instance, role) = PandoProcess::primary(&sandbox);
    instance.signal(Signal::STOP);
    for (words, expected) in
        [(["ipc", "call", "events.h"].as_slice(), "events.head"), (&["down", "--instance", ""], &role.instance_id)]
    {
        let began = Instant::now();
        assert_eq!(offered(&sandbox, words), [expected]);
        assert!(began.elapsed() < A_MOMENT, "{:?} for {words:?}", began.elapsed());
    }
}

#[test]
fn nothing_is_said_when_something_is_wrong() {
    let sandbox = Sandbox::new();
    sandbox.workdir().prepare().unwrap();
    fs::write(sandbox.workdir().database_path(), "no database at all, but long enough to look like one").unwrap();
    assert_eq!(offered(&sandbox, &["db", "schema", "s"]), [""; 0]);
    assert_eq!(offered(&sandbox, &["ipc", "tail", "llm.t"]), ["llm.token"]);
    assert_eq!(offered(&sandbox, &["--workdir", "/nonexistent", "ipc", "tail", "llm.t"]), ["llm.token"]);
    assert_eq!(answer(&sandbox, "no-such-shell", &["pando", "ipc", "call", "events.h"]), <_>::default());
}

#[test]
fn zsh_and_fish_also_hear_what_a_name_means() {
    let sandbox = Sandbox::new();
    let line = "Tells where the journal ends, or where it was at a time.";
    let words = ["pando", "ipc", "call", "events.h"];
    assert_eq!(answer(&sandbox, "zsh", &words), (format!("events.head:{line}"), String::new()));
    assert_eq!(answer(&sandbox, "fish", &words), (format!("events.head\t{line}\n"), String::new()));
}
