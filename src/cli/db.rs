//! `pando db`: the workdir's database from the shell: SQL, what is in it, and its care.

pub(super) mod backup;
pub(super) mod check;
mod copying;
pub(super) mod exec;
mod query;
pub(super) mod restore;
pub(super) mod rows;
pub(super) mod schema;
pub(super) mod stats;
pub(super) mod tables;

use clap::Subcommand;
use pando_dbproxy::Readers;
use pando_ipc::Workdir;
use serde_json::Value;

use super::context::Context;
use super::failure::{Failure, Kind};

pub(crate) use query::{read, read_failure};

/// Read, write, copy and check the workdir's database
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Exec(exec::Args),
    Query(query::Args),
    Tables(tables::Args),
    Schema(schema::Args),
    Stats(stats::Args),
    Check(check::Args),
    Backup(backup::Args),
    Restore(restore::Args),
}

/// Runs one of them.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Exec(args) => exec::run(args, context).await,
        Command::Query(args) => query::run(args, context).await,
        Command::Tables(args) => tables::run(args, context).await,
        Command::Schema(args) => schema::run(args, context).await,
        Command::Stats(args) => stats::run(args, context).await,
        Command::Check(args) => check::run(args, context).await,
        Command::Backup(args) => backup::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
    }
}

/// Reads the value of one `--param`.
fn parse_param(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}; a text needs its quotes: '\"{text}\"'"))
}

/// Opens the database file of a workdir for reading; needs no primary.
fn open(workdir: &Workdir) -> Result<Readers, Failure> {
    let path = workdir.database_path();
    if !path.exists() {
        return Err(Failure::new(Kind::Failed, format!("no database at {}", path.display()))
            .hint("the first primary makes it: 'pando up'"));
    }
    Ok(Readers::open(path, 1))
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
