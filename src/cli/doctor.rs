//! `pando doctor`: what could be wrong, checked one by one, with the next step for each.

mod bundle;
mod database;
mod host;
mod lock;
mod room;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::context::Context;
use super::failure::{Failure, Kind};
use super::output::{self, Palette};

use room::Room;

/// Look for everything that is known to go wrong, and say what to do about it
///
/// It changes nothing and needs no primary. Exit code 0 when all is well, 8 when there are warnings, 1 when there are faults.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando doctor
  pando doctor --json | jq '.checks[] | select(.status != \"ok\")'
  pando doctor --bundle report.json      everything for a report of a fault, without your data")]
pub(crate) struct Args {
    /// Write the findings, logs and sizes to FILE: no rows, no payloads of events, no names of yours in paths
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    bundle: Option<PathBuf>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// There was nothing to look at.
    Skipped,
    /// All is well.
    Ok,
    /// It works, but not as it should, or not for long.
    Warning,
    /// It does not work.
    Fault,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    /// The check's name; it does not change between releases.
    id: &'static str,
    status: Status,
    /// One line for people.
    summary: String,
    /// What was seen, for programs.
    details: Map<String, Value>,
    /// What to do, when something is wrong.
    remediation: Option<String>,
}

impl Finding {
    fn new(status: Status, summary: impl Into<String>) -> Self {
        Self { id: "", status, summary: summary.into(), details: Map::new(), remediation: None }
    }

    fn ok(summary: impl Into<String>) -> Self {
        Self::new(Status::Ok, summary)
    }

    fn skipped(why: impl Into<String>) -> Self {
        Self::new(Status::Skipped, why)
    }

    fn warning(summary: impl Into<String>, remediation: impl Into<String>) -> Self {
        Self { remediation: Some(remediation.into()), ..Self::new(Status::Warning, summary) }
    }

    fn fault(summary: impl Into<String>, remediation: impl Into<String>) -> Self {
        Self { remediation: Some(remediation.into()), ..Self::new(Status::Fault, summary) }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

/// A check: it looks, and changes nothing.
type Check = fn(&Room) -> Finding;

/// All checks, in the order in which one thing builds on the other.
const CHECKS: [(&str, Check); 19] = [
    ("host.filesystem", host::filesystem),
    ("host.space", host::space),
    ("host.descriptors", host::descriptors),
    ("host.clock", host::clock),
    ("workdir.permissions", lock::permissions),
    ("workdir.settings", database::settings),
    ("lock.file", lock::file),
    ("lock.inode", lock::inode),
    ("primary.answers", lock::answers),
    ("primary.version", lock::version),
    ("primary.ports", lock::ports),
    ("sockets.stale", lock::sockets),
    ("roles.steady", lock::steady),
    ("database.file", database::file),
    ("database.opens", database::opens),
    ("database.sqlite", database::sqlite),
    ("database.wal", database::wal),
    ("journal.retention", database::retention),
    ("journal.cursors", database::cursors),
];

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    workdir: PathBuf,
    version: &'static str,
    /// The worst of all.
    status: Status,
    checks: Vec<Finding>,
}

/// Looks, prints, and ends with what was worst.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.any_workdir()?;
    let room = Room::look(&workdir).await;
    let checks: Vec<Finding> = CHECKS.iter().map(|(id, check)| Finding { id, ..check(&room) }).collect();
    let status = checks.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    let report = Report { workdir: workdir.path().to_owned(), version: env!("CARGO_PKG_VERSION"), status, checks };
    if let Some(path) = &args.bundle {
        bundle::write(path, &report, &room, context)?;
        if !context.quiet() {
            output::note(&format!("wrote {}; look at it before you send it", path.display()));
        }
    }
    if context.json() {
        output::json_for_reader(&report)?;
    } else {
        output::line(&human(&report, context.palette()))?;
    }
    verdict(&report)
}

/// Returns the end of the command: the worst of all findings decides, and has an exit code of its own.
fn verdict(report: &Report) -> Result<(), Failure> {
    let worst = || {
        let ids: Vec<_> = report.checks.iter().filter(|it| it.status == report.status).map(|it| it.id).collect();
        ids.join(", ")
    };
    match report.status {
        Status::Skipped | Status::Ok => Ok(()),
        Status::Warning => Err(Failure::new(Kind::Warned, format!("warnings: {}", worst()))),
        Status::Fault => Err(Failure::new(Kind::Failed, format!("faults: {}", worst()))),
    }
}

fn human(report: &Report, palette: Palette) -> String {
    let width = CHECKS.iter().map(|(id, _)| id.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for finding in &report.checks {
        let mark = match finding.status {
            Status::Skipped => palette.faint("  --"),
            Status::Ok => palette.good("  ok"),
            Status::Warning => palette.hint("warn"),
            Status::Fault => palette.error("FAIL"),
        };
        lines.push(format!("{mark}  {:<width$}  {}", finding.id, output::printable(&finding.summary)));
        if let Some(next) = &finding.remediation {
            lines.push(format!("      {:<width$}  {} {}", "", palette.hint("next:"), output::printable(next)));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn report() -> Report {
        let named = |id, finding| Finding { id, ..finding };
        let checks = vec![
            named("host.filesystem", Finding::ok("ext4, local")),
            named("host.space", Finding::warning("50.0 MiB are free", "make room: 'df -h /w'")),
            named("primary.answers", Finding::fault("inst-A, pid 7, is stopped", "end it: 'pando ipc evict'")),
            named("database.opens", Finding::skipped("there is no database yet")),
        ];
        Report { workdir: "/w".into(), version: "0.1.0", status: Status::Fault, checks }
    }

    pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
        human(&report(), palette)
    }

    #[test]
    fn the_exit_code_tells_the_worst() {
        for (status, code) in [(Status::Skipped, 0), (Status::Ok, 0), (Status::Warning, 8), (Status::Fault, 1)] {
            let ended = verdict(&Report { status, ..report() });
            assert_eq!(ended.map_or_else(|failure| failure.kind.code(), |()| 0), code, "{status:?}");
        }
    }

    #[test]
    fn ids_are_unique_and_the_worst_counts() {
        let mut ids: Vec<_> = CHECKS.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CHECKS.len());
        assert!(Status::Fault > Status::Warning && Status::Warning > Status::Ok && Status::Ok > Status::Skipped);
    }
}
