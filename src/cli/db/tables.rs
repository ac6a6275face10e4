//! `pando db tables`: what is in the database.

use pando_dbproxy::SqlValue;
use pando_dbproxy::catalog::TableInfo;
use serde_json::json;

use super::rows::Format;
use super::{open, read_failure};
use crate::cli::context::Context;
use crate::cli::failure::Failure;

/// List tables and views with their rows and sizes
///
/// Reads the database file directly, all of it: it works without a primary too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db tables
  pando db tables --all --csv")]
pub(crate) struct Args {
    /// Show Pando's and SQLite's own tables, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

/// Lists them.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let found = open(&workdir)?.tables(args.all, context.timeout()).await;
    let found = found.map_err(|error| read_failure(error, &workdir))?;
    args.format.print(&COLUMNS.map(str::to_owned), &rows(&found), &json!({ "tables": found }), context)
}

/// What is told of each.
const COLUMNS: [&str; 5] = ["table", "kind", "columns", "rows", "bytes"];

fn rows(found: &[TableInfo]) -> Vec<Vec<SqlValue>> {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let row = |table: &TableInfo| {
        vec![
            SqlValue::from(&table.name),
            SqlValue::from(&table.kind),
            number(table.columns).into(),
            table.rows.map(number).into(),
            table.bytes.map(number).into(),
        ]
    };
    found.iter().map(row).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::rows::table;
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let one = |name: &str, kind: &str, rows, bytes| TableInfo {
            name: name.into(),
            kind: kind.into(),
            columns: 7,
            rows,
            bytes,
        };
        let found = [one("sessions", "table", Some(1_200), Some(16_384)), one("open_sessions", "view", None, None)];
        table(&COLUMNS.map(str::to_owned), &rows(&found)).render_within(palette, columns)
    }
}
