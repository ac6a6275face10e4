//! The rules of the house that no compiler checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Sandbox, pando};

/// Longest file of code, in lines, tests not counted.
const MAX_LINES: usize = 500;
/// The members of the workspace, and what each of them may depend on.
const LAYERS: [(&str, &str, &[&str]); 6] = [
    ("ipc", "pando-ipc", &[]),
    ("bridge", "pando-bridge", &["pando-ipc"]),
    ("dbproxy", "pando-dbproxy", &["pando-ipc"]),
    (".", "pando", &["pando-ipc", "pando-bridge", "pando-dbproxy"]),
    ("bench", "pando-bench", &["pando", "pando-ipc", "pando-bridge", "pando-dbproxy"]),
    ("bench/inner", "pando-bench-inner", &["pando-ipc", "pando-bridge", "pando-dbproxy"]),
];
/// Crates that only one member may use, tests and the bench aside: it plays the peers, too.
const SOLE_USERS: [(&str, &str); 3] = [("zeromq", "ipc"), ("fs2", "ipc"), ("rusqlite", "dbproxy")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all files with this extension below `dir`.
fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Returns every source file of the members, without their tests.
fn sources() -> Vec<(PathBuf, String)> {
    let dirs = ["ipc/src", "bridge/src", "dbproxy/src", "src", "bench/src", "bench/inner/src"];
    let all = dirs.iter().flat_map(|dir| files(dir, "rs")).map(|path| {
        let text = without_tests(&read(&path));
        (path, text)
    });
    all.filter(|(path, _)| !is_test(path)).collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.file_name().is_some_and(|name| name == "tests.rs")
}

/// Returns a file's text up to its tests: in this house they are the last thing in a file.
fn without_tests(text: &str) -> String {
    text.split_once("#[cfg(test)]\nmod tests").map_or(text, |(code, _)| code).to_owned()
}

/// Returns the crates that a member depends on, tests aside: the keys of `[dependencies]`.
fn dependencies(member: &str) -> Vec<String> {
    let manifest = read(&root().join(member).join("Cargo.toml"));
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(|c| c == '[' || c == ']');
            if let Some(name) = section.strip_prefix("dependencies.") {
                found.push(name.to_owned());
            }
        } else if section == "dependencies"
            && let Some((name, _)) = line.split_once(['=', '.'])
        {
            found.push(name.trim().to_owned());
        }
    }
    assert!(!found.is_empty(), "{member} depends on something");
    found
}

#[test]
fn dependencies_point_one_way() {
    for (dir, name, allowed) in LAYERS {
        for dependency in dependencies(dir).iter().filter(|it| it.starts_with("pando")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn delicate_crates_have_one_user_each() {
    for (dir, name, _) in LAYERS.iter().filter(|(dir, ..)| *dir != "bench") {
        for dependency in dependencies(dir) {
            let sole = SOLE_USERS.iter().find(|(krate, _)| *krate == dependency);
            assert!(sole.is_none_or(|(_, user)| user == dir), "{name} must not use {dependency} itself");
        }
    }
}

#[test]
fn only_the_command_line_prints_and_reads_the_environment() {
    let forbidden = [
        "println!",
        "eprintln!",
        "print!(",
        "eprint!(",
        "dbg!",
        "env::var",
        "env::args",
        "env::home_dir",
        "current_dir(",
    ];
    for (path, text) in sources() {
        if path.starts_with(root().join("src/cli")) || path.ends_with("src/cli.rs") {
            continue;
        }
        for (number, line) in code_lines(&text) {
            for word in forbidden {
                assert!(!line.contains(word), "{}:{number}: {word} belongs to src/cli", path.display());
            }
        }
    }
}

/// Returns the numbered lines that are not comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn no_timeout_depends_on_the_wall_clock() {
    // It may jump by years, in both directions. `Timestamp` labels what people read and cannot be added to; what a person types is
    // the command line's, and measurements are dated.
    let may_look = |path: &Path| {
        let free = ["ipc/src/envelope/timestamp.rs", "src/cli", "bench"].map(|place| root().join(place));
        free.iter().any(|place| path.starts_with(place))
    };
    for (path, text) in sources().into_iter().filter(|(path, _)| !may_look(path)) {
        for (number, line) in code_lines(&text) {
            for word in ["SystemTime", "Utc::now", "Local::now"] {
                assert!(!line.contains(word), "{}:{number}: {word}; measure time with Instant", path.display());
            }
        }
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it above {MAX_LINES}", path.display());
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    let tests = files("tests", "rs").into_iter().map(|path| (path.clone(), read(&path)));
    for (path, text) in sources().into_iter().chain(tests) {
        assert!(text.starts_with("//! "), "{} begins with one sentence: what it is for", path.display());
    }
}

#[test]
fn no_test_is_ignored_or_sleeps() {
    let dirs = ["ipc", "bridge", "dbproxy", "src", "bench/tests", "tests"];
    // Written in two parts, so that this file does not match itself.
    let (ignored, sleeps) = (concat!("#[", "ignore"), concat!("thread::", "sleep("));
    for path in dirs.iter().flat_map(|dir| files(dir, "rs")) {
        let text = read(&path);
        assert!(!text.contains(ignored), "{}: a test that is not run is no test", path.display());
        // Looking again under a deadline, and slowness that a test asked for.
        let may_sleep = ["tests/support/wait.rs", "ipc/src/failpoint/facility.rs"].iter().any(|it| path.ends_with(it));
        assert!(may_sleep || !text.contains(sleeps), "{}: wait with support::eventually", path.display());
    }
    for path in files("tests", "rs") {
        let text = read(&path);
        assert!(!text.contains(concat!("time::", "sleep(")), "{}: wait for the event", path.display());
    }
}

#[test]
fn one_file_is_unsafe_and_says_why() {
    let reads_counters = root().join("fuzz/src/coverage.rs");
    let dirs = ["ipc", "bridge", "dbproxy", "src", "bench", "tests", "fuzz/src", "fuzz/fuzz_targets"];
    for path in dirs.iter().flat_map(|dir| files(dir, "rs")) {
        let text = read(&path);
        let unsafe_lines = code_lines(&text).filter(|(_, line)| line.contains(concat!("uns", "afe ")));
        let (count, reasons) = (unsafe_lines.count(), text.matches(concat!("// SAF", "ETY: ")).count());
        if path == reads_counters {
            assert!(count > 0 && count == reasons, "{}: {count} times, {reasons} reasons", path.display());
        } else {
            assert_eq!(count, 0, "{}: one file of the house is enough", path.display());
        }
    }
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        assert!(read(&root().join(manifest)).contains("unsafe_code = \"deny\""), "{manifest}");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("unimple", "mented!")];
    let code =
        ["ipc", "bridge", "dbproxy", "src", "bench", "tests", "fuzz/src"].iter().flat_map(|dir| files(dir, "rs"));
    let texts = files("docs", "md").into_iter().chain(files("tests", "py"));
    for path in code.chain(texts) {
        let text = read(&path);
        for mark in marks {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}

/// Returns the targets of the Markdown links in a text, code blocks left out.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut documents = files("docs", "md");
    documents.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    for document in documents {
        let text = read(&document);
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            assert!(target.exists(), "{} links to {link}", document.display());
            assert!(
                anchor.is_empty() || anchors(&read(&target)).contains(&anchor.to_owned()),
                "{} links to {link}, but no heading makes that anchor",
                document.display()
            );
        }
    }
}

/// Returns the anchors of a document's headings, as code hosts make them.
fn anchors(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// Returns the string constants `NAME = "value"` of a source file.
fn constants(path: &str) -> BTreeMap<String, String> {
    let text = without_tests(&read(&root().join(path)));
    let constant = |line: &str| {
        let (name, value) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
        Some((name.to_owned(), value.strip_suffix("\";")?.to_owned()))
    };
    let found: BTreeMap<_, _> = text.lines().filter_map(constant).collect();
    assert!(!found.is_empty(), "{path} has constants");
    found
}

#[test]
fn the_wire_document_names_every_code_topic_and_limit() {
    let document = read(&root().join("docs/wire.md"));
    let fault = without_tests(&read(&root().join("ipc/src/fault.rs")));
    let codes: Vec<_> = fault.split('"').filter(|part| part.starts_with("E_") && !part.contains(['…', ' '])).collect();
    assert!(codes.len() > 10, "fault.rs has codes: {codes:?}");
    for code in codes {
        assert!(document.contains(&format!("`{code}`")), "docs/wire.md does not mention {code}");
    }
    let stats = without_tests(&read(&root().join("ipc/src/bus/stats.rs")));
    let (_, names) = stats.split_once("const NAMES").unwrap();
    let (names, _) = names.split_once("];\n").unwrap();
    let reasons: Vec<_> = names.split('"').skip(1).step_by(2).collect();
    assert!(reasons.len() > 10, "stats.rs has reasons: {reasons:?}");
    for reason in reasons {
        assert!(document.contains(&format!("`{reason}`")), "docs/wire.md does not mention the refusal {reason}");
    }
    for (name, topic) in constants("ipc/src/topic.rs") {
        assert!(document.contains(&format!("`{topic}")), "docs/wire.md does not mention {topic} ({name})");
    }
}

#[test]
fn every_test_that_stands_behind_a_promise_exists() {
    let document = read(&root().join("docs/writes.md"));
    let promises = document.lines().filter(|line| line.starts_with("| **"));
    let named: Vec<_> = promises
        .filter_map(|line| line.rsplit('|').nth(1))
        .flat_map(|column| column.split('`').skip(1).step_by(2))
        .collect();
    assert!(named.len() > 20, "docs/writes.md names tests: {named:?}");
    let dirs = ["ipc/src", "bridge/src", "dbproxy/src", "src", "tests"];
    let code: String = dirs.iter().flat_map(|dir| files(dir, "rs")).map(|path| read(&path)).collect();
    for name in named {
        assert!(code.contains(&format!("fn {name}(")), "docs/writes.md names {name}, and no test has that name");
    }
}

#[test]
fn the_shipped_binary_knows_no_place_to_die() {
    let help = pando(&Sandbox::new(), &["up", "--record", "history", "--name", "a"]);
    assert_eq!(help.code, Some(2), "{help}");
    let manifest = read(&root().join("Cargo.toml"));
    assert!(!manifest.lines().any(|line| line.starts_with("default =") && line.contains("failpoints")), "{manifest}");
}

#[test]
fn the_scripts_are_what_contributors_are_told() {
    let contributing = read(&root().join("CONTRIBUTING.md"));
    let scripts: Vec<_> = fs::read_dir(root().join("scripts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for script in scripts.iter().chain([&root().join(".ci/run")]) {
        let name = script.strip_prefix(root()).unwrap().display().to_string();
        assert!(contributing.contains(&name), "CONTRIBUTING.md does not mention {name}");
        let text = read(script);
        assert!(text.starts_with("#!/usr/bin/env bash\n") && text.contains("set -euo pipefail"), "{name}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(script).unwrap().permissions());
        assert!(mode & 0o111 == 0o111, "{name} can be executed");
    }
}
