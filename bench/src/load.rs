//! Load on one process, and what it measured: closed loops, or starts at random times that do not wait for the answers.

use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::case::Metrics;

/// Longest latency that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 120_000_000_000;
/// Significant digits of a recorded latency.
const DIGITS: u8 = 3;

/// When operations start.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// Before this nothing counts.
    pub(crate) warm_up: Duration,
    /// For so long it counts.
    pub(crate) time: Duration,
    /// Mean starts per second at random times; `None` starts one operation after the other.
    pub(crate) per_second: Option<f64>,
    /// Makes the random times those of this process.
    pub(crate) seed: u64,
}

/// A course through a [`Pace`].
#[derive(Debug)]
pub(crate) struct Course {
    cpu_seconds: f64,
    warm_up: Duration,
    counts_from: Instant,
    end: Instant,
    /// When the next operation is due, and the state of the generator of pauses.
    paced: Option<(f64, Instant, u64)>,
    tally: Tally,
}

/// What a process measured.
#[derive(Debug)]
struct Tally {
    latencies: Histogram<u64>,
    failed: u64,
}

/// What a process measured, on its way to the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Whether it was there for others to work with.
    is_idle: bool,
    /// Processor time of the process, in seconds.
    cpu_seconds: f64,
    /// Operations that failed.
    failed: u64,
    /// For so long was measured.
    seconds: f64,
    /// Latencies in nanoseconds and how often each was met.
    latencies: Vec<(u64, u64)>,
}

impl Outcome {
    /// Returns it as that of a process whose operations are not what is measured.
    pub(crate) fn into_idle(self) -> Self {
        Self { is_idle: true, ..self }
    }

    /// Adds what another loop of the same process measured at the same time.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.failed += other.failed;
        self.latencies.extend(other.latencies);
        self
    }
}

/// Deliveries on one process: latencies from when an event was due to when it was received, and how many never came.
#[derive(Debug)]
pub(crate) struct Deliveries {
    cpu_seconds: f64,
    pace: Pace,
    end: Instant,
    /// What counts, on [`monotonic_ns`].
    counts_ns: Range<u64>,
    last: Option<u64>,
    tally: Tally,
}

impl Deliveries {
    /// Begins now.
    pub(crate) fn begin(pace: Pace) -> Self {
        let (cpu_seconds, end) = (cpu_seconds(), Instant::now() + pace.warm_up + pace.time);
        let later = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let from = monotonic_ns() + later(pace.warm_up);
        let counts_ns = from..from.saturating_add(later(pace.time));
        Self { cpu_seconds, pace, end, counts_ns, last: None, tally: Tally::new() }
    }

    /// Returns when it is over.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// Notes an event: its number, and when it was due on [`monotonic_ns`]. Numbers that were left out were lost. Tells whether it is over.
    pub(crate) fn received(&mut self, number: u64, due_ns: u64) -> bool {
        let lost = self.last.map_or(0, |last| number.saturating_sub(last + 1));
        self.tally.failed += lost;
        self.last = Some(number);
        let now = monotonic_ns();
        if self.counts_ns.contains(&now) {
            self.tally.latencies.saturating_record(now.saturating_sub(due_ns).max(1));
        }
        now >= self.counts_ns.end
    }

    /// Notes that so many more are known to be lost.
    pub(crate) fn lost(&mut self, count: u64) {
        self.tally.failed += count;
        self.last = None;
    }

    /// Returns what was measured.
    pub(crate) fn outcome(self) -> Outcome {
        self.tally.outcome(self.pace, self.cpu_seconds)
    }
}

/// Returns the time on the clock that all processes of this machine share.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Waits until something is due; the system's usual slack of 50 us is taken off.
pub(crate) fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        // Where that fails waits are longer, for every contender alike.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "the load has a pace")]
        std::thread::sleep(left);
    }
}

impl Course {
    /// Begins now, and lets the time pass without any operation.
    pub(crate) fn idle(pace: Pace) -> Outcome {
        let course = Self::begin(pace);
        #[expect(clippy::disallowed_methods, reason = "others are measured meanwhile")]
        std::thread::sleep(pace.warm_up + pace.time);
        Outcome { is_idle: true, ..course.outcome() }
    }

    /// Begins now.
    pub(crate) fn begin(pace: Pace) -> Self {
        let now = Instant::now();
        let counts_from = now + pace.warm_up;
        let paced = pace.per_second.map(|rate| (rate, now, pace.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        Self {
            cpu_seconds: cpu_seconds(),
            warm_up: pace.warm_up,
            counts_from,
            end: counts_from + pace.time,
            paced,
            tally: Tally::new(),
        }
    }

    /// Returns when the next operation is due, which may lie in the past, or `None` at the end.
    ///
    /// A late operation counts from when it was due: otherwise one long wait would hide all that waited behind it.
    pub(crate) fn next(&mut self) -> Option<Instant> {
        let due = match &mut self.paced {
            None => Instant::now(),
            Some((rate, due, state)) => {
                *due += Duration::from_secs_f64(exponential(state) / *rate);
                *due
            }
        };
        (due < self.end).then_some(due)
    }

    /// Notes how an operation ended.
    pub(crate) fn ended(&mut self, due: Instant, is_ok: bool) {
        let now = Instant::now();
        if now >= self.counts_from && (self.paced.is_some() || now <= self.end) {
            self.tally.failed += u64::from(!is_ok);
            if is_ok || self.paced.is_some() {
                let nanos = u64::try_from((now - due).as_nanos()).unwrap_or(LONGEST_NS);
                self.tally.latencies.saturating_record(nanos);
            }
        }
    }

    /// Returns what was measured.
    pub(crate) fn outcome(self) -> Outcome {
        let pace = Pace { warm_up: self.warm_up, time: self.end - self.counts_from, per_second: None, seed: 0 };
        self.tally.outcome(pace, self.cpu_seconds)
    }
}

/// Returns the processor time that this process has used.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (seconds, nanos) = (used.tv_sec as f64, used.tv_nsec as f64);
    seconds + nanos / 1e9
}

/// Returns the next pause of a Poisson process of rate 1 (xorshift64*).
fn exponential(state: &mut u64) -> f64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
    let uniform = (bits as f64 + 1.0) / f64::from(1 << 24);
    -uniform.ln()
}

impl Tally {
    fn new() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants that fit")]
        let latencies = Histogram::new_with_max(LONGEST_NS, DIGITS).expect("a histogram of these bounds");
        Self { latencies, failed: 0 }
    }

    /// Returns it as an outcome; `cpu_before` is the processor time that the process had used at the start.
    fn outcome(self, pace: Pace, cpu_before: f64) -> Outcome {
        let recorded = self.latencies.iter_recorded();
        let seconds = pace.time.as_secs_f64();
        // The warm-up is work of the same kind.
        let share = seconds / (seconds + pace.warm_up.as_secs_f64());
        Outcome {
            is_idle: false,
            cpu_seconds: (cpu_seconds() - cpu_before) * share,
            failed: self.failed,
            seconds,
            latencies: recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect(),
        }
    }
}

/// Adds up what the processes of a fleet measured: rate, latencies, failures, how evenly they were served, and the processor time for one
/// operation. A process that did nothing has only used some.
pub(crate) fn sum(outcomes: &[Outcome]) -> Metrics {
    let mut all = Tally::new();
    let (mut rate, mut counts) = (0.0, Vec::new());
    let cpu_seconds: f64 = outcomes.iter().map(|outcome| outcome.cpu_seconds).sum();
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_idle) {
        all.failed += outcome.failed;
        for &(value, count) in &outcome.latencies {
            all.latencies.saturating_record_n(value, count);
        }
        let count: u64 = outcome.latencies.iter().map(|(_, count)| count).sum();
        rate += float(count) / outcome.seconds;
        counts.push(count);
    }
    let ms = |nanos: u64| float(nanos) / 1e6;
    let at = |quantile| ms(all.latencies.value_at_quantile(quantile));
    let (most, fewest) = (counts.iter().max().copied(), counts.iter().min().copied());
    Metrics::from([
        ("per_s", rate),
        ("p50_ms", at(0.5)),
        ("p99_ms", at(0.99)),
        ("p99.9_ms", at(0.999)),
        ("max_ms", ms(all.latencies.max())),
        ("failed", float(all.failed)),
        ("cpu_us", cpu_seconds * 1e6 / float(all.latencies.len()).max(1.0)),
        ("most_to_fewest", float(most.unwrap_or(0)) / float(fewest.unwrap_or(0)).max(1.0)),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_have_the_asked_mean() {
        let mut state = 7;
        let mean = (0..100_000).map(|_| exponential(&mut state)).sum::<f64>() / 100_000.0;
        assert!((0.98..1.02).contains(&mean), "{mean}");
    }

    #[test]
    fn a_late_operation_counts_from_when_it_was_due() {
        let time = Duration::from_millis(50);
        let mut course = Course::begin(Pace { warm_up: Duration::ZERO, time, per_second: Some(1e4), seed: 1 });
        let first = course.next().unwrap();
        while first.elapsed() < time {
            std::hint::spin_loop();
        }
        course.ended(first, true);
        while let Some(due) = course.next() {
            course.ended(due, true);
        }
        let metrics = sum(&[course.outcome()]);
        assert!(metrics["p50_ms"] > 20.0, "those that waited behind it count: {metrics:?}");
    }

    #[test]
    fn fleets_are_added_up() {
        let outcome = |count| Outcome {
            is_idle: false,
            cpu_seconds: 1.0,
            failed: 1,
            seconds: 2.0,
            latencies: vec![(1_000_000, count)],
        };
        let idle = Outcome { is_idle: true, cpu_seconds: 0.25, failed: 0, seconds: 2.0, latencies: vec![] };
        let metrics = sum(&[outcome(100), outcome(50), idle]);
        assert_eq!((metrics["per_s"], metrics["failed"], metrics["most_to_fewest"]), (75.0, 2.0, 2.0));
        assert!((metrics["cpu_us"] - 15_000.0).abs() < 1e-6, "{metrics:?}");
        assert!((metrics["p99_ms"] - 1.0).abs() < 0.01, "{metrics:?}");
    }
}
