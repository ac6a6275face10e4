//! A model of election, fencing and dedup: no I/O, every interleaving a seed away. What fails here is a fault of the design, not of the code.

mod state;

use std::collections::{HashSet, VecDeque};

use pando_ipc::failpoint::Flaw;

use crate::random::Random;
use state::{State, Step};

/// Runs of the simulator, each with a seed of its own.
const SEEDS: u64 = 4_000;
/// Steps of a run, and how many calm ones may be needed afterwards until everything is well.
const STEPS: (usize, usize) = (120, 400);
/// One of so many steps is a fault, where there is one to choose.
const FAULT_EVERY: u64 = 6;
/// States that are explored one by one.
const STATES: usize = 60_000;

/// A run, and what broke in it.
#[derive(Debug)]
struct Broken {
    nodes: usize,
    flaw: Option<Flaw>,
    steps: Vec<Step>,
    why: String,
}

/// Takes random steps, and then calm ones until all is well.
fn simulate(seed: u64, flaw: Option<Flaw>) -> Result<(), Broken> {
    let mut random = Random::new(seed);
    let nodes = usize::try_from(random.among(2..5)).unwrap();
    let mut state = State::new(nodes, flaw);
    let (mut steps, mut acks) = (Vec::new(), 0);
    let why = loop {
        let is_calm = steps.len() >= STEPS.0;
        if steps.len() == STEPS.0 {
            acks = state.acks.len();
        }
        let is_fault = !is_calm && random.one_in(FAULT_EVERY);
        // A call whose request or answer was lost is sent again: that is no fault of now.
        let may = |step: &Step| step.is_fault() == is_fault || is_calm && matches!(step, Step::Timeout(_));
        match any_step(&mut state, &mut random, may) {
            Some(step) => steps.push(step),
            None if is_calm => break "nothing can be done any more".to_owned(),
            None => continue,
        }
        if let Some(why) = state.broken() {
            break why;
        }
        if is_calm && state.is_led() && state.acks.len() > acks + 1 {
            return Ok(());
        }
        if steps.len() == STEPS.0 + STEPS.1 {
            break format!("nobody leads, or nothing is acknowledged, {} steps after the last fault", STEPS.1);
        }
    };
    Err(Broken { nodes, flaw, steps, why })
}

/// Takes one of the steps that can be taken.
fn any_step(state: &mut State, random: &mut Random, may: impl Fn(&Step) -> bool) -> Option<Step> {
    let mut steps: Vec<_> = state.candidates().into_iter().filter(may).collect();
    while !steps.is_empty() {
        let step = steps.swap_remove(usize::try_from(random.among(0..steps.len() as u64)).unwrap());
        let mut next = state.clone();
        if next.take(step) {
            *state = next;
            return Some(step);
        }
    }
    None
}

/// Takes given steps, those that can be taken. Returns what breaks.
fn replay(nodes: usize, flaw: Option<Flaw>, steps: &[Step]) -> Option<String> {
    let mut state = State::new(nodes, flaw);
    steps.iter().find_map(|&step| {
        let before = state.clone();
        if !state.take(step) {
            state = before;
        }
        state.broken()
    })
}

impl Broken {
    /// Leaves out what is not needed to break it, and writes the rest as a test.
    fn print(&mut self, seed: u64) -> String {
        let Self { nodes, flaw, steps, why } = self;
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.remove(at);
            if replay(*nodes, *flaw, &fewer).is_some() { *steps = fewer } else { at += 1 }
        }
        let steps: String = steps.iter().flat_map(|step| ["Step::".to_owned(), format!("{step:?}, ")]).collect();
        format!("{why}\n#[test]\nfn seed_{seed}() {{\n    assert_eq!(replay({nodes}, {flaw:?}, &[{steps}]), None);\n}}")
    }
}

#[test]
fn no_seed_breaks_the_model() {
    for seed in 0..SEEDS {
        if let Err(mut broken) = simulate(seed, None) {
            panic!("{}", broken.print(seed));
        }
    }
}

#[test]
fn every_mistake_breaks_the_model() {
    for &flaw in Flaw::ALL {
        let broken = (0..SEEDS).find_map(|seed| Some((seed, simulate(seed, Some(flaw)).err()?)));
        let (seed, mut broken) = broken.unwrap_or_else(|| panic!("{flaw:?} is not noticed"));
        println!("{}", broken.print(seed));
    }
}

#[test]
fn no_state_of_two_nodes_within_reach_is_broken() {
    let first = State::new(2, None);
    let mut known = HashSet::from([first.clone()]);
    let mut open = VecDeque::from([first]);
    while let Some(state) = open.pop_front() {
        for step in state.enabled() {
            let mut next = state.clone();
            next.take(step);
            assert_eq!(next.broken(), None, "after {step:?} in {state:#?}");
            if known.len() < STATES && known.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
}
