//! Death and pause at each named place in the code, under load.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use pando_ipc::failpoint::Point;
use pando_ipc::read_lock_for_path;
use rustix::process::Signal;

use crate::history::Deed;
use crate::support::pass;
use crate::world::World;

/// A writer passes the places of a write so often; which time is the last is random.
const PASSES: u64 = 40;

/// A checkpointer passes its places so often: a checkpoint comes after half a second at the latest, and it is waited for.
const CHECKPOINTS: u64 = 8;

/// How long a pause is: long enough for everybody else to notice that somebody is silent.
const PAUSE: Duration = Duration::from_millis(150);

/// Where a point is passed, and so what must be done to come there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Once, on the way to the first role, where there is no database yet.
    Fresh,
    /// Once, on the way to the first role.
    Joining,
    /// Again and again while a secondary writes.
    Following,
    /// Once, on the way to leading.
    Electing,
    /// Again and again while a primary is written to.
    Leading,
    /// Once, on the way out of leading.
    Leaving,
    /// Only where a mistake is made.
    Nowhere,
}

fn place(point: Point) -> Where {
    match point {
        Point::MigrationCommit => Where::Fresh,
        Point::LockOpen | Point::CandidateWait => Where::Joining,
        Point::ClientSent | Point::ClientLinked => Where::Following,
        Point::LockWon
        | Point::CandidateWon
        | Point::StoreOpen
        | Point::EpochCommit
        | Point::EpochCommitted
        | Point::TermOpened
        | Point::TermCaughtUp
        | Point::BindUnix
        | Point::BindTcp
        | Point::BindDone
        | Point::AdvertiseWrite
        | Point::AdvertiseCut
        | Point::AdvertiseDone
        | Point::TermServes => Where::Electing,
        Point::CallRead
        | Point::BeginBefore
        | Point::BeginAfter
        | Point::FenceChecked
        | Point::WriteApplied
        | Point::CommitBefore
        | Point::CommitAfter
        | Point::PublishBefore
        | Point::PublishAfter
        | Point::ReplyBefore
        | Point::ReplyAfter
        | Point::AnswerBefore
        | Point::AnswerAfter
        | Point::CheckpointBefore
        | Point::CheckpointAfter => Where::Leading,
        Point::ShutdownBegin
        | Point::ShutdownGoodbye
        | Point::ShutdownDrained
        | Point::ShutdownFlushed
        | Point::ShutdownClosed
        | Point::LockRelease => Where::Leaving,
        Point::LockUnlink => Where::Nowhere,
    }
}

/// Starts an instance in which something happens at `point`, and brings it there. Returns its place among the instances.
fn bring_to(world: &mut World, point: Point, action: &str) -> usize {
    let place = place(point);
    let time = match place {
        Where::Following if point != Point::ClientLinked => world.random.among(1..PASSES),
        Where::Leading if matches!(point, Point::CheckpointBefore | Point::CheckpointAfter) => {
            world.random.among(1..CHECKPOINTS)
        }
        Where::Leading => world.random.among(1..PASSES),
        _ => 1,
    };
    let armed = format!("{}@{time}={action}", point.name());
    if place == Where::Fresh {
        return world.start(&["--arm", &armed]);
    }
    let mut epoch = 0;
    if world.instances.is_empty() {
        world.start(&[]);
    }
    let (primary, led) = world.led_beyond(epoch);
    epoch = epoch.max(led);
    let name = world.instances[primary].name.clone();
    let visited = world.start(&["--arm", &armed]);
    if matches!(place, Where::Joining | Where::Following) {
        return visited;
    }
    world.wait("a secondary that writes", |world| (world.instances[visited].acked == epoch).then_some(()));
    let visited = world.instances[visited].name.clone();
    let at = |world: &World| world.instances.iter().position(|it| it.name == visited).unwrap();
    let primary = world.instances.iter().position(|it| it.name == name).unwrap();
    world.kill(primary);
    if place == Where::Leading {
        // A newcomer could be faster than whoever waits. Who writes before it is advertised may come to the point before that.
        world.wait("its term", |world| {
            let info = read_lock_for_path(&world.sandbox.workdir());
            let is_there = matches!(world.state(at(world)), 'T' | 'Z');
            (is_there || info.is_ok_and(|info| info.instance_id == visited)).then_some(())
        });
        // Its own writes come by no call.
        world.start(&[]);
    }
    if place == Where::Leaving {
        world.led_beyond(epoch);
        let at = at(world);
        world.note(Deed::Term { who: visited.clone() });
        world.instances[at].process.signal(Signal::TERM);
    }
    at(world)
}

/// Returns all points that are passed. The migration comes first: it needs a workdir without a database.
fn points() -> Vec<Point> {
    let mut points: Vec<_> = Point::ALL.iter().copied().filter(|&point| place(point) != Where::Nowhere).collect();
    points.sort_by_key(|&point| place(point) != Where::Fresh);
    points
}

#[test]
fn death_at_any_point_is_survived() {
    let mut world = World::new("points", 1);
    for point in points() {
        let doomed = bring_to(&mut world, point, "kill");
        let status = world.ends(doomed);
        assert_eq!(status.signal(), Some(9), "{} was passed: {status}", point.name());
    }
    world.start(&[]);
    world.led_beyond(0);
    world.finish().holds();
}

#[test]
fn a_pause_at_any_point_is_survived() {
    let mut world = World::new("pauses", 2);
    for point in points() {
        let paused = bring_to(&mut world, point, "stop");
        world.stops(paused);
        pass(PAUSE);
        world.go_on(paused);
        if place(point) == Where::Leaving {
            world.ends(paused);
        } else {
            world.kill(paused);
        }
    }
    world.start(&[]);
    world.led_beyond(0);
    world.finish().holds();
}
