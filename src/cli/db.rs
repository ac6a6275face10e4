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
use pando_ipc::rpc::Json;
use pando_ipc::{Fault, Workdir};

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

/// Reads the value of one `--param`, every digit as it is.
fn parse_param(text: &str) -> Result<Json, String> {
    Json::parse(text).map_err(|error| format!("not JSON: {error}; a text needs its quotes: '\"{text}\"'"))
}

/// Returns the failure of a statement that was refused.
fn refused(fault: Fault) -> Failure {
    let hint = match fault.data.as_ref().and_then(|data| data["field"].as_str()) {
        Some(field) if field.starts_with("param") => {
            "repeat '--param' once for each '?', with a value of SQLite as JSON"
        }
        Some("sql") => "give one statement, and run the command once for each",
        _ => return Failure::refused(fault),
    };
    Failure { kind: Kind::Usage, hints: vec![hint.to_owned()], ..Failure::refused(fault) }
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
    use super::*;

    #[test]
    fn a_param_is_json_and_bare_text_gets_a_hint() {
        let text = |given| parse_param(given).unwrap().to_string();
        assert_eq!((text("5"), text("\"a b\"")), ("5".to_owned(), "\"a b\"".to_owned()));
        insta::assert_snapshot!(parse_param("abc").unwrap_err(), @r#"not JSON: expected value at line 1 column 1; a text needs its quotes: '"abc"'"#);
    }
}
