//! What the writer counts and times.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pando_ipc::metrics::Histogram;

/// What the writer counted and timed since it was opened. Times are in microseconds.
#[derive(Debug, Default)]
pub struct WriterMeter {
    /// From the submission of a write to its answer.
    pub writes: Histogram,
    /// One transaction: begin, all its writes, commit.
    pub commits: Histogram,
    /// Writes in one transaction.
    pub batches: Histogram,
    refused: AtomicU64,
    events: AtomicU64,
}

impl WriterMeter {
    /// Notes the answer to a write.
    pub(crate) fn answered(&self, time: Duration, is_applied: bool) {
        self.writes.record_time(time);
        self.refused.fetch_add(u64::from(!is_applied), Relaxed);
    }

    /// Notes a transaction.
    pub(crate) fn committed(&self, time: Duration, writes: usize, events: usize) {
        self.commits.record_time(time);
        self.batches.record(writes as u64);
        self.events.fetch_add(events as u64, Relaxed);
    }

    /// Returns how many writes were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Returns how many events were committed.
    pub fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }
}
