//! `pando ipc doors`: who is connected, and who was turned away.

use pando_ipc::Timestamp;
use serde_json::{Value, json};

use super::instances::ago;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Palette, Table, WIDE, cell};

/// List every connection to the primary, and who was turned away
///
/// One line per connection: a client that calls and follows has two. The user and the process are what the system says of
/// the connection; the instance is what the peer says of itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando ipc doors
  pando ipc doors --json | jq '.peers[] | {pid, executable, bytes_in, bytes_out}'
  pando ipc tail 'door.*'           who is turned away, as it happens")]
pub(crate) struct Args {}

/// Prints the list.
pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), Failure> {
    let answer = context.call("instance.doors", json!({})).await?;
    if context.json() {
        return output::json_for_reader(&answer);
    }
    output::line(&human(&answer, Timestamp::now(), context.palette(), context.width()))
}

fn human(answer: &Value, now: Timestamp, palette: Palette, columns: Option<usize>) -> String {
    let peers = answer["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = table(peers, now, columns).render_within(palette, columns);
    match refused(&answer["refusals"]) {
        Some(refused) => format!("{text}\n\nrefused  {refused}"),
        None => text,
    }
}

/// The columns: their titles, what stands in them, and whether a narrow terminal has room for them; `--json` has all.
const COLUMNS: [(&str, &str, bool); 11] = [
    ("INSTANCE", "instance_id", true),
    ("SOCKET", "socket", true),
    ("DOOR", "door", true),
    ("MAY", "may", false),
    ("UID", "uid", false),
    ("PID", "pid", true),
    ("IN", "bytes_in", true),
    ("OUT", "bytes_out", true),
    ("REFUSED", "refusals", false),
    ("SINCE", "since", true),
    ("EXECUTABLE", "executable", true),
];

fn table(peers: &[Value], now: Timestamp, width: Option<usize>) -> Table {
    let is_wide = width.is_none_or(|width| width >= WIDE);
    let columns = COLUMNS.iter().filter(|(.., always)| is_wide || *always);
    let mut table = Table::new(columns.clone().map(|(title, ..)| title));
    for peer in peers {
        table.row(columns.clone().map(|(_, key, _)| match (*key, &peer[*key]) {
            (_, Value::Null) => "-".to_owned(),
            ("bytes_in" | "bytes_out", Value::Number(count)) => count.as_u64().map_or_else(|| "-".to_owned(), bytes),
            ("since", Value::String(since)) => ago(since, now),
            (_, value) => cell(value),
        }));
    }
    table
}

/// Returns the refusals as `3 foreign_uid, 1 protocol`; `None` when there were none.
pub(crate) fn refused(refusals: &Value) -> Option<String> {
    let counts = refusals.as_object()?.iter().map(|(reason, count)| format!("{count} {reason}"));
    Some(counts.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
}

/// Writes a size in the largest unit that leaves a number of at most four digits.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let unit = units.iter().enumerate().find(|(power, _)| count >> (10 * power) < 10_000);
    let (power, unit) = unit.unwrap_or((units.len() - 1, &"GiB"));
    format!("{} {unit}", count >> (10 * power))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let now: Timestamp = serde_json::from_str("\"2026-11-21T03:00:00Z\"").unwrap();
        let peers = [
            json!({"instance_id": "inst-A", "socket": "rpc", "door": "native", "may": "control", "uid": 1000, "pid": 12,
                "bytes_in": 9999, "bytes_out": 30_000_000, "refusals": 0, "since": "2026-11-21T02:58:00.5Z", "executable": "/bin/pando"}),
            json!({"instance_id": null, "socket": "pub", "door": "tcp", "may": "control", "uid": null, "pid": null,
                "bytes_in": 0, "bytes_out": 10_000, "refusals": 3, "since": "2026-11-21T02:59:59Z", "executable": null}),
        ];
        human(&json!({"peers": peers, "refusals": {"foreign_uid": 3, "protocol": 1}}), now, palette, columns)
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        assert_eq!(refused(&json!({"foreign_uid": 3, "protocol": 1})).unwrap(), "3 foreign_uid, 1 protocol");
        assert_eq!(refused(&json!({})), None);
    }
}
