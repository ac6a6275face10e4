//! `pando ipc instances`: who is in the workdir.

use chrono::DateTime;
use pando_ipc::Timestamp;
use serde_json::{Value, json};

use crate::cli::context::Context;
use crate::cli::duration;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Table, cell};

/// List who is in this workdir, the primary first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando ipc instances
  pando ipc instances --json | jq -r '.instances[].instance_id'")]
pub(crate) struct Args {}

/// Prints the list.
pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), Failure> {
    let answer = context.call("instance.list", json!({})).await?;
    if context.json() {
        return output::json_for_reader(&answer);
    }
    let instances = answer["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    output::line(&table(instances, Timestamp::now()).render_within(context.palette(), context.width()))
}

/// Returns the rows of `instance.list` as a table.
pub(crate) fn table(instances: &[Value], now: Timestamp) -> Table {
    let mut table = Table::new(["INSTANCE", "KIND", "ROLE", "STATE", "PID", "VERSION", "SINCE"]);
    for instance in instances {
        let text = |key: &str| match &instance[key] {
            Value::Null => "-".to_owned(),
            value => cell(value),
        };
        let since = ago(&text("since"), now);
        table.row([
            text("instance_id"),
            text("kind"),
            text("role"),
            text("state"),
            text("pid"),
            text("version"),
            since,
        ]);
    }
    table
}

/// Returns how long ago a time in RFC 3339 was; what is none comes back as it is.
pub(super) fn ago(since: &str, now: Timestamp) -> String {
    let Ok(since) = DateTime::parse_from_rfc3339(since) else { return since.to_owned() };
    let past = (now.as_datetime() - since.to_utc()).to_std().unwrap_or_default();
    format!("{} ago", duration::human(past))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let now: Timestamp = serde_json::from_str("\"2026-11-21T03:00:00Z\"").unwrap();
        let rows = [
            json!({"instance_id": "inst-A", "kind": "instance", "role": "primary", "state": "online", "pid": 12, "version": "0.1.0", "since": "2026-11-21T02:58:00.5Z"}),
            json!({"instance_id": "cli-7", "kind": "client", "role": null, "pid": 1234, "version": "0.1.0", "since": "?"}),
        ];
        table(&rows, now).render_within(palette, columns)
    }
}
