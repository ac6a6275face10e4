//! What could stand at a place of the command line: what the primary, the journal and the workdir know.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use pando_dbproxy::Readers;
use pando_ipc::cursor::Cursors;
use pando_ipc::{Workdir, read_lock_for_path, topic};
use serde_json::{Value, json};

use crate::cli::args::{Cli, Globals, LogFormat};
use crate::cli::context::Context;
use crate::cli::environment::Environment;
use crate::cli::output::{Color, cell};
use crate::cli::{db, status};

/// How long the primary and the file may take: a person has pressed a key and waits. What is not known by then is not offered.
const PATIENCE: Duration = Duration::from_millis(250);

/// Topics of the journal: one step through the index for each, however many events there are.
const TOPICS: &str = "WITH RECURSIVE topics (topic) AS (
    SELECT min(topic) FROM _pando_event
    UNION ALL SELECT (SELECT min(topic) FROM _pando_event WHERE topic > topics.topic) FROM topics WHERE topics.topic IS NOT NULL
) SELECT topic FROM topics WHERE topic IS NOT NULL LIMIT 500";
const SESSIONS: &str = "SELECT id, title FROM sessions ORDER BY updated_at DESC LIMIT 100";

/// Returns the methods of the primary; without one those of this release.
pub(crate) fn methods() -> Vec<CompletionCandidate> {
    let document = asked(async |here| here.call("rpc.discover", json!({})).await.ok()).unwrap_or_else(pando::open_rpc);
    let methods = document["methods"].as_array().into_iter().flatten();
    candidates(methods.map(|method| (cell(&method["name"]), cell(&method["summary"]))))
}

/// Returns the topics of the journal, and those that have a name in Pando.
pub(crate) fn topics() -> Vec<CompletionCandidate> {
    let mut topics: Vec<String> = read(TOPICS).into_iter().map(|(topic, _)| topic).collect();
    topics.extend(topic::KNOWN.map(str::to_owned));
    topics.sort();
    topics.dedup();
    candidates(topics.into_iter().map(|topic| (topic, String::new())))
}

/// Returns the instances that are here; when nobody tells, those that were here last.
pub(crate) fn instances() -> Vec<CompletionCandidate> {
    let present = asked(async |here| here.call("instance.list", json!({})).await.ok());
    let here = match present {
        Some(list) => list["instances"].as_array().cloned().unwrap_or_default(),
        None => asked(async |here| Some(last_here(&here.workdir().ok()?))).unwrap_or_default(),
    };
    let mut known: Vec<(String, String)> = Vec::new();
    for instance in here.iter().filter(|instance| instance["kind"].as_str().is_none_or(|kind| kind == "instance")) {
        let id = cell(&instance["instance_id"]);
        if !known.iter().any(|(other, _)| *other == id) {
            let role = instance["role"].as_str().or(instance["what"].as_str()).unwrap_or("primary");
            known.push((id, format!("{role}, pid {}", cell(&instance["pid"]))));
        }
    }
    candidates(known)
}

/// Returns whom the lock file and the lifecycle log name, the latest first.
fn last_here(workdir: &Workdir) -> Vec<Value> {
    let holder = read_lock_for_path(workdir).ok().map(|info| json!(info));
    holder.into_iter().chain(status::lifecycle_end(workdir).into_iter().rev()).collect()
}

/// Returns the newest sessions.
pub(crate) fn sessions() -> Vec<CompletionCandidate> {
    candidates(read(SESSIONS))
}

/// Returns the named cursors.
pub(crate) fn cursors() -> Vec<CompletionCandidate> {
    let listed = asked(async |here| Cursors::of(&here.workdir().ok()?).list().ok()).unwrap_or_default();
    candidates(listed.into_iter().map(|cursor| (cursor.name, format!("at seq {}", cursor.bookmark.seq))))
}

/// Returns the tables and views.
pub(crate) fn tables() -> Vec<CompletionCandidate> {
    let listed =
        asked(async |here| Readers::open(here.workdir().ok()?.database_path(), 1).definitions(true).await.ok());
    let tables = listed.unwrap_or_default().into_iter().filter(|it| ["table", "view"].contains(&it.kind.as_str()));
    candidates(tables.map(|it| (it.name, it.kind)))
}

/// Returns the names of commands at any depth, for the manual.
pub(crate) fn commands() -> Vec<CompletionCandidate> {
    fn below(command: &clap::Command) -> Vec<(String, String)> {
        let one = |it: &clap::Command| {
            (it.get_name().to_owned(), it.get_about().map(ToString::to_string).unwrap_or_default())
        };
        command.get_subcommands().flat_map(|it| std::iter::once(one(it)).chain(below(it))).collect()
    }
    candidates(below(&Cli::command()))
}

/// Returns what `ask` finds in the workdir that the command line names; `None` when that takes too long.
fn asked<T>(ask: impl AsyncFnOnce(&Context) -> Option<T>) -> Option<T> {
    let environment = Environment::read();
    let workdir = workdir_in(&environment.args, environment.home.clone());
    let globals = Globals {
        json: false,
        workdir,
        timeout: Some(PATIENCE),
        log_format: LogFormat::Text,
        color: Color::Never,
        quiet: true,
        verbose: 0,
    };
    let here = Context::new(globals, environment);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().ok()?;
    let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(&here)).await });
    // A thread that reads a slow file ends with the process.
    runtime.shutdown_background();
    found.ok().flatten()
}

/// Reads rows of one or two texts from the database.
fn read(sql: &str) -> Vec<(String, String)> {
    let rows = asked(async |here| db::read(&here.workdir().ok()?, sql, vec![], PATIENCE).await.ok());
    let rows = rows.map(|found| found.rows).unwrap_or_default();
    let text = |row: &[Value], at: usize| row.get(at).map(cell).unwrap_or_default();
    rows.iter().map(|row| (text(row, 0), text(row, 1))).collect()
}

/// Returns the workdir that the words of the command line name. They are as typed: bash makes three of `--workdir=DIR`.
fn workdir_in(words: &[OsString], home: Option<PathBuf>) -> Option<PathBuf> {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let at = words.iter().rposition(|word| *word == "--workdir" || word.starts_with("--workdir="))?;
    let named = match words[at].split_once('=') {
        Some((_, named)) => named,
        None => words[at + 1..].iter().copied().find(|word| *word != "=")?,
    };
    let named = named.trim_matches(['\'', '"']);
    match (named.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => Some(home.join(below)),
        _ => Some(named.into()),
    }
}

/// Returns what can be offered: a name that needs quotes would not be what it says once it stands on a command line.
fn candidates(named: impl IntoIterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let is_plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "._-@/+".contains(c));
    let offer = |(name, help): (String, String)| {
        let help: String = help.chars().filter(|c| !c.is_control()).collect();
        CompletionCandidate::new(name).help((!help.is_empty()).then(|| help.into()))
    };
    named.into_iter().filter(|(name, _)| is_plain(name)).map(offer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_workdir(line: &str, expected: Option<&str>) {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        assert_eq!(workdir_in(&words, Some("/home/eve".into())), expected.map(PathBuf::from), "{line}");
    }

    #[test]
    fn the_workdir_is_the_one_on_the_command_line() {
        check_workdir("pando -- pando ipc call", None);
        check_workdir("pando -- pando --workdir /w ipc call", Some("/w"));
        check_workdir("pando -- pando ipc call --workdir=/w", Some("/w"));
        check_workdir("pando -- pando --workdir = /w ipc call", Some("/w"));
        check_workdir("pando -- pando --workdir '~/w' ipc call", Some("/home/eve/w"));
        check_workdir("pando -- pando --workdir", None);
    }

    #[test]
    fn only_names_that_need_no_quotes_are_offered() {
        let named = ["a.b-c", "a b", "a*", "$(x)", "", "größe"].map(|name| (name.to_owned(), "one\ntwo".to_owned()));
        let offered = candidates(named);
        let names: Vec<_> = offered.iter().map(|it| it.get_value().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["a.b-c", "größe"]);
        assert_eq!(offered[0].get_help().unwrap().to_string(), "onetwo");
    }
}
