//! `pando db stats`: sizes and counts of the database.

use pando_dbproxy::catalog::Stats;

use super::{open, read_failure};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Palette};

/// Show sizes and counts: file, write-ahead log, journal, versions
///
/// Reads the database file directly, so it works without a primary too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db stats
  pando db stats --json | jq .wal_bytes")]
pub(crate) struct Args {}

/// Prints them.
pub(crate) async fn run(Args {}: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let stats = open(&workdir)?.stats().await.map_err(|error| read_failure(error, &workdir))?;
    if context.json() {
        return output::json_for_reader(&stats);
    }
    output::line(&human(&stats, context.palette()))
}

fn human(stats: &Stats, palette: Palette) -> String {
    let free = stats.free_pages * stats.page_bytes;
    let events = if stats.head == 0 { 0 } else { stats.head + 1 - stats.oldest_event };
    output::facts(
        &[
            ("database", stats.database.to_string()),
            ("file", stats.path.display().to_string()),
            ("size", format!("{} ({} of it free)", output::bytes(stats.bytes), output::bytes(free))),
            ("log", format!("{} of writes not moved into the file yet, at most", output::bytes(stats.wal_bytes))),
            ("tables", stats.tables.to_string()),
            ("journal", format!("{events} events, seq {} to {}", stats.oldest_event, stats.head)),
            ("answers", format!("{} kept for retries", stats.ops)),
            ("epoch", stats.epoch.to_string()),
            ("schema", format!("version {}, by pando {}", stats.schema_version, stats.schema_made_by)),
            ("sqlite", stats.sqlite_version.clone()),
        ],
        palette,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
        let stats = Stats {
            path: "/w/.pando/pando.db".into(),
            database: uuid::Uuid::nil(),
            epoch: 3,
            schema_version: 2,
            schema_made_by: "0.1.0".into(),
            sqlite_version: "3.54.1".into(),
            bytes: 5 << 20,
            wal_bytes: 2_048,
            page_bytes: 4_096,
            pages: 1_280,
            free_pages: 1,
            tables: 7,
            oldest_event: 1,
            head: 42,
            ops: 9,
        };
        human(&stats, palette)
    }
}
