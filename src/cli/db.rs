//! `pando db`: SQL from the shell.

mod exec;
mod query;

use clap::Subcommand;
use serde_json::Value;

use super::context::Context;
use super::failure::Failure;
use super::output::{Table, cell};

pub(crate) use query::{read, read_failure};

/// Read and write the workdir's database with SQL
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Exec(exec::Args),
    Query(query::Args),
}

/// Runs one of them.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Exec(args) => exec::run(args, context).await,
        Command::Query(args) => query::run(args, context).await,
    }
}

/// Reads the value of one `--param`.
fn parse_param(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}; a text needs its quotes: '\"{text}\"'"))
}

/// Returns rows as a table for people.
fn rows(columns: &[String], rows: &[Vec<Value>]) -> Table {
    let mut table = Table::new(columns);
    for row in rows {
        table.row(row.iter().map(cell));
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_param_is_json_and_bare_text_gets_a_hint() {
        assert_eq!(parse_param("5"), Ok(json!(5)));
        assert_eq!(parse_param("\"a b\""), Ok(json!("a b")));
        insta::assert_snapshot!(parse_param("abc").unwrap_err(), @r#"not JSON: expected value at line 1 column 1; a text needs its quotes: '"abc"'"#);
    }
}
