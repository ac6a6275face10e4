//! `pando metrics`: what the primary counts and times.

use pando_ipc::metrics::{Metric, to_prometheus};
use serde_json::json;

use super::context::Context;
use super::failure::{Failure, Kind};
use super::output;

/// Print what the primary counts and times, in Prometheus' text format
///
/// Counters begin at 0 in each term of a primary.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando metrics
  pando metrics --json | jq '.metrics[] | select(.name == \"pando_write_seconds\").samples[0].value.p99'
  pando metrics > /var/lib/node_exporter/pando.prom     for a collector of text files")]
pub(crate) struct Args {}

/// Prints them.
pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), Failure> {
    let mut answer = context.call("instance.metrics", json!({})).await?;
    if context.json() {
        return output::json_for_reader(&answer);
    }
    let metrics: Vec<Metric> = serde_json::from_value(answer["metrics"].take())
        .map_err(|error| Failure::new(Kind::Version, format!("the primary's metrics cannot be read: {error}")))?;
    output::raw(to_prometheus(&metrics).as_bytes())
}
