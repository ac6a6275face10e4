//! Everything a primary counts and times, in one list.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;

use pando_ipc::Bus;
use pando_ipc::metrics::{Metric, Reading, Type};

use super::lead::Primary;
use super::rates::Totals;

impl Primary {
    /// Notes how much has happened so far, for the rates.
    pub(super) fn sample(&self) {
        let calls = self.bus().map_or(0, |bus| bus.stats().calls);
        let meter = self.writer.meter();
        let totals = Totals { writes: meter.writes.distribution().count, events: meter.events(), calls };
        self.rates.sample(std::time::Instant::now(), totals);
    }

    /// Returns every metric of this term.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.own();
        metrics.extend(self.writes());
        metrics.extend(self.bus().iter().flat_map(calls_and_doors));
        metrics
    }

    fn own(&self) -> Vec<Metric> {
        let size = |suffix: &str| {
            let path = self.shared.workdir.database_path();
            fs::metadata(path.with_extension(format!("db{suffix}"))).map_or(0, |meta| meta.len())
        };
        let gauge = |name, help, value| Metric::number(Type::Gauge, name, help, value);
        vec![
            gauge("pando_epoch", "Term of the primary.", self.writer.epoch()),
            gauge("pando_uptime_seconds", "Since when the instance is there.", self.shared.joined.elapsed().as_secs()),
            Metric::number(
                Type::Counter,
                "pando_terms_total",
                "How often this instance became the primary.",
                self.shared.terms.load(Relaxed),
            ),
            gauge("pando_head", "Number of the last event.", self.writer.head()),
            gauge("pando_instances", "Instances in the workdir, the primary included.", self.roster.instances() + 1),
            gauge("pando_database_bytes", "Size of the database.", size("")),
            gauge("pando_wal_bytes", "Size of the database's write-ahead log.", size("-wal")),
        ]
    }

    fn writes(&self) -> Vec<Metric> {
        let meter = self.writer.meter();
        let histogram = |name, help, values: &pando_ipc::metrics::Histogram| {
            Metric::new(Type::Histogram, name, help).with(&[], Reading::Distribution(values.distribution()))
        };
        let rates = self.rates.per_second();
        let rate = |name, help, value| Metric::new(Type::Gauge, name, help).with(&[], Reading::Number(value));
        vec![
            histogram("pando_write_seconds", "Time from the submission of a write to its answer.", &meter.writes),
            Metric::number(Type::Counter, "pando_writes_refused_total", "Writes that were refused.", meter.refused()),
            histogram("pando_commit_seconds", "Time of a transaction, its writes included.", &meter.commits),
            histogram("pando_commit_writes", "Writes in a transaction.", &meter.batches),
            Metric::number(Type::Counter, "pando_events_total", "Events that were journaled.", meter.events()),
            Metric::number(Type::Gauge, "pando_queue_writes", "Writes that wait.", self.writer.waiting() as u64),
            rate("pando_writes_per_second", "Writes in a second, over the last ten.", rates.writes),
            rate("pando_events_per_second", "Journaled events in a second, over the last ten.", rates.events),
            rate("pando_calls_per_second", "Calls in a second, over the last ten.", rates.calls),
        ]
    }
}

fn calls_and_doors(bus: &Bus) -> Vec<Metric> {
    let stats = bus.stats();
    let mut time = Metric::new(Type::Histogram, "pando_call_seconds", "Time of calls, by method.");
    let mut refused =
        Metric::new(Type::Counter, "pando_calls_refused_total", "Calls that ended with a fault, by method.");
    for call in bus.methods().calls() {
        let labels = [("method", &*call.method)];
        time = time.with(&labels, Reading::Distribution(call.time));
        if call.refused > 0 {
            refused = refused.with(&labels, number(call.refused));
        }
    }
    let mut refusals = Metric::new(Type::Counter, "pando_door_refusals_total", "Peers refused or cut off, by reason.");
    for (reason, count) in &stats.refusals {
        refusals = refusals.with(&[("reason", reason)], number(*count));
    }
    let count = |kind, name, help, value| Metric::number(kind, name, help, value);
    vec![
        time,
        refused,
        count(Type::Counter, "pando_calls_total", "Calls and notifications received.", stats.calls),
        count(Type::Gauge, "pando_calls_in_flight", "Calls being executed.", stats.calls_in_flight as u64),
        count(Type::Counter, "pando_published_total", "Events published on PUB.", stats.published),
        count(Type::Gauge, "pando_subscribers", "Connected peers that follow events.", stats.subscribers as u64),
        count(Type::Gauge, "pando_callers", "Connected peers that may call.", stats.callers as u64),
        count(Type::Gauge, "pando_peer_queue_bytes", "Bytes queued for peers.", stats.queued_bytes as u64),
        count(Type::Counter, "pando_accepted_total", "Connections accepted.", stats.accepted),
        refusals,
    ]
}

fn number(value: u64) -> Reading {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people and graphs")]
    Reading::Number(value as f64)
}
