//! An instance that cannot begin its term says why, and whoever asks is told.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Outcome, PandoProcess, RoleLine, Sandbox, eventually, pando};

/// How long an instance may take to find out that it cannot lead, or that it can.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(20);

/// Settings that nobody can lead with, each for a reason of its own.
const MISSPELT: &str = r#"{"durabilty": "os"}"#;
const UNFINISHED: &str = r#"{"durability": "#;

/// Sets them at once: half of a file would be a reason of its own.
fn set(sandbox: &Sandbox, settings: &str) {
    let fresh = sandbox.root().join("settings.json");
    fs::write(&fresh, settings).unwrap();
    fs::rename(fresh, sandbox.workdir().pando_dir().join("settings.json")).unwrap();
}

/// A secondary whose primary has gone, in a workdir with settings that nobody can lead with.
fn heir(sandbox: &Sandbox, settings: &str) -> (PandoProcess, RoleLine) {
    let (mut primary, _) = PandoProcess::primary(sandbox);
    let mut heir = PandoProcess::start(sandbox, &[]);
    let role = heir.becomes("secondary");
    is_written(sandbox, &role, "secondary", 1);
    set(sandbox, settings);
    primary.kill();
    (heir, role)
}

/// Runs a command until it says this and ends so: every second the heir holds the lock for a moment, and then it does not.
#[track_caller]
fn eventually_says(sandbox: &Sandbox, args: &[&str], code: i32, words: &str) -> Outcome {
    eventually(&format!("{words:?} from {args:?}"), FOUND_OUT_WITHIN, || {
        let outcome = pando(sandbox, args);
        let says_so = outcome.stdout.contains(words) || outcome.stderr.contains(words);
        (says_so && outcome.code == Some(code)).then_some(outcome)
    })
}

/// Waits until the lifecycle log has said this of an instance so often.
#[track_caller]
fn is_written(sandbox: &Sandbox, instance: &RoleLine, what: &str, times: usize) {
    eventually(&format!("{what} in the lifecycle log"), FOUND_OUT_WITHIN, || {
        (log(sandbox, instance).iter().filter(|it| *it == what).count() >= times).then_some(())
    });
}

/// Returns what the lifecycle log says of an instance.
fn log(sandbox: &Sandbox, instance: &RoleLine) -> Vec<String> {
    let text = fs::read_to_string(sandbox.workdir().pando_dir().join("lifecycle.log")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = lines.filter(|line| line["instance_id"] == instance.instance_id.as_str());
    own.map(|line| line["what"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn why_an_instance_cannot_lead_is_told_with_the_next_step() {
    let sandbox = Sandbox::new();
    let (mut heir, role) = heir(&sandbox, MISSPELT);
    let (who, end) = (format!("{}, pid {}", role.instance_id, role.pid), format!("'kill {}'", role.pid));
    let status = eventually_says(&sandbox, &["--json", "status"], 0, "durabilty");
    let report: Value = serde_json::from_str(&status.stdout).unwrap();
    assert!(report["problem"].as_str().unwrap().contains(&who), "{status}");
    assert!(report["hints"][0].as_str().unwrap().contains(&end), "{status}");
    for (args, code) in [(&["status"][..], 0), (&["db", "exec", "SELECT 1"], 3), (&["down"], 3), (&["doctor"], 1)] {
        let outcome = eventually_says(&sandbox, args, code, &who);
        let said = [&*outcome.stdout, &outcome.stderr].concat();
        assert!(said.contains("durabilty") && said.contains(&end), "{outcome}");
        assert!(!said.contains("'pando up'") && !said.contains("nothing to stop"), "{outcome}");
    }
    fs::remove_file(sandbox.workdir().pando_dir().join("settings.json")).unwrap();
    heir.becomes("primary");
    let status: Value = pando(&sandbox, &["--json", "status"]).json();
    assert!(status["problem"].is_null() && status["state"] == "led", "{status}");
}

#[test]
fn a_reason_is_written_down_once_and_the_next_one_after_it() {
    let sandbox = Sandbox::new();
    let (mut heir, role) = heir(&sandbox, MISSPELT);
    is_written(&sandbox, &role, "failed", 1);
    // Each time it has tried again: that would be said again.
    for (settings, failures) in [(UNFINISHED, 2), (MISSPELT, 3)] {
        set(&sandbox, settings);
        is_written(&sandbox, &role, "failed", failures);
    }
    set(&sandbox, "{}");
    heir.becomes("primary");
    is_written(&sandbox, &role, "primary", 1);
    assert_eq!(log(&sandbox, &role), ["joined", "secondary", "seeking", "failed", "failed", "failed", "primary"]);
}

#[test]
fn what_a_dead_instance_could_not_do_is_no_reason_any_more() {
    let sandbox = Sandbox::new();
    let (mut heir, role) = heir(&sandbox, MISSPELT);
    eventually_says(&sandbox, &["db", "exec", "SELECT 1"], 3, &role.instance_id);
    heir.kill();
    let outcome = pando(&sandbox, &["db", "exec", "SELECT 1"]);
    assert!(outcome.stderr.contains("'pando up'") && !outcome.stderr.contains("durabilty"), "{outcome}");
    let down = pando(&sandbox, &["down"]);
    assert_eq!(down.code, Some(0), "{down}");
}
