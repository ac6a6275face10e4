//! `pando db query`: reads the file itself; needs no primary.

use pando_dbproxy::{ReadError, Readers, wire};
use pando_ipc::Workdir;
use serde_json::{Value, json};

use super::{parse_param, rows};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// Read with one SQL statement
///
/// Reads the database file directly, so it works without a primary too and slows nobody down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db query 'SELECT id, title FROM sessions'
  pando db query 'SELECT * FROM messages WHERE session_id = ?' --param '\"s1\"' --json")]
pub(crate) struct Args {
    /// Statement to run
    sql: String,
    /// Value for the next '?', as JSON; repeat it for more
    #[arg(long = "param", value_name = "JSON", value_parser = parse_param)]
    params: Vec<Value>,
}

/// What `--json` prints: the shape of the method `db.query`.
pub(crate) struct Rows {
    /// Names of the columns.
    pub(crate) columns: Vec<String>,
    /// Rows of values in the order of the columns.
    pub(crate) rows: Vec<Vec<Value>>,
}

/// Runs it and prints the rows.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let deadline = context.timeout();
    let read = read(&workdir, &args.sql, args.params);
    let found = tokio::time::timeout(deadline, read).await.map_err(|_elapsed| {
        Failure::new(Kind::Timeout, format!("the query took longer than {deadline:?}"))
            .hint("give it longer with '--timeout 1m'")
    })??;
    if context.json() {
        return output::json_for_reader(&json!({"columns": found.columns, "rows": found.rows}));
    }
    output::line(&rows(&found.columns, &found.rows).render(context.palette()))
}

/// Reads the database of a workdir from its file.
pub(crate) async fn read(workdir: &Workdir, sql: &str, params: Vec<Value>) -> Result<Rows, Failure> {
    let path = workdir.database_path();
    if !path.exists() {
        return Err(Failure::new(Kind::Failed, format!("no database at {}", path.display()))
            .hint("the first primary makes it: 'pando up'"));
    }
    let params = wire::parse_params(Value::Array(params)).map_err(Failure::refused)?;
    let table = Readers::open(&path, 1).query(sql, params).await.map_err(|error| match error {
        ReadError::Refused(fault) => Failure::refused(fault)
            .hint("write with 'pando db exec'; see the tables with 'SELECT name FROM sqlite_schema'"),
        error => Failure::new(Kind::Failed, format!("cannot read {}: {error}", path.display())),
    })?;
    Ok(Rows { columns: table.columns, rows: table.rows })
}
