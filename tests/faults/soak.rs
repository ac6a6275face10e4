//! A random mix of all faults, for as long as one likes; `scripts/soak` is the way to start it.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::checker::{Invariant, check};
use crate::faults::{self, Fault, populate};
use crate::history::History;
use crate::random::Random;
use crate::record::What;
use crate::world::World;

/// How long the mix takes in the short form.
const SHORT: Duration = Duration::from_secs(20);
/// Faults in one workdir, at least and at most.
const FAULTS: (u64, u64) = (5, 15);
/// Faults after which less can be checked. One of so many workdirs meets them.
const BLINDING: ([&str; 2], u64) = (["remove_pando", "move_pando"], 4);

/// What `scripts/soak` was asked for.
#[derive(Debug)]
struct Wanted {
    time: Duration,
    seed: u64,
    /// Workdirs, whatever the time.
    episodes: Option<u64>,
    faults: Vec<Fault>,
}

impl Wanted {
    /// Reads the environment that `scripts/soak` sets.
    fn read() -> Self {
        let minutes = option::<u64>("PANDO_SOAK_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
        let names = option::<String>("PANDO_SOAK_FAULTS").unwrap_or_default();
        let named: Vec<_> = names.split(',').filter(|name| !name.is_empty()).map(named).collect();
        Self {
            time: minutes.unwrap_or(SHORT),
            seed: option("PANDO_SOAK_SEED").unwrap_or(1),
            episodes: option("PANDO_SOAK_EPISODES"),
            faults: if named.is_empty() { faults::ALL.to_vec() } else { named },
        }
    }
}

fn option<T: FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect(name))
}

fn named(name: &str) -> Fault {
    let all: Vec<_> = faults::ALL.iter().map(|fault| fault.name).collect();
    *faults::ALL.iter().find(|fault| fault.name == name).unwrap_or_else(|| panic!("{name} is none of {all:?}"))
}

#[test]
fn a_random_mix_of_faults_breaks_nothing() {
    let wanted = Wanted::read();
    let end = Instant::now() + wanted.time;
    for episode in 0.. {
        if wanted.episodes.map_or(Instant::now() >= end, |episodes| episode >= episodes) {
            break;
        }
        let seed = wanted.seed + episode;
        // Said before it begins, so that it is known whatever becomes of it.
        println!("seed {seed}, to repeat it: scripts/soak --episodes 1 --seed {seed}{}", faults_option());
        let told = mix(seed, &wanted.faults);
        println!("seed {seed} kept everything: {told}");
    }
}

fn faults_option() -> String {
    option::<String>("PANDO_SOAK_FAULTS").map(|faults| format!(" --faults {faults}")).unwrap_or_default()
}

/// Causes some of the faults in one workdir. Returns which.
fn mix(seed: u64, among: &[Fault]) -> String {
    let mut world = World::new("soak", seed);
    let mut choice = Random::new(seed);
    let (blinding, one_in) = BLINDING;
    let is_blind = choice.one_in(one_in);
    let may = |fault: &&Fault| is_blind || among.len() == 1 || !blinding.contains(&fault.name);
    let among: Vec<_> = among.iter().filter(may).collect();
    populate(&mut world);
    world.observe();
    let mut caused = Vec::new();
    for _ in 0..choice.among(FAULTS.0..FAULTS.1) {
        let fault = among[usize::try_from(choice.among(0..among.len() as u64)).unwrap()];
        caused.push(fault.name);
        world.is_under(&caused);
        (fault.cause)(&mut world);
        populate(&mut world);
    }
    world.finish().holds();
    caused.join(", ")
}

/// A report of former times: a write that is there twice, seen by an observer.
const REPORT: &str = "tests/golden/history";

#[test]
fn a_report_is_judged_again() {
    let named = option::<String>("PANDO_SOAK_CHECK");
    let report = Path::new(env!("CARGO_MANIFEST_DIR")).join(named.as_deref().unwrap_or(REPORT));
    let history = History::read(&report);
    let calls = history.instances.values().flatten().filter(|record| matches!(record.what, What::Invoke { .. }));
    let violations = check(&history);
    println!("{} calls of {} instances: {violations:#?}", calls.count(), history.instances.len());
    if named.is_some() {
        assert!(violations.is_empty(), "the history in {} breaks promises", report.display());
    } else {
        let kinds: Vec<_> = violations.iter().map(|violation| violation.invariant).collect();
        assert_eq!(kinds, [Invariant::NothingTwice]);
    }
}
