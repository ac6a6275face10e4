//! `pando db exec`: one write, through the primary, exactly once.

use std::time::Duration;

use pando_dbproxy::SqlValue;
use pando_ipc::client::CallError;
use pando_ipc::rpc::Json;
use pando_ipc::{Kind as PeerKind, Workdir};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::rows::Format;
use super::{parse_param, refused};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// Pause before a write is sent again under the same op id.
const SEND_AGAIN: Duration = Duration::from_millis(20);

/// Write with one SQL statement, through the primary
///
/// The write has an op id. When the primary goes before it answers, the write is sent again under the same id to the next one, and
/// applies once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db exec 'UPDATE sessions SET title = ? WHERE id = ?' --param '\"Plan\"' --param '\"s1\"'
  pando db exec --ddl 'CREATE TABLE notes (id TEXT PRIMARY KEY, text TEXT)'")]
pub(crate) struct Args {
    /// Statement to run
    sql: String,
    /// Value for the next '?', as JSON; repeat it for more
    #[arg(long = "param", value_name = "JSON", value_parser = parse_param)]
    params: Vec<Json>,
    /// Allow a change of the schema
    #[arg(long)]
    ddl: bool,
    /// Name the write, so that running this command again does not apply it again [default: a new one]
    #[arg(long, value_name = "ID", value_parser = parse_op_id)]
    op_id: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Reads an op id. An empty one would be a new write each time: what a script passes whose variable is not set.
fn parse_op_id(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("it is empty; name the write, or leave '--op-id' out") } else { Ok(text.to_owned()) }
}

/// What `db.exec` is asked.
#[derive(Debug, Serialize)]
struct Params<'a> {
    op_id: &'a str,
    ddl: bool,
    statements: [Statement<'a>; 1],
    timeout_ms: u64,
}

#[derive(Debug, Serialize)]
struct Statement<'a> {
    sql: &'a str,
    params: &'a [Json],
}

/// What `db.exec` answers.
#[derive(Debug, Deserialize)]
struct Answer {
    seq: u64,
    durability: String,
    results: Vec<Outcome>,
}

/// What became of one statement.
#[derive(Debug, Deserialize)]
struct Outcome {
    rows_affected: u64,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    rows: Vec<Vec<SqlValue>>,
}

/// Writes and prints what became of it.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let op_id = args.op_id.unwrap_or_else(|| Uuid::now_v7().to_string());
    let statement = Statement { sql: &args.sql, params: &args.params };
    let timeout_ms = u64::try_from(context.timeout().as_millis()).unwrap_or(u64::MAX);
    let params = Params { op_id: &op_id, ddl: args.ddl, statements: [statement], timeout_ms };
    let answer = send(&workdir, &params, context).await?;
    if context.json() {
        return output::json(&answer);
    }
    let format = args.format;
    let answer: Answer = serde_json::from_value(answer).map_err(|error| {
        Failure::new(Kind::Failed, format!("db.exec answered something else than documented: {error}"))
    })?;
    print(&answer, format, context)
}

/// Sends the write until it is answered for good or the time is over; the op id makes that safe.
async fn send(workdir: &Workdir, params: &Params<'_>, context: &Context) -> Result<Value, Failure> {
    let deadline = Instant::now() + context.timeout();
    let client = context.client(workdir, PeerKind::Client).await?;
    let outcome = loop {
        let error = match client.call_by("db.exec", params, deadline).await {
            Ok(answer) => break Ok(answer),
            Err(error) => error,
        };
        let again = match &error {
            CallError::Refused(fault) => fault.is_retryable(),
            CallError::Unknown(_) | CallError::NotSent(_) => true,
        };
        if again && Instant::now() + SEND_AGAIN < deadline {
            tokio::time::sleep(SEND_AGAIN).await;
            continue;
        }
        let unknown = matches!(error, CallError::Unknown(_));
        let failure = match error {
            CallError::Refused(fault) => refused(fault),
            error => Failure::call(error, workdir),
        };
        break Err(if unknown {
            failure.hint(format!("run it again with '--op-id {}': it applies once", params.op_id))
        } else {
            failure
        });
    };
    client.close().await;
    outcome
}

fn print(answer: &Answer, format: Format, context: &Context) -> Result<(), Failure> {
    for outcome in answer.results.iter().filter(|outcome| !outcome.columns.is_empty()) {
        format.print(&outcome.columns, &outcome.rows, &(), context)?;
    }
    if context.quiet() || format.is_for_programs(context) { Ok(()) } else { output::line(&summary(answer)) }
}

fn summary(answer: &Answer) -> String {
    let changed: u64 = answer.results.iter().map(|outcome| outcome.rows_affected).sum();
    let noun = if changed == 1 { "row" } else { "rows" };
    let safe = if answer.durability == "disk" { "on disk" } else { "in the system's memory" };
    format!("{changed} {noun} changed, seq {}, {safe}", answer.seq)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let answer = json!({"seq": 42, "epoch": 1, "durability": "disk", "results": [{"rows_affected": 1, "last_insert_rowid": 9}]});
        summary(&serde_json::from_value(answer).unwrap())
    }

    #[test]
    fn a_write_is_summed_up_in_one_line() {
        let answer = json!({"seq": 42, "epoch": 1, "durability": "disk", "results": [{"rows_affected": 1, "last_insert_rowid": 9}]});
        assert_eq!(summary(&serde_json::from_value(answer).unwrap()), "1 row changed, seq 42, on disk");
        let answer =
            json!({"seq": 43, "epoch": 1, "durability": "os", "results": [{"rows_affected": 0}, {"rows_affected": 2}]});
        assert_eq!(summary(&serde_json::from_value(answer).unwrap()), "2 rows changed, seq 43, in the system's memory");
    }
}
