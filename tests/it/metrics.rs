//! What happens is counted, and what instances were is written down.

use std::fs;

use serde_json::Value;

use crate::support::{PandoProcess, Sandbox, pando};

#[test]
fn what_was_called_and_written_is_counted() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    for number in 0..3 {
        let outcome = pando(&sandbox, &["ipc", "publish", "note.made", &number.to_string()]);
        assert_eq!(outcome.code, Some(0), "{outcome}");
    }
    assert_eq!(pando(&sandbox, &["ipc", "call", "session.get", r#"{"id":"none"}"#]).code, Some(1));
    let text = pando(&sandbox, &["metrics"]).stdout;
    let has = |line: &str| assert!(text.lines().any(|it| it.starts_with(line)), "{line} in {text}");
    has("# TYPE pando_call_seconds histogram");
    has("pando_call_seconds_count{method=\"events.publish\"} 3");
    has("pando_call_seconds_bucket{method=\"events.publish\",le=\"+Inf\"} 3");
    has("pando_calls_refused_total{method=\"session.get\"} 1");
    has("pando_epoch 1");
    has("pando_terms_total 1");
    let answer: Value = pando(&sandbox, &["metrics", "--json"]).json();
    let metric = |name: &str| {
        let metrics = answer["metrics"].as_array().unwrap();
        metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("{name} in {answer}"))["samples"]
            [0]["value"]
            .clone()
    };
    assert!(metric("pando_write_seconds")["count"].as_u64() >= Some(3));
    assert!(metric("pando_write_seconds")["p99"].as_u64() > Some(0));
    assert!(metric("pando_commit_writes")["sum"].as_u64() >= Some(3));
    assert!(metric("pando_events_total").as_f64() >= Some(3.0));
}

#[test]
fn roles_are_written_down_and_outlive_the_instances() {
    let sandbox = Sandbox::new();
    let (mut first, leader) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    let follower = second.becomes("secondary");
    first.kill();
    second.becomes("primary");
    assert_eq!(pando(&sandbox, &["down"]).code, Some(0));
    second.end(std::time::Duration::from_secs(10));
    let text = fs::read_to_string(sandbox.workdir().pando_dir().join("lifecycle.log")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |id: &str| -> Vec<_> {
        let own = lines.iter().filter(|line| line["instance_id"] == id && line["what"] != "seeking");
        own.map(|line| line["what"].as_str().unwrap()).collect()
    };
    assert_eq!(of(&leader.instance_id), ["joined", "primary"], "it was killed: {text}");
    assert_eq!(of(&follower.instance_id), ["joined", "secondary", "primary", "left"], "{text}");
    assert_eq!(lines.iter().rfind(|line| line["what"] == "primary").unwrap()["epoch"], 2);
}
