//! What the machine does to everybody: its clock jumps, its disk fails, it shows one directory at two places, it has another release.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use pando_ipc::{PROTOCOL, Timestamp};
use rustix::io::Errno;
use serde_json::Value;

use super::{milliseconds, primary};
use crate::checker::{DISK_FAILS, DISK_WORKS};
use crate::record::Outcome;
use crate::shim::Wishes;
use crate::support::{may_mount, pass};
use crate::world::World;

/// Where the wall clock goes: back and forth by what somebody corrects, a wrong time zone, and a battery that was empty.
const JUMPS_S: [i64; 6] = [-30, 30, -7_200, 86_400, -400 * 86_400, 20 * 365 * 86_400];
/// How exactly an event tells a clock that jumped.
const ABOUT: TimeDelta = TimeDelta::seconds(25);
/// How soon another release is refused, the start of its process included.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

/// The wall clock jumps under everybody. Whoever leads goes on leading, and calls go on.
pub(super) fn jump_clock(world: &mut World) {
    let (_, epoch) = world.led_beyond(0);
    let clock_s = JUMPS_S[usize::try_from(world.random.among(0..JUMPS_S.len() as u64)).unwrap()];
    world.fault("clock-jumped", &format!("by {clock_s} s"));
    let mark = world.mark();
    world.instances.iter().for_each(|it| it.shim.wish(Wishes { clock_s, ..Wishes::default() }));
    world.wait("an event of the other time", |world| {
        let late = last_event(world) - (Utc::now() + TimeDelta::seconds(clock_s));
        (late.abs() < ABOUT).then_some(())
    });
    // Longer than it takes to notice a primary that says nothing.
    let time = milliseconds(world, 0, 3_000);
    pass(time);
    let acked = world.outcomes_since(&mark).iter().filter(|outcome| matches!(outcome, Outcome::Ok { .. })).count();
    assert!(acked > 0, "calls go on after a jump by {clock_s} s [{world}]");
    assert_eq!(world.led_beyond(0).1, epoch, "nobody else leads after a jump by {clock_s} s [{world}]");
}

fn last_event(world: &World) -> DateTime<Utc> {
    let sql = "SELECT envelope ->> 'timestamp' FROM _pando_event ORDER BY seq DESC LIMIT 1";
    let text: String = world.sandbox.database().query_row(sql, [], |row| row.get(0)).unwrap();
    serde_json::from_value::<Timestamp>(Value::String(text)).unwrap().as_datetime()
}

/// The primary's disk fails in the middle of commits: what cannot be written is not acknowledged, and writing goes on when it can be.
pub(super) fn fail_disk(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    let (what, wishes) = match world.random.among(0..3) {
        0 => ("fsync: EIO", Wishes { sync_error: Some(Errno::IO), ..Wishes::default() }),
        1 => ("pwrite: EIO", Wishes { write_error: Some(Errno::IO), ..Wishes::default() }),
        _ => ("pwrite: ENOSPC", Wishes { write_error: Some(Errno::NOSPC), ..Wishes::default() }),
    };
    world.instances[at].shim.wish(wishes);
    let mark = world.mark();
    world.fault(DISK_FAILS, &format!("{what} in epoch {epoch}"));
    world.wait("a write that is not acknowledged", |world| {
        world.outcomes_since(&mark).iter().any(|outcome| !matches!(outcome, Outcome::Ok { .. })).then_some(())
    });
    let time = milliseconds(world, 0, 500);
    pass(time);
    world.fault(DISK_WORKS, what);
    world.instances[at].shim.wish(Wishes::default());
    let mark = world.mark();
    world.wait("a write that is acknowledged", |world| {
        world.outcomes_since(&mark).iter().any(|outcome| matches!(outcome, Outcome::Ok { .. })).then_some(())
    });
}

/// The disk takes nothing when a primary writes down that it leads: its term ends and nobody is served. It leads once the disk works again.
pub(super) fn unwritable_lock(world: &mut World) {
    let (_, epoch) = super::leave_to(world, &["--arm", "advertise.write@1=stop"]);
    world.stops(0);
    world.fault(DISK_FAILS, "pwrite: EIO, for a primary that is about to say so");
    world.instances[0].shim.wish(Wishes { write_error: Some(Errno::IO), ..Wishes::default() });
    world.go_on(0);
    world.wait("the end of its term", |world| {
        world.instances[0].process.stderr().contains("the term could not begin").then_some(())
    });
    let sockets = fs::read_dir(world.sandbox.workdir().socket_dir().unwrap()).unwrap();
    let served: Vec<_> =
        sockets.map(|entry| entry.unwrap().path()).filter(|path| UnixStream::connect(path).is_ok()).collect();
    assert!(served.is_empty(), "nobody is served without the lock: {served:?} [{world}]");
    world.fault(DISK_WORKS, "pwrite");
    world.instances[0].shim.wish(Wishes::default());
    world.led_beyond(epoch);
}

/// Instances that see the workdir at another place, where it is mounted once more, are of the same house: they follow, and they lead.
pub(super) fn start_by_mount(world: &mut World) {
    let mount = world.new_place("mount");
    fs::create_dir(&mount).unwrap();
    if let Err(why) = may_mount(&mount) {
        println!("start_by_mount is left out: this system lets nobody mount ({why})");
        return;
    }
    let (_, epoch) = world.led_beyond(0);
    let next = world.start_at_mount(&mount, &[]);
    world.wait("a secondary at another mount", |world| (world.instances[next].acked == epoch).then_some(()));
    let name = world.instances[next].name.clone();
    while let Some(at) = world.instances.iter().position(|it| it.name != name) {
        world.kill(at);
    }
    world.wait("its term", |world| world.instances[0].leads().filter(|led| *led > epoch));
    super::populate(world);
    // Who knows the workdir by its own name writes by the one who does not.
    world.wait("everybody in its term", |world| {
        let led = world.instances[0].leads()?;
        world.instances.iter().all(|it| it.acked == led).then_some(())
    });
}

/// Releases of the protocols before and after come under load: they are refused at once, both are named, and nobody else notices.
pub(super) fn start_other_version(world: &mut World) {
    let epoch = world.led_beyond(0).1;
    for protocol in [PROTOCOL - 1, PROTOCOL + 1] {
        let other = world.start(&["--protocol", &protocol.to_string()]);
        refused(world, other, protocol, PROTOCOL);
    }
    assert_eq!(world.led_beyond(0).1, epoch, "the former primary leads on [{world}]");
}

/// Waits for the end of an instance that says why, naming the version that it speaks and the one of whoever leads.
fn refused(world: &mut World, at: usize, own: u32, other: u32) {
    let started = std::time::Instant::now();
    let name = world.instances[at].name.clone();
    let said = world.wait("a word on the other version", |world| {
        let said = world.instances[at].process.stderr();
        (said.contains(&format!("protocol {other}")) && said.contains(&format!("{own}"))).then_some(said)
    });
    let status = world.ends(at);
    assert!(started.elapsed() < REFUSED_WITHIN, "{name} took {:?} [{world}]", started.elapsed());
    assert_eq!(status.code(), Some(7), "{name} said {said}");
}

/// A release of the next protocol leads: nobody of this one joins it, and when it is gone everything goes on.
#[test]
fn nobody_joins_a_primary_of_another_version() {
    let mut world = World::new("other-version", 1);
    super::populate(&mut world);
    let (_, epoch) = world.led_beyond(0);
    while !world.instances.is_empty() {
        world.kill(0);
    }
    let next = (PROTOCOL + 1).to_string();
    world.start(&["--protocol", &next]);
    let (_, epoch) = world.led_beyond(epoch);
    for _ in 0..3 {
        let other = world.start(&[]);
        refused(&mut world, other, PROTOCOL, PROTOCOL + 1);
    }
    let joins = world.start(&["--protocol", &next]);
    world.wait("a secondary of the same version", |world| (world.instances[joins].acked == epoch).then_some(()));
    while !world.instances.is_empty() {
        world.kill(0);
    }
    super::populate(&mut world);
    let led = primary(&mut world);
    assert!(world.instances[led].leads() > Some(epoch));
    world.finish().holds();
}
