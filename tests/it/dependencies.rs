//! What `deny.toml` asks of every crate in the tree holds, also where cargo-deny is not installed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

/// Returns what cargo knows of all crates on the platforms that `deny.toml` names.
fn metadata(policy: &str) -> Value {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--locked", "--format-version", "1", "--all-features"]);
    for platform in texts(section(policy, "graph"), "targets") {
        command.args(["--filter-platform", platform]);
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn policy() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap()
}

/// Returns the lines of a section of a TOML file.
fn section<'a>(policy: &'a str, name: &str) -> &'a str {
    let (_, rest) = policy.split_once(&format!("\n[{name}]\n")).unwrap_or_else(|| panic!("deny.toml has [{name}]"));
    rest.split_once("\n[").map_or(rest, |(section, _)| section)
}

/// Returns the texts of a list.
fn texts<'a>(section: &'a str, key: &str) -> Vec<&'a str> {
    let (_, list) = section.split_once(&format!("{key} = [")).unwrap_or_else(|| panic!("deny.toml has {key}"));
    let (list, _) = list.split_once(']').unwrap();
    let found: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    assert!(!found.is_empty(), "{key} of deny.toml holds something");
    found
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// Tells whether one of the ways to satisfy a licence expression (SPDX; `/` is an older `OR`) is allowed.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression:?} ends here");
    verdict
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut verdict = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all_of(words, allowed);
    }
    verdict
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut verdict = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let verdict = any_of(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return verdict;
    }
    let licence = words.next().expect("a licence").to_owned();
    match words.next_if_eq(&"WITH") {
        Some(_) => allowed.contains(format!("{licence} WITH {}", words.next().expect("an exception")).as_str()),
        None => allowed.contains(licence.as_str()),
    }
}

#[test]
fn licence_expressions_are_read_as_they_are_meant() {
    let allowed = BTreeSet::from(["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]);
    let check =
        |expression: &str, expected: bool| assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    check("MIT", true);
    check("GPL-3.0-only", false);
    check("MIT OR GPL-3.0-only", true);
    check("GPL-3.0-only/MIT", true);
    check("MIT AND GPL-3.0-only", false);
    check("(MIT OR GPL-3.0-only) AND Zlib", true);
    check("MIT AND (GPL-3.0-only OR LGPL-2.1-only)", false);
    check("Apache-2.0 WITH LLVM-exception", true);
    check("Apache-2.0", false);
    check("GPL-3.0-only AND Zlib OR MIT", true);
}

#[test]
fn every_crate_has_a_licence_a_source_and_a_name_that_are_allowed() {
    let policy = policy();
    let allowed: BTreeSet<_> = texts(section(&policy, "licenses"), "allow").into_iter().collect();
    let banned: Vec<_> =
        section(&policy, "bans").split("crate = \"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert!(banned.len() > 2, "{banned:?}");
    let metadata = metadata(&policy);
    let members: BTreeSet<_> = list(&metadata, "workspace_members").iter().map(Value::to_string).collect();
    let packages = list(&metadata, "packages");
    assert!(packages.len() > 100, "{} crates", packages.len());
    for package in packages {
        let name = text(package, "name");
        assert!(!banned.contains(&name), "{name} is banned by deny.toml");
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence, &allowed), "{name}: {licence} is not allowed by deny.toml");
        let is_member = members.contains(&package["id"].to_string());
        let source = package["source"].as_str();
        let is_known = source.is_some_and(|it| it.starts_with("registry+") && it.ends_with("/crates.io-index"));
        assert!(is_known || is_member && source.is_none(), "{name} comes from {source:?}");
        for dependency in list(package, "dependencies").iter().filter(|_| is_member) {
            assert_ne!(text(dependency, "req"), "*", "{name} takes any version of {}", dependency["name"]);
        }
    }
}

#[test]
fn features_that_are_banned_are_off() {
    let policy = policy();
    let metadata = metadata(&policy);
    let rules: Vec<_> = policy.split("[[bans.features]]\n").skip(1).collect();
    assert!(!rules.is_empty(), "deny.toml bans features");
    for rule in rules {
        let name = rule.split_once("crate = \"").unwrap().1.split_once('"').unwrap().0;
        let packages = list(&metadata, "packages");
        let id = &packages.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("{name} is used"))["id"];
        let nodes = list(&metadata["resolve"], "nodes");
        let on = list(nodes.iter().find(|node| node["id"] == *id).unwrap(), "features");
        assert!(!on.is_empty(), "{name} has features");
        for feature in texts(rule, "deny") {
            assert!(!on.iter().any(|it| it == feature), "{name} is used with {feature}");
        }
    }
}
