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
    /// The `pando` program, for what is measured from outside.
    pub(crate) pando: PathBuf,
    /// libzmq, where there is one.
    pub(crate) libzmq: Option<Libzmq>,
}

/// The peer that is libzmq itself.
#[derive(Debug, Clone)]
pub(crate) struct Libzmq {
    /// `libzmq_peer.c`, compiled.
    pub(crate) program: PathBuf,
    /// The shared library that it loads.
    pub(crate) library: PathBuf,
}

/// What one run of a contender measured, by name; the unit is the last part of the name.
pub(crate) type Metrics = BTreeMap<&'static str, f64>;

/// Does the work of a case once.
pub(crate) type Run = Box<dyn Fn(&Context) -> Result<Metrics, Failure>>;

/// One way to do the work of a case.
pub(crate) struct Contender {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// Why it cannot run here.
    pub(crate) skip: Option<String>,
    /// Does the work once.
    pub(crate) run: Run,
}

impl Contender {
    /// Returns a contender that can run anywhere.
    pub(crate) fn new(name: &'static str, run: impl Fn(&Context) -> Result<Metrics, Failure> + 'static) -> Self {
        Self { name, skip: None, run: Box::new(run) }
    }

    /// Returns it as one that is left out where `reason` says why.
    pub(crate) fn unless(self, reason: Option<&str>) -> Self {
        Self { skip: reason.map(str::to_owned), ..self }
    }
}

/// One comparison, or one figure without a peer.
pub(crate) struct Case {
    /// What `--only` selects.
    pub(crate) name: &'static str,
    /// What is done, for people.
    pub(crate) about: String,
    /// What to compare with; the first that can run is the one in short tables.
    pub(crate) peers: Vec<Contender>,
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
    /// The peer that a ratio is to; empty: the first.
    pub(crate) peer: &'static str,
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
    /// Own is this or more.
    AtLeast(f64),
    /// Own is this or less.
    AtMost(f64),
}

impl Target {
    /// Returns a target, against the first peer if it is a ratio.
    pub(crate) fn new(metric: &'static str, rule: Rule) -> Self {
        Self { metric, peer: "", rule }
    }

    /// Returns the same target against this peer.
    pub(crate) fn to(self, peer: &'static str) -> Self {
        Self { peer, ..self }
    }
}

impl Rule {
    /// Tells whether a median keeps the rule.
    pub(crate) fn is_met(self, median: f64) -> bool {
        match self {
            Self::RatioAtLeast(bound) | Self::AtLeast(bound) => median >= bound,
            Self::RatioAtMost(bound) | Self::AtMost(bound) => median <= bound,
        }
    }

    /// Tells whether it is about a ratio.
    pub(crate) fn is_ratio(self) -> bool {
        matches!(self, Self::RatioAtLeast(_) | Self::RatioAtMost(_))
    }
}
