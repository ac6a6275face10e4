//! `pando db schema`: how the tables were made.

use clap_complete::ArgValueCandidates;
use pando_dbproxy::catalog::Definition;
use serde_json::json;

use super::{open, read_failure};
use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// Print the CREATE statements of tables, indexes, views and triggers
///
/// Reads the database file directly, so it works without a primary too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db schema
  pando db schema sessions")]
pub(crate) struct Args {
    /// Print this table alone, with what belongs to it
    #[arg(add = ArgValueCandidates::new(live::tables))]
    table: Option<String>,
    /// Print Pando's own tables, too
    #[arg(long)]
    all: bool,
}

/// Prints them.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let all = args.all || args.table.is_some();
    let found = open(&workdir)?.definitions(all).await.map_err(|error| read_failure(error, &workdir))?;
    let wanted =
        |definition: &Definition| args.table.as_ref().is_none_or(|table| definition.table.eq_ignore_ascii_case(table));
    let found: Vec<Definition> = found.into_iter().filter(wanted).collect();
    if let (Some(table), true) = (&args.table, found.is_empty()) {
        return Err(Failure::new(Kind::Failed, format!("no table {table:?} in {}", workdir.database_path().display()))
            .hint("list them with 'pando db tables --all'"));
    }
    if context.json() {
        return output::json_for_reader(&json!({ "definitions": found }));
    }
    output::raw(human(&found).as_bytes())
}

fn human(found: &[Definition]) -> String {
    let lines = |definition: &Definition| {
        let safe: Vec<String> = definition.sql.lines().map(output::printable).collect();
        format!("{};\n", safe.join("\n"))
    };
    found.iter().map(lines).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let sql = "CREATE TABLE notes (\n    id TEXT PRIMARY KEY,\n    text -- \u{1b}[2J\n)";
        let one = |kind: &str, sql: &str| Definition {
            kind: kind.into(),
            name: "n".into(),
            table: "notes".into(),
            sql: sql.into(),
        };
        human(&[one("table", sql), one("index", "CREATE INDEX n ON notes (text)")]).trim_end().to_owned()
    }
}
