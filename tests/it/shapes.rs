//! What programs read has a published shape: `docs/schemas` for the command line, `rpc.discover` for the methods.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::json_schema::check;
use crate::support::{Outcome, PandoProcess, Sandbox, pando};

/// Commands that print no JSON: what they print is for a shell and for `man`.
const NO_JSON: [&str; 2] = ["completions", "man"];
/// Its shape is checked where it runs: `tests/it/demo.rs`.
const DEMO: &str = "demo";

/// Returns every command that does something, as its words: what `--help` lists, from the top down.
fn commands(sandbox: &Sandbox, path: &[String]) -> Vec<Vec<String>> {
    let words: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = pando(sandbox, &words).stdout;
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![path.to_vec()] };
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    // A summary that goes over several lines goes on farther to the right.
    let names = names.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(' ').next());
    let below = |name: &str| commands(sandbox, &[path, &[name.to_owned()]].concat());
    names.filter(|name| *name != "help").flat_map(below).collect()
}

fn schema_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas").join(format!("{name}.json"))
}

/// Returns the schema of a command: the file of its name, which is its last word.
pub(crate) fn published(name: &str) -> Value {
    let path = schema_file(name);
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn said(sandbox: &Sandbox, args: &[&str]) -> Value {
    let outcome = pando(sandbox, args);
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error} in {outcome}"))
}

/// Runs commands, holds what they say against their schemas, and remembers which ones were seen.
struct Checked<'a> {
    sandbox: &'a Sandbox,
    seen: BTreeSet<Vec<String>>,
}

impl Checked<'_> {
    /// Runs a command, its words first; whatever it says on stdout is of its shape, and a failure on stderr of that of failures.
    #[track_caller]
    fn run(&mut self, command: &str, args: &[&str], code: i32) -> Outcome {
        let words: Vec<&str> = command.split(' ').collect();
        let outcome = pando(self.sandbox, &[words.as_slice(), args, &["--json"]].concat());
        assert_eq!(outcome.code, Some(code), "{outcome}");
        self.lines(command, &outcome.stdout);
        if let Some(failure) = outcome.stderr.lines().last().filter(|line| line.starts_with('{')) {
            check(&format!("the failure of {command}"), &serde_json::from_str(failure).unwrap(), &published("error"));
        }
        assert!(![0, 8].contains(&code) || !outcome.stdout.is_empty(), "{outcome}");
        outcome
    }

    #[track_caller]
    fn lines(&mut self, command: &str, stdout: &str) {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let schema = published(words.last().unwrap());
        for line in stdout.lines() {
            let line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{command}: {error} in {line}"));
            check(command, &line, &schema);
            self.seen.insert(words.clone());
        }
    }
}

#[test]
fn every_commands_json_is_as_published() {
    let sandbox = Sandbox::new();
    let elsewhere = sandbox.root().join("copy.db");
    let copy = elsewhere.to_str().unwrap();
    let mut checked = Checked { sandbox: &sandbox, seen: BTreeSet::new() };
    let all = commands(&sandbox, &[]);

    // Nobody was ever here.
    for (command, args, code) in [
        ("status", [].as_slice(), 0),
        ("down", &[], 0),
        ("ipc ports", &[], 0),
        ("ipc cursors", &[], 0),
        ("ipc evict", &[], 0),
        ("ipc call", &["instance.info"], 3),
        ("db stats", &[], 1),
    ] {
        checked.run(command, args, code);
    }
    // How the machine is does not matter here: a port that somebody sits on, or a disk that is nearly full, is a warning.
    let report = pando(&sandbox, &["doctor", "--json"]);
    checked.lines("doctor", &report.stdout);

    let mut instance = PandoProcess::start(&sandbox, &[]);
    instance.wait_for("the role primary", Duration::from_secs(10), |line| {
        checked.lines("up", &line.text);
        line.text.contains("\"primary\"").then_some(())
    });
    for (command, args, code) in [
        ("ipc publish", ["note.made", "{}"].as_slice(), 0),
        ("ipc publish", &["note.made", "--ephemeral"], 0),
        ("db exec", &["--ddl", "CREATE TABLE note (id INTEGER PRIMARY KEY, text)"], 0),
        ("db exec", &["INSERT INTO note (text) VALUES ('a'), (x'00'), (NULL) RETURNING id, text"], 0),
        ("db exec", &["INSERT INTO nothing VALUES (1)"], 1),
        ("db query", &["SELECT id, text, 1.5 FROM note"], 0),
        ("db tables", &["--all"], 0),
        ("db schema", &["--all"], 0),
        ("db stats", &[], 0),
        ("db check", &[], 0),
        ("db backup", &[copy], 0),
        ("db backup", &[copy], 6),
        ("ipc tail", &["--since", "all", "--until", "now", "--cursor", "c"], 0),
        ("ipc tail", &["--until", "now", "--cursor", "stays"], 0),
        ("ipc tail", &["--since", "yesterday"], 2),
        ("ipc cursors", &[], 0),
        ("ipc instances", &[], 0),
        ("ipc doors", &[], 0),
        ("ipc ports", &[], 0),
        ("ipc methods", &[], 0),
        ("ipc describe", &["db.exec"], 0),
        ("ipc describe", &["db.exce"], 1),
        ("ipc call", &["instance.info"], 0),
        ("ipc call", &["session.get", "{\"id\":\"none\"}"], 1),
        ("ipc evict", &[], 1),
        ("ipc status", &[], 0),
        ("status", &["--diag"], 0),
        ("metrics", &[], 0),
        ("ipc cursors", &["--remove", "c"], 0),
        ("db restore", &[copy], 6),
    ] {
        checked.run(command, args, code);
    }
    let events = checked.run("ipc tail", &["--since", "all", "--until", "now"], 0);
    assert!(events.stdout.lines().count() >= 3, "{events}");
    let report = pando(&sandbox, &["doctor", "--json"]);
    checked.lines("doctor", &report.stdout);

    instance.signal(Signal::STOP);
    checked.run("status", &["--timeout", "500ms"], 5);
    let report = pando(&sandbox, &["doctor", "--json"]);
    checked.lines("doctor", &report.stdout);
    checked.run("ipc evict", &["--dry-run"], 0);
    checked.run("ipc evict", &["--yes"], 0);
    checked.run("db restore", &[copy], 0);
    let anew = checked.run("ipc tail", &["--until", "now", "--cursor", "stays"], 0);
    assert!(anew.stdout.starts_with("{\"resync\""), "{anew}");
    let (_next, _) = PandoProcess::primary(&sandbox);
    checked.run("down", &[], 0);

    let silent = all.iter().filter(|words| NO_JSON.contains(&words.last().unwrap().as_str()));
    assert_eq!(silent.count(), NO_JSON.len());
    let unseen: Vec<_> = all
        .iter()
        .filter(|words| ![DEMO].iter().chain(&NO_JSON).any(|name| words.last().unwrap() == name))
        .filter(|words| !checked.seen.contains(*words))
        .collect();
    assert!(unseen.is_empty(), "nothing is known of the JSON of {unseen:?}");
    let files = fs::read_dir(schema_file("x").parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let names: BTreeSet<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    let named = |words: &Vec<String>| words.last().unwrap().clone();
    let expected: BTreeSet<_> = checked.seen.iter().map(named).chain(["error".to_owned(), DEMO.to_owned()]).collect();
    assert_eq!(names, expected, "a file for each command");
}

#[test]
fn what_methods_answer_is_as_they_describe_it() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_eq!(pando(&sandbox, &["ipc", "publish", "note.made", "{}"]).code, Some(0));
    for (method, params) in [
        ("instance.ping", "{}"),
        ("instance.info", "{}"),
        ("instance.list", "{}"),
        ("instance.doors", "{}"),
        ("instance.metrics", "{}"),
        ("state.sync", "{}"),
        ("session.list", "{}"),
        ("events.publish", r#"{"topic":"note.made"}"#),
        ("events.publish", r#"{"topic":"note.made","durable":false}"#),
        ("events.since", r#"{"after":0}"#),
        ("events.head", "{}"),
        ("events.ack", r#"{"cursor":"c","seq":1}"#),
        ("events.cursors", "{}"),
        ("db.query", r#"{"sql":"SELECT 1"}"#),
        ("db.exec", r#"{"op_id":"o-1","statements":[{"sql":"UPDATE sessions SET title = 'x'"}]}"#),
        ("db.outcome", r#"{"op_id":"o-1"}"#),
        ("db.check", "{}"),
    ] {
        let described = said(&sandbox, &["ipc", "describe", method, "--json"]);
        check(method, &said(&sandbox, &["ipc", "call", method, params, "--json"]), &described["result"]["schema"]);
        let given: Value = serde_json::from_str(params).unwrap();
        for param in described["params"].as_array().unwrap() {
            match given.get(param["name"].as_str().unwrap()) {
                Some(value) => check(method, value, &param["schema"]),
                None => assert_ne!(param["required"], true, "{method} wants {}", param["name"]),
            }
        }
    }
    let misspelt = pando(&sandbox, &["ipc", "describe", "events.sinse"]);
    assert!(misspelt.stderr.contains("did you mean 'events.since'?"), "{misspelt}");
}
