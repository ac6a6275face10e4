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

#[cfg(test)]
pub(crate) mod tests {
    use pando_ipc::metrics::{Histogram, Reading, Type};

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let times = Histogram::default();
        for micros in [800, 12_000] {
            times.record(micros);
        }
        let histogram = Metric::new(Type::Histogram, "pando_call_seconds", "How long calls took.")
            .with(&[("method", "events.publish")], Reading::Distribution(times.distribution()));
        to_prometheus(&[Metric::number(Type::Gauge, "pando_epoch", "Term of the primary.", 3), histogram])
            .trim_end()
            .to_owned()
    }
}
