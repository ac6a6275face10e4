//! Negative controls: known mistakes, built into the binary under test, each of which the checker must name.

use std::fs;

use pando_ipc::failpoint::Flaw;
use rustix::process::Signal;

use crate::checker::{Invariant, LOCK_LOST};
use crate::judged::Judged;
use crate::kills::kill_primaries;
use crate::support::eventually;
use crate::world::{PATIENCE, World};

fn flawed(flaw: Flaw) -> [&'static str; 2] {
    ["--flaw", flaw.name()]
}

/// Chances that a mistake of timing has to show itself.
const CHANCES: u64 = 10;

#[test]
fn a_lock_that_is_unlinked_on_release_is_caught() {
    assert!((0..CHANCES).any(|seed| unlink_a_lock(seed).violates(Invariant::OnePrimary)));
}

fn unlink_a_lock(seed: u64) -> Judged {
    let mut world = World::new("unlinked-lock", seed);
    let flaw = flawed(Flaw::UnlinkedLock);
    let first = world.start(&[flaw[0], flaw[1], "--arm", "lock.unlink=sleep:1000"]);
    let (_, epoch) = world.led_beyond(0);
    // Once it leads and has said so, it stops with the lock in its hand: awake, it would find itself fenced and let go at once.
    let second = world.start(&["--arm", "reply.before@20=stop"]);
    world.wait("a secondary that writes", |world| (world.instances[1].acked == epoch).then_some(()));
    // The first one releases the lock, the secondary wins it, and only then is the file unlinked.
    world.instances[first].process.signal(Signal::TERM);
    let lock = world.sandbox.workdir().lock_path();
    world.stops(second);
    eventually("the lock file is gone", PATIENCE, || (!lock.exists()).then_some(()));
    // The newcomer makes a file of its own, and with it a second lock.
    let newcomer = world.start(&[]);
    world.wait("the newcomer's role", |world| world.instances[newcomer].role.as_ref().map(drop));
    world.ends(first);
    world.crash()
}

#[test]
fn a_retry_without_its_op_id_is_caught() {
    let mut world = World::new("retry-without-op-id", 2);
    let flaw = flawed(Flaw::RetryWithoutOpId);
    // Whenever one dies, a write is committed whose answer is on its way.
    kill_primaries(&mut world, 30, &[flaw[0], flaw[1], "--arm", "commit.after@each=sleep:5"]);
    assert!(world.crash().violates(Invariant::NothingTwice));
}

#[test]
fn an_event_that_is_published_before_its_commit_is_caught() {
    assert!((0..CHANCES).any(|seed| kill_between_event_and_commit(seed).violates(Invariant::StreamIsJournal)));
}

fn kill_between_event_and_commit(seed: u64) -> Judged {
    let mut world = World::new("publish-before-commit", seed);
    let flaw = flawed(Flaw::PublishBeforeCommit);
    // Its subscribers have time to read what is not committed, and it is hardly ever anywhere else.
    world.start(&[flaw[0], flaw[1], "--arm", "commit.before@each=sleep:20"]);
    let (doomed, epoch) = world.led_beyond(0);
    world.start(&["--follow"]);
    world.wait("a secondary that writes", |world| (world.instances[1].acked == epoch).then_some(()));
    world.kill(doomed);
    world.led_beyond(epoch);
    world.crash()
}

#[test]
fn a_primary_that_does_not_check_its_epoch_is_caught() {
    assert!((0..CHANCES).any(|seed| lose_the_lock_unchecked(seed).violates(Invariant::Fencing)));
}

fn lose_the_lock_unchecked(seed: u64) -> Judged {
    let mut world = World::new("unchecked-epoch", seed);
    world.start(&flawed(Flaw::UncheckedEpoch));
    let (_, epoch) = world.led_beyond(0);
    world.fault(LOCK_LOST, "the lock file is removed");
    fs::remove_file(world.sandbox.workdir().lock_path()).unwrap();
    // It has time for a write: that of a successor takes the number of its next event.
    world.start(&["--arm", "begin.before=sleep:300"]);
    // On a busy machine the first one may step down before the second is there, and be its own successor: then nothing is to be seen.
    world.wait("another term", |world| world.instances.iter().find_map(|it| it.leads().filter(|term| *term > epoch)));
    world.wait("the end of the first term", |world| (world.instances[0].leads() != Some(epoch)).then_some(()));
    world.crash()
}
