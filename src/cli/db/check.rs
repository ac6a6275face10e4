//! `pando db check`: is the file sound?

use std::time::Duration;

use pando_dbproxy::catalog::{Depth, Health};

use super::{open, read_failure};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::{duration, output};

/// How long a check may take when nothing else is said: it reads the whole file.
const PATIENCE: Duration = Duration::from_secs(600);

/// Check that the database is sound: pages, rows, indexes, constraints, foreign keys
///
/// Reads the database file directly, so it works without a primary too. Exit code 1 when something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db check
  pando db check --quick --json")]
pub(crate) struct Args {
    /// Leave out the comparison of indexes with their tables: much faster
    #[arg(long)]
    quick: bool,
}

/// Checks and says what is wrong.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let health = open(&workdir)?.check(depth, context.timeout_or(PATIENCE)).await;
    let health = health.map_err(|error| read_failure(error, &workdir))?;
    if context.json() {
        output::json_for_reader(&health)?;
    } else {
        output::line(&human(&health))?;
    }
    if health.ok {
        return Ok(());
    }
    let count = health.problems.len();
    let (path, noun) = (workdir.database_path(), if count == 1 { "problem" } else { "problems" });
    Err(Failure::new(Kind::Failed, format!("{} is damaged: {count} {noun}", path.display()))
        .hint("put the last good copy in its place: 'pando db restore FILE'")
        .hint("or save what can be read: 'sqlite3 FILE .recover'"))
}

fn human(health: &Health) -> String {
    if health.ok {
        return format!("sound: {} pages in {}", health.pages, duration::human(Duration::from_millis(health.took_ms)));
    }
    health.problems.iter().map(|problem| output::printable(problem)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let health = |problems: &[&str]| Health {
            ok: problems.is_empty(),
            problems: problems.iter().map(ToString::to_string).collect(),
            pages: 1_280,
            took_ms: 3_200,
        };
        let broken =
            ["Tree 12 page 40: btreeInitPage() returns error code 11", "row 3 missing from index sessions_by_parent"];
        format!("{}\n{}", human(&health(&[])), human(&health(&broken)))
    }
}
