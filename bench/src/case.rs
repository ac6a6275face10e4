//! What is measured: a case puts two contenders beside each other and has targets for their ratio.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::Failure;

/// Where and how long to measure.
#[derive(Debug)]
pub(crate) struct Context {
    /// Workdirs and reports go here.
    pub(crate) dir: PathBuf,
    /// Only see that it works.
    pub(crate) quick: bool,
    /// How often each contender runs, in turns.
    pub(crate) repetitions: usize,
    /// Length of one measurement.
    pub(crate) time: Duration,
    /// What is run before it and not counted.
    pub(crate) warm_up: Duration,
    /// Library that slows fsync down, for `LD_PRELOAD`.
    pub(crate) slow_fsync: Option<PathBuf>,
}

/// What one run of a contender measured, by name; the unit is the last part of the name.
pub(crate) type Metrics = BTreeMap<&'static str, f64>;

/// Does the work of a case once.
pub(crate) type Run = Box<dyn Fn(&Context) -> Result<Metrics, Failure>>;

/// One way to do the work of a case.
pub(crate) struct Contender {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// Does the work once.
    pub(crate) run: Run,
}

/// One comparison.
pub(crate) struct Case {
    /// What `--only` selects.
    pub(crate) name: &'static str,
    /// What is done, for people.
    pub(crate) about: String,
    /// What to compare with.
    pub(crate) peer: Contender,
    /// What is compared.
    pub(crate) own: Contender,
    /// What should come out.
    pub(crate) targets: Vec<Target>,
    /// Why the case cannot run here.
    pub(crate) skip: Option<String>,
}

/// What should come out of a case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// A name in [`Metrics`].
    pub(crate) metric: &'static str,
    /// What its value should be.
    pub(crate) rule: Rule,
}

/// A bound on a metric of our own, or on its ratio to the peer's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// Own / peer is this or more.
    RatioAtLeast(f64),
    /// Own / peer is this or less.
    RatioAtMost(f64),
    /// Own is this or less.
    AtMost(f64),
}

impl Target {
    /// Returns a target.
    pub(crate) fn new(metric: &'static str, rule: Rule) -> Self {
        Self { metric, rule }
    }
}

impl Rule {
    /// Tells whether a median keeps the rule.
    pub(crate) fn is_met(self, median: f64) -> bool {
        match self {
            Self::RatioAtLeast(bound) => median >= bound,
            Self::RatioAtMost(bound) | Self::AtMost(bound) => median <= bound,
        }
    }
}
