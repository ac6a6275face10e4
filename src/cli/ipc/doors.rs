//! `pando ipc doors`: who is connected, and who was turned away.

use pando_ipc::Timestamp;
use serde_json::{Value, json};

use super::instances::ago;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Table, cell};

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
    let mut text = table(answer["peers"].as_array().map(Vec::as_slice).unwrap_or_default(), Timestamp::now())
        .render_within(context.palette(), context.width());
    if let Some(refused) = refused(&answer["refusals"]) {
        text = format!("{text}\n\nrefused  {refused}");
    }
    output::line(&text)
}

fn table(peers: &[Value], now: Timestamp) -> Table {
    let titles = ["INSTANCE", "SOCKET", "DOOR", "MAY", "UID", "PID", "IN", "OUT", "REFUSED", "SINCE", "EXECUTABLE"];
    let mut table = Table::new(titles);
    for peer in peers {
        let text = |key: &str| match &peer[key] {
            Value::Null => "-".to_owned(),
            value => cell(value),
        };
        let size = |key: &str| peer[key].as_u64().map_or_else(|| "-".to_owned(), bytes);
        table.row([
            text("instance_id"),
            text("socket"),
            text("door"),
            text("may"),
            text("uid"),
            text("pid"),
            size("bytes_in"),
            size("bytes_out"),
            text("refusals"),
            ago(&text("since"), now),
            text("executable"),
        ]);
    }
    table
}

/// Returns the refusals as `3 foreign_uid, 1 protocol`; `None` when there were none.
fn refused(refusals: &Value) -> Option<String> {
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
mod tests {
    use super::*;
    use crate::cli::output::Palette;

    #[test]
    fn connections_stand_in_a_table() {
        let now: Timestamp = serde_json::from_str("\"2026-11-21T03:00:00Z\"").unwrap();
        let rows = [
            json!({"instance_id": "inst-A", "socket": "rpc", "door": "native", "may": "control", "uid": 1000, "pid": 12,
                "bytes_in": 9999, "bytes_out": 30_000_000, "refusals": 0, "since": "2026-11-21T02:58:00.5Z", "executable": "/bin/pando"}),
            json!({"instance_id": null, "socket": "pub", "door": "tcp", "may": "control", "uid": null, "pid": null,
                "bytes_in": 0, "bytes_out": 10_000, "refusals": 3, "since": "2026-11-21T02:59:59Z", "executable": null}),
        ];
        insta::assert_snapshot!(table(&rows, now).render(Palette::plain()), @r"
        INSTANCE  SOCKET  DOOR    MAY      UID   PID  IN      OUT     REFUSED  SINCE       EXECUTABLE
        inst-A    rpc     native  control  1000  12   9999 B  28 MiB        0  1m 59s ago  /bin/pando
        -         pub     tcp     control  -     -    0 B     9 KiB         3  1s ago      -
        ");
        assert_eq!(refused(&json!({"foreign_uid": 3, "protocol": 1})).unwrap(), "3 foreign_uid, 1 protocol");
        assert_eq!(refused(&json!({})), None);
    }
}
