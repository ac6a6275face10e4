//! The bench does not rot: every kind of case runs, with real processes, and its report says what came out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs a subject in `dir` quickly, and returns what it printed.
fn quick(subject: &str, only: &[&str], dir: &Path) -> String {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_pando-bench"));
    bench.args([subject, "--quick", "--dir"]).arg(dir).args(only.iter().flat_map(|name| ["--only", name]));
    let output = bench.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the names of what is in `dir`.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_quick_run_measures_both_sides_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let table = quick("db", &["disk-4", "slow-fsync", "primary-os", "batched", "paced", "reads"], dir.path());
    assert!(table.contains("skipped: disk-16-slow-fsync: no library"), "{table}");
    assert!(table.contains("| at least 0.9x | "), "{table}");
    let text = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let cases = report["db"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5, "{text}");
    for case in cases {
        for side in [&case["peers"][0], &case["own"]] {
            assert!(side["metrics"]["per_s"]["median"].as_f64().unwrap() > 0.0, "{case}");
        }
        assert_eq!(case["own"]["metrics"]["failed"]["median"], 0.0, "{case}");
    }
    assert_eq!(names(dir.path()), ["report.json", "report.svg"], "workdirs are removed");
}

#[test]
fn what_grows_is_drawn_as_curves() {
    let dir = tempfile::tempdir().unwrap();
    let table = quick("growth", &[], dir.path());
    assert!(table.contains("10,000 rows"), "{table}");
    let figure = std::fs::read_to_string(dir.path().join("growth.svg")).unwrap();
    for curve in ["calls", "events", "bystanders", "journal"] {
        assert!(figure.contains(&format!(">{curve}</text>")), "{curve}: {figure}");
    }
    assert!(!figure.contains(dir.path().to_str().unwrap()), "{figure}");
    assert_eq!(names(dir.path()), ["growth.svg", "report.json", "report.svg"], "filled journals are removed");
}

#[test]
fn a_server_that_is_not_there_is_left_out_with_a_line_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let table = quick("db", &["disk-16"], dir.path());
    let is_skipped = table.contains("skipped: rqlite in disk-16: no rqlited; ");
    assert!(is_skipped || table.contains("| ratio to rqlite "), "{table}");
}
