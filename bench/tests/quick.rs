//! The bench does not rot: every kind of case runs, with real processes, and its report says what came out.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_quick_run_measures_both_sides_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_pando-bench"));
    bench.args(["db", "--quick", "--dir"]).arg(dir.path());
    for name in ["disk-4", "slow-fsync", "primary-os", "batched", "paced", "reads"] {
        bench.args(["--only", name]);
    }
    let output = bench.output().unwrap();
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
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
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["report.json", "report.svg"], "workdirs are removed");
}
