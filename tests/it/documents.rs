//! What the documents promise is what the binary does.

use std::collections::BTreeSet;

use pando_ipc::{bus, rpc, topic, zmtp};
use serde_json::Value;

use crate::support::{PandoProcess, Sandbox, pando};

const README: &str = include_str!("../../README.md");
const WIRE: &str = include_str!("../../docs/wire.md");

/// Returns what stands under "Methods".
fn methods_section() -> &'static str {
    let (_, section) = WIRE.split_once("\n## Methods\n").unwrap();
    section.split_once("\n## ").unwrap().0
}

/// Returns the first column of the tables there.
fn documented_methods() -> BTreeSet<String> {
    let section = methods_section();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    section.lines().filter_map(name).collect()
}

#[test]
fn the_wire_document_names_every_method_and_no_other() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let document: Value = pando(&sandbox, &["ipc", "call", "rpc.discover"]).json();
    let methods = document["methods"].as_array().unwrap();
    let served: BTreeSet<_> = methods.iter().map(|method| method["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(documented_methods(), served);
}

#[test]
fn every_param_in_the_wire_document_is_one_of_the_method() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let document: Value = pando(&sandbox, &["ipc", "call", "rpc.discover"]).json();
    for method in document["methods"].as_array().unwrap() {
        let name = method["name"].as_str().unwrap();
        let row = methods_section().lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
        let documented = row.split('|').nth(2).unwrap();
        for param in method["params"].as_array().unwrap() {
            let param = param["name"].as_str().unwrap();
            let words = documented.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(words.into_iter().any(|word| word == param), "{name} takes {param}: {documented}");
        }
    }
}

#[test]
fn what_a_method_needs_is_documented() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let document: Value = pando(&sandbox, &["ipc", "call", "rpc.discover"]).json();
    for method in document["methods"].as_array().unwrap() {
        let (name, needs) = (method["name"].as_str().unwrap(), method["x-needs"].as_str().unwrap());
        let row = methods_section().lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
        assert!(row.ends_with(&format!("| {needs} |")), "{name} needs {needs}: {row}");
    }
}

/// Writes a number of bytes as the document does.
fn bytes(count: usize) -> String {
    let units = [(1 << 20, "MiB"), (1 << 10, "KiB")];
    let (size, unit) = units.into_iter().find(|(size, _)| count.is_multiple_of(*size)).expect("a round number");
    format!("{} {unit}", count / size)
}

/// Writes a number as the document does: with a comma before thousands.
fn number(count: usize) -> String {
    if count < 1_000 { count.to_string() } else { format!("{},{:03}", count / 1_000, count % 1_000) }
}

#[test]
fn limits_in_the_wire_document_are_the_ones_in_force() {
    let (_, section) = WIRE.split_once("\n### Limits\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let seconds = |limit: std::time::Duration| format!("{} s", limit.as_secs());
    for (row, value) in [
        ("handshake,", seconds(bus::HANDSHAKE_TIMEOUT)),
        ("time from the first byte", seconds(bus::MESSAGE_TIMEOUT)),
        ("time in which a peer reads nothing", seconds(bus::READ_NOTHING_TIMEOUT)),
        ("handshakes at once", number(bus::MAX_HANDSHAKES)),
        ("connections,", number(bus::MAX_CONNECTIONS)),
        ("a caller's message", bytes(zmtp::MAX_MESSAGE_BYTES)),
        ("a caller's message", format!("{} frames", zmtp::MAX_PARTS)),
        ("a command,", bytes(zmtp::MAX_COMMAND_BYTES)),
        ("subscriptions of a peer", number(zmtp::MAX_SUBSCRIPTIONS)),
        ("subscriptions of a peer", bytes(zmtp::MAX_SUBSCRIPTION_BYTES)),
        ("an answer", bytes(bus::MAX_OUTGOING_BYTES)),
        ("the values in the `columns`", bytes(pando_dbproxy::MAX_COLUMNS_BYTES)),
        ("an event", bytes(bus::MAX_OUTGOING_BYTES)),
        ("bytes queued for a subscriber", bytes(bus::EVENT_RING_BYTES)),
        ("bytes queued for a caller |", bytes(bus::REPLY_RING_BYTES)),
        ("bytes queued for a caller whose", bytes(bus::REPLY_PAUSE_BYTES)),
        ("calls in flight", number(bus::MAX_CALLS_PER_PEER)),
        ("calls in flight", number(bus::MAX_CALLS)),
        ("requests in a batch", number(rpc::MAX_BATCH)),
        ("a topic", number(topic::MAX_TOPIC_BYTES)),
        ("a pattern of LIKE", format!("{} bytes", pando_dbproxy::MAX_PATTERN_BYTES)),
        ("a statement,", bytes(pando_dbproxy::MAX_SQL_BYTES)),
        ("a statement,", bytes(usize::try_from(pando_dbproxy::MAX_VALUE_BYTES).unwrap())),
    ] {
        let line = section
            .lines()
            .find(|line| line.starts_with(&format!("| {row}")))
            .unwrap_or_else(|| panic!("no row {row}"));
        assert!(line.contains(&value), "{row} is {value}: {line}");
    }
}

#[test]
fn every_command_in_the_readme_exists() {
    let sandbox = Sandbox::new();
    let commands = README.split("$ pando ").skip(1).map(|rest| rest.split_whitespace().take(2).collect::<Vec<_>>());
    let mut seen = 0;
    for words in commands {
        let own = if ["ipc", "db"].contains(&words[0]) { &words[..] } else { &words[..1] };
        let help = pando(&sandbox, &[own, &["--help"]].concat());
        assert_eq!(help.code, Some(0), "{help}");
        assert!(help.stdout.contains("Usage"), "{help}");
        seen += 1;
    }
    assert!(seen > 5, "the README shows commands");
}
