//! The primary goes under load, again and again: killed, or in good order.

use std::time::Duration;

use crate::support::pass;
use crate::world::World;

/// Instances that write.
const INSTANCES: usize = 3;
/// Primaries that are killed in one workdir, and how many workdirs there are.
const KILLS: (usize, u64) = (250, 4);

/// Waits until somebody leads in a later epoch than `after` and another one's write was acknowledged there: a primary's own come first.
fn led_under_load(world: &mut World, after: u64) -> (usize, u64) {
    let (primary, epoch) = world.led_beyond(after);
    world.wait("a secondary that writes", |world| {
        let mut others = world.instances.iter().enumerate().filter(|(at, _)| *at != primary);
        others.any(|(_, it)| it.acked >= epoch).then_some(())
    });
    (primary, epoch)
}

/// Kills the primary so many times, each time in the middle of the load, and replaces it. `args` are for every instance.
pub(crate) fn kill_primaries(world: &mut World, kills: usize, args: &[&str]) {
    let mut epoch = 0;
    for _ in 0..kills {
        while world.instances.len() < INSTANCES {
            let follows: &[&str] = if world.random.one_in(4) { &["--follow"] } else { &[] };
            world.start(&[args, follows].concat());
        }
        let primary;
        (primary, epoch) = led_under_load(world, epoch);
        pass(Duration::from_millis(world.random.among(0..30)));
        world.kill(primary);
    }
    world.led_beyond(epoch);
}

/// Asks the primary to leave so many times, each time in the middle of the load, and replaces it.
fn ask_primaries_to_leave(world: &mut World, times: usize) {
    let mut epoch = 0;
    for _ in 0..times {
        while world.instances.len() < INSTANCES {
            world.start(&["--follow"]);
        }
        let primary;
        (primary, epoch) = led_under_load(world, epoch);
        pass(Duration::from_millis(world.random.among(0..30)));
        world.term(primary);
    }
    world.led_beyond(epoch);
}

#[test]
fn a_thousand_killed_primaries_take_nothing_along() {
    let (kills, workdirs) = KILLS;
    for seed in 1..=workdirs {
        let mut world = World::new("kills", seed);
        world.start(&[]);
        world.observe();
        kill_primaries(&mut world, kills, &[]);
        world.finish().holds();
    }
}

#[test]
fn fifty_primaries_that_leave_fail_no_call() {
    let mut world = World::new("departures", 1);
    world.start(&[]);
    world.observe();
    ask_primaries_to_leave(&mut world, 50);
    world.finish().none_failed().holds();
}
