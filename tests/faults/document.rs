//! `docs/faults.md` names what is there, and nothing that is not.

use std::collections::BTreeSet;

use pando_ipc::failpoint::Flaw;

use crate::faults;

const DOCUMENT: &str = include_str!("../../docs/faults.md");
const CHECKER: &str = include_str!("checker.rs");

/// Returns the names in the first column of the tables of a section.
fn named_in(section: &str) -> BTreeSet<&'static str> {
    let (_, text) = DOCUMENT.split_once(&format!("\n## {section}\n")).unwrap();
    let text = text.split("\n## ").next().unwrap();
    let first = |line: &'static str| line.strip_prefix("| ")?.split('|').next();
    text.lines().filter_map(first).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_fault_invariant_and_control_is_documented() {
    let (_, variants) = CHECKER.split_once("enum Invariant {\n").unwrap();
    let variants = variants.split("\n}").next().unwrap().lines().filter_map(|line| line.trim().strip_suffix(','));
    assert_eq!(named_in("Invariants"), variants.collect());
    assert_eq!(named_in("Controls"), Flaw::ALL.iter().map(|flaw| flaw.name()).collect());
    let named = named_in("Faults");
    for fault in faults::ALL {
        assert!(named.contains(fault.name), "{} is not documented", fault.name);
    }
    let sources = [
        include_str!("faults.rs"),
        include_str!("faults/machine.rs"),
        include_str!("kills.rs"),
        include_str!("points.rs"),
    ]
    .concat();
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "{name} is not there");
    }
}
