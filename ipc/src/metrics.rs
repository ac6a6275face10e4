//! What is counted and timed: cheap to record from any thread, and one shape to tell it in.
//!
//! Recording is one or two atomic additions. A histogram has four buckets to each power of two, so that what is read from it is at
//! most a quarter too high.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets of a histogram: the last one takes everything from 2^26 on (67 s, for microseconds).
const BUCKETS: usize = 104;

/// How often which values occurred.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Records a value.
    pub fn record(&self, value: u64) {
        self.buckets[bucket_of(value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
        self.max.fetch_max(value, Relaxed);
    }

    /// Records a time, in microseconds.
    pub fn record_time(&self, time: Duration) {
        self.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Returns what was recorded so far.
    pub fn distribution(&self) -> Distribution {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max = self.max.load(Relaxed);
        // The smallest bound below which a share of all values lies.
        let quantile = |percent: u64| {
            let rank = (count * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let reached = |part: &u64| {
                seen += part;
                seen >= rank
            };
            counts.iter().position(reached).map_or(0, |bucket| bound_of(bucket).min(max))
        };
        let mut below = 0;
        let mut buckets = Vec::new();
        for (bucket, part) in counts.iter().enumerate() {
            below += part;
            // One bound for each power of two is enough for whoever collects these.
            if bucket % 4 == 3 && below > 0 && buckets.last().is_none_or(|(_, told)| *told < count) {
                buckets.push((bound_of(bucket), below));
            }
        }
        let (p50, p90, p99) = (quantile(50), quantile(90), quantile(99));
        Distribution { count, sum: self.sum.load(Relaxed), max, p50, p90, p99, buckets }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < 4 {
        return usize::try_from(value).unwrap_or_default();
    }
    let power = value.ilog2();
    let quarter = (value >> (power - 2)) & 3;
    let bucket = u64::from(power - 1) * 4 + quarter;
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Returns the largest value in a bucket.
fn bound_of(bucket: usize) -> u64 {
    if bucket < 4 { bucket as u64 } else { ((bucket as u64 % 4 + 5) << (bucket / 4 - 1)) - 1 }
}

/// What a histogram has recorded. Quantiles are at most a quarter too high.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The largest.
    pub max: u64,
    /// Half of them are not larger.
    pub p50: u64,
    /// 90 % of them are not larger.
    pub p90: u64,
    /// 99 % of them are not larger.
    pub p99: u64,
    /// Bounds, and how many values are not larger than each.
    pub buckets: Vec<(u64, u64)>,
}

/// What a metric's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// It only grows, from 0 at the start of a term.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One number, or one distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reading {
    /// A number.
    Number(f64),
    /// A distribution.
    Distribution(Distribution),
}

/// A reading and what it is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Names and values, such as `method` and `db.exec`.
    pub labels: Vec<(String, String)>,
    /// The reading.
    pub value: Reading,
}

/// A metric with its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name, with its unit at the end: `pando_call_seconds`.
    pub name: String,
    /// What it says, for people.
    pub help: String,
    /// What its numbers are.
    pub r#type: Type,
    /// One for each combination of labels.
    pub samples: Vec<Sample>,
}

impl Metric {
    /// Returns a metric without samples.
    pub fn new(r#type: Type, name: &str, help: &str) -> Self {
        Self { name: name.to_owned(), help: help.to_owned(), r#type, samples: Vec::new() }
    }

    /// Returns the metric with one more sample.
    #[must_use]
    pub fn with(mut self, labels: &[(&str, &str)], value: Reading) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.push(Sample { labels, value });
        self
    }

    /// Returns a metric of one number without labels.
    pub fn number(r#type: Type, name: &str, help: &str, value: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people and graphs")]
        let value = value as f64;
        Self::new(r#type, name, help).with(&[], Reading::Number(value))
    }

    /// Returns the factor from recorded values to the unit that the name ends in: times are recorded in microseconds.
    fn scale(&self) -> f64 {
        if self.name.ends_with("_seconds") { 1e-6 } else { 1.0 }
    }
}

/// Returns metrics in Prometheus' text format, version 0.0.4.
pub fn to_prometheus(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for metric in metrics {
        let (name, scale) = (&metric.name, metric.scale());
        let kind = match metric.r#type {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        // Writing into a String cannot fail.
        let _written = write!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help);
        for Sample { labels, value } in &metric.samples {
            match value {
                Reading::Number(number) => line(&mut text, name, labels, None, *number),
                Reading::Distribution(distribution) => {
                    #[expect(clippy::cast_precision_loss, reason = "a figure for people and graphs")]
                    let float = |value: u64| value as f64;
                    let bucket = format!("{name}_bucket");
                    for (bound, count) in &distribution.buckets {
                        line(&mut text, &bucket, labels, Some(&short(float(*bound) * scale)), float(*count));
                    }
                    line(&mut text, &bucket, labels, Some("+Inf"), float(distribution.count));
                    line(&mut text, &format!("{name}_sum"), labels, None, float(distribution.sum) * scale);
                    line(&mut text, &format!("{name}_count"), labels, None, float(distribution.count));
                }
            }
        }
    }
    text
}

fn line(text: &mut String, name: &str, labels: &[(String, String)], bound: Option<&str>, value: f64) {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    shown.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    let shown = if shown.is_empty() { String::new() } else { format!("{{{}}}", shown.join(",")) };
    // Writing into a String cannot fail.
    let _written = writeln!(text, "{name}{shown} {}", short(value));
}

/// Returns a number without the noise of its binary form.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_at_most_a_quarter_below_its_bound(value in 0..1_u64 << 26) {
            let bound = bound_of(bucket_of(value));
            prop_assert!(value <= bound && bound <= value + value / 4, "{} in {}", value, bound);
        }

        #[test]
        fn quantiles_bracket_the_true_ones(mut values in prop::collection::vec(0..1_000_000_u64, 1..200)) {
            let histogram = Histogram::default();
            for value in &values {
                histogram.record(*value);
            }
            values.sort_unstable();
            let distribution = histogram.distribution();
            for (percent, told) in [(50, distribution.p50), (90, distribution.p90), (99, distribution.p99)] {
                let truth = values[(values.len() * percent).div_ceil(100) - 1];
                prop_assert!(truth <= told && told <= truth + truth / 4, "p{}: {} for {}", percent, told, truth);
            }
            prop_assert_eq!(distribution.max, *values.last().unwrap());
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert!((0..BUCKETS - 1).all(|bucket| bucket_of(bound_of(bucket) + 1) == bucket + 1));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(Histogram::default().distribution(), Distribution::default());
    }

    #[test]
    fn metrics_read_as_prometheus_wants_them() {
        let histogram = Histogram::default();
        for micros in [100, 120, 3_000] {
            histogram.record_time(Duration::from_micros(micros));
        }
        let metrics = [
            Metric::number(Type::Gauge, "pando_head", "Number of the last event.", 41),
            Metric::new(Type::Histogram, "pando_call_seconds", "Time of calls.")
                .with(&[("method", "a\"b")], Reading::Distribution(histogram.distribution())),
        ];
        insta::assert_snapshot!(to_prometheus(&metrics), @r#"
        # HELP pando_head Number of the last event.
        # TYPE pando_head gauge
        pando_head 41
        # HELP pando_call_seconds Time of calls.
        # TYPE pando_call_seconds histogram
        pando_call_seconds_bucket{method="a\"b",le="0.000127"} 2
        pando_call_seconds_bucket{method="a\"b",le="0.000255"} 2
        pando_call_seconds_bucket{method="a\"b",le="0.000511"} 2
        pando_call_seconds_bucket{method="a\"b",le="0.001023"} 2
        pando_call_seconds_bucket{method="a\"b",le="0.002047"} 2
        pando_call_seconds_bucket{method="a\"b",le="0.004095"} 3
        pando_call_seconds_bucket{method="a\"b",le="+Inf"} 3
        pando_call_seconds_sum{method="a\"b"} 0.00322
        pando_call_seconds_count{method="a\"b"} 3
        "#);
    }
}
