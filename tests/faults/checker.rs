//! What must hold of a history, whatever was done to the processes: a pure function, and the list of its invariants.

mod bounds;
mod streams;
mod terms;
mod tests;
mod writes;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::history::{Deed, History};
use crate::record::{Outcome, What, Work};

/// Fault after which a database, and what was acknowledged on it, may be gone: somebody removed `.pando`.
pub(crate) const DATABASE_GONE: &str = "database-gone";
/// Fault after which the workdir has another database: what was acknowledged on the former one is kept elsewhere.
pub(crate) const DATABASE_MOVED: &str = "database-moved";
/// Fault after which the lock of the primary is worth nothing: its file was removed or moved away.
pub(crate) const LOCK_LOST: &str = "lock-lost";
/// Fault during which nothing of the primary's can reach the disk, so that nothing may be acknowledged; it names the epoch at its end.
pub(crate) const DISK_FAILS: &str = "disk-fails";
/// Its end.
pub(crate) const DISK_WORKS: &str = "disk-works";
/// Fault during which the write-ahead log grows: the harness itself reads for long.
pub(crate) const LOG_PINNED: &str = "log-pinned";
/// Its end.
pub(crate) const LOG_RELEASED: &str = "log-released";
/// How soon a primary without its lock steps down.
pub(crate) const STEP_DOWN_WITHIN: Duration = Duration::from_secs(1);
/// What a busy machine may add to any time that is promised.
pub(crate) const SLACK: Duration = Duration::from_millis(250);

/// A promise that a history breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    /// What shows it.
    pub(crate) shown: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.shown)
    }
}

/// The promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Invariant {
    /// At most one primary per database at any instant.
    OnePrimary,
    /// Each epoch is one primary's, and they grow with time.
    EpochsGrow,
    /// Nothing is acknowledged in an epoch after the next one has begun.
    Fencing,
    /// Every acknowledged write is there.
    NothingLost,
    /// Nothing is acknowledged while it cannot be on disk.
    OnDisk,
    /// No write is there twice.
    NothingTwice,
    /// Nothing is there that nobody wrote, or whose writer was told that it failed.
    NothingInvented,
    /// An acknowledgement names the event of its write.
    AckNamesItsEvent,
    /// Numbers of events are dense, in commit order; epochs never fall along them.
    JournalDense,
    /// What was acknowledged before another write was begun has a smaller number.
    RealTimeOrder,
    /// An acknowledged write is seen by the next read.
    ReadYourWrites,
    /// Every call ends by its deadline.
    Deadline,
    /// Every subscriber sees each event of the journal once and in order, and no other.
    StreamIsJournal,
    /// The database is intact.
    Integrity,
    /// Memory, descriptors and the write-ahead log are bounded.
    Bounded,
    /// Nothing is left behind.
    NothingLeft,
}

/// A write, as its caller saw it.
#[derive(Debug, Clone)]
struct Call<'a> {
    who: &'a str,
    op: &'a str,
    work: Work,
    within: Duration,
    invoked: u64,
    returned: Option<(u64, &'a Outcome)>,
}

impl Call<'_> {
    fn is_acked(&self) -> bool {
        matches!(self.returned, Some((_, Outcome::Ok { .. })))
    }
}

/// What several invariants look at.
struct Seen<'a> {
    history: &'a History,
    calls: HashMap<&'a str, Call<'a>>,
    /// The database in which each op was found first.
    place: HashMap<&'a str, usize>,
    violations: Vec<Violation>,
}

impl<'a> Seen<'a> {
    fn new(history: &'a History) -> Self {
        let mut seen = Self { history, calls: HashMap::new(), place: HashMap::new(), violations: Vec::new() };
        for (who, records) in &history.instances {
            for record in records {
                match &record.what {
                    What::Invoke { op, work, within_ms } => {
                        let within = Duration::from_millis(*within_ms);
                        let call = Call { who, op, work: *work, within, invoked: record.at, returned: None };
                        seen.calls.insert(op, call);
                    }
                    What::Return { op, outcome } => {
                        if let Some(call) = seen.calls.get_mut(op.as_str()) {
                            call.returned = Some((record.at, outcome));
                        }
                    }
                    _ => {}
                }
            }
        }
        seen
    }

    fn violated(&mut self, invariant: Invariant, shown: impl Into<String>) {
        self.violations.push(Violation { invariant, shown: shown.into() });
    }

    fn all_violated(&mut self, invariant: Invariant, shown: Vec<String>) {
        self.violations.extend(shown.into_iter().map(|shown| Violation { invariant, shown }));
    }

    /// Returns when faults of this name happened.
    fn faults(&self, name: &str) -> Vec<u64> {
        let at = |dated: &crate::history::Dated| match &dated.deed {
            Deed::Fault { name: found, .. } if found == name => Some(dated.at),
            _ => None,
        };
        self.history.deeds.iter().filter_map(at).collect()
    }

    /// Returns how long an instance was stopped between two times.
    fn stopped(&self, who: &str, from: u64, to: u64) -> Duration {
        let mut since = None;
        let mut nanos = 0;
        for dated in &self.history.deeds {
            match &dated.deed {
                Deed::Stop { who: stopped } if stopped == who => since = Some(dated.at),
                Deed::Continue { who: continued } if continued == who => {
                    if let Some(since) = since.take() {
                        nanos += dated.at.min(to).saturating_sub(since.max(from));
                    }
                }
                _ => {}
            }
        }
        if let Some(since) = since {
            nanos += to.saturating_sub(since.max(from));
        }
        Duration::from_nanos(nanos)
    }
}

/// Returns everything that a history violates; of each kind the first few.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let mut seen = Seen::new(history);
    writes::check(&mut seen);
    terms::check(&mut seen);
    streams::check(&mut seen);
    bounds::check(&mut seen);
    let mut shown: HashMap<Invariant, usize> = HashMap::new();
    seen.violations.retain(|violation| {
        let count = shown.entry(violation.invariant).or_default();
        *count += 1;
        *count <= SHOWN
    });
    seen.violations
}

/// Violations of one kind that are shown; the first ones tell most.
const SHOWN: usize = 5;

/// Writes a time as seconds.
fn seconds(at: u64) -> String {
    format!("{:.6} s", Duration::from_nanos(at).as_secs_f64())
}
