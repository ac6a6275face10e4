//! `pando db query`: reads the file itself; needs no primary.

use std::time::Duration;

use pando_dbproxy::{Params, QueryLimits, QueryResult, ReadError, SqlValue};
use pando_ipc::rpc::Json;
use pando_ipc::{Code, Workdir};
use serde_json::Value;

use super::rows::Format;
use super::{open, parse_param, refused};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};

/// Read with one SQL statement
///
/// Reads the database file directly, so it works without a primary too and slows nobody down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db query 'SELECT id, title FROM sessions'
  pando db query 'SELECT * FROM messages WHERE session_id = ?' --param '\"s1\"' --json
  pando db query 'SELECT * FROM files' --csv > files.csv")]
pub(crate) struct Args {
    /// Statement to run
    sql: String,
    /// Value for the next '?', as JSON; repeat it for more
    #[arg(long = "param", value_name = "JSON", value_parser = parse_param)]
    params: Vec<Json>,
    #[command(flatten)]
    format: Format,
}

/// Most rows that are read: they are held in memory before they are printed.
const MAX_ROWS: usize = 1_000_000;
/// Most bytes that are read, as JSON.
const MAX_BYTES: usize = 256 << 20;

/// Rows as JSON: the shape of the method `db.query`.
pub(crate) struct Rows {
    /// Rows of values in the order of the columns.
    pub(crate) rows: Vec<Vec<Value>>,
}

/// Runs it and prints the rows.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let found = find(&workdir, &args.sql, &args.params, context.timeout()).await?;
    args.format.print(&found.columns, &found.rows, &found, context)
}

/// Reads the database of a workdir from its file.
pub(crate) async fn read(workdir: &Workdir, sql: &str, params: Vec<Value>, within: Duration) -> Result<Rows, Failure> {
    let params: Vec<_> = params.into_iter().map(Json::from).collect();
    let found = find(workdir, sql, &params, within).await?;
    Ok(Rows { rows: found.rows.iter().map(|row| row.iter().map(SqlValue::to_json).collect()).collect() })
}

async fn find(workdir: &Workdir, sql: &str, params: &[Json], within: Duration) -> Result<QueryResult, Failure> {
    let readers = open(workdir)?;
    let params = Params::from_json("query", "param", Some(Json::of(&params).raw())).map_err(refused)?;
    let limits = QueryLimits { rows: MAX_ROWS, bytes: MAX_BYTES, time: within };
    readers.query(sql, params, limits).await.map_err(|error| read_failure(error, workdir))
}

/// Returns the failure to read the database of a workdir.
pub(crate) fn read_failure(error: ReadError, workdir: &Workdir) -> Failure {
    match error {
        ReadError::Refused(fault) if fault.is(Code::Forbidden) => {
            // The writer's hint speaks of its own options.
            Failure {
                hints: vec!["a query only reads; write with 'pando db exec'".to_owned()],
                ..Failure::refused(fault)
            }
        }
        ReadError::Refused(fault) => refused(fault),
        error @ (ReadError::NotReady { .. } | ReadError::Behind { .. } | ReadError::Row(_) | ReadError::CutOff(_)) => {
            let path = workdir.database_path();
            Failure::new(Kind::Failed, format!("cannot read {}: {error}", path.display()))
        }
    }
}
