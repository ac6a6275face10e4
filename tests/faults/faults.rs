//! The faults by name. Each is caused in a world whose instances write, and leaves behind one that serves again.

mod machine;

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use pando_ipc::ports_for_path;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::checker::{DATABASE_GONE, DATABASE_MOVED, LOCK_LOST, LOG_PINNED, LOG_RELEASED};
use crate::history::Deed;
use crate::support::{RawPeer, pando, pass};
use crate::world::{Instance, World};
use machine::{fail_disk, jump_clock, start_by_mount, start_other_version, unwritable_lock};

/// Instances that write.
const INSTANCES: usize = 3;
/// How often a fault is caused in the short form.
const ROUNDS: usize = 3;
/// Bytes that a file may have while the disk is full: more than what an instance without writers records.
const FULL_DISK_BYTES: u64 = 64 << 10;

/// A fault that can be caused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) cause: fn(&mut World),
}

/// Lists the faults, and makes a test of each in its short form.
macro_rules! faults {
    ($($name:ident,)*) => {
        /// All of them.
        pub(crate) const ALL: &[Fault] = &[$(Fault { name: stringify!($name), cause: $name },)*];

        mod short {
            $(#[test] fn $name() { super::survive(super::Fault { name: stringify!($name), cause: super::$name }); })*
        }
    };
}

faults! {
    kill_primary,
    kill_secondary,
    leave_primary,
    stop_primary,
    stop_secondary,
    stop_everybody,
    start_eight,
    remove_pando,
    move_pando,
    unlink_lock,
    unlink_lock_of_stopped,
    replace_primary,
    evict_primary,
    start_by_alias,
    start_by_mount,
    start_other_version,
    spoil_lock_file,
    squat_ports,
    litter_sockets,
    jump_clock,
    fill_disk,
    fail_disk,
    slow_disk,
    slow_binding,
    unwritable_lock,
    exhaust_descriptors,
    stop_subscriber,
    kill_subscriber,
    deaf_subscriber,
    long_reader,
}

/// Fails unless everything that was promised is kept under a fault.
fn survive(fault: Fault) {
    let mut world = World::new(fault.name, 1);
    populate(&mut world);
    world.observe();
    for _ in 0..ROUNDS {
        (fault.cause)(&mut world);
        populate(&mut world);
    }
    world.finish().holds();
}

/// Starts instances until there are enough, and waits until one leads and serves.
pub(crate) fn populate(world: &mut World) {
    while world.instances.len() < INSTANCES {
        let follows: &[&str] = if world.random.one_in(3) { &["--follow"] } else { &[] };
        world.start(follows);
    }
    world.led_beyond(0);
}

fn milliseconds(world: &mut World, from: u64, to: u64) -> Duration {
    Duration::from_millis(world.random.among(from..to))
}

/// Returns the place of the primary.
fn primary(world: &mut World) -> usize {
    world.led_beyond(0).0
}

/// Returns the place of some secondary.
fn secondary(world: &mut World) -> usize {
    let primary = primary(world);
    (primary + 1) % world.instances.len()
}

/// Leaves an instance with these arguments as the only one, which is about to lead. Returns its name, and the epoch before.
fn leave_to(world: &mut World, args: &[&str]) -> (String, u64) {
    let (_, epoch) = world.led_beyond(0);
    let next = world.start(args);
    let name = world.instances[next].name.clone();
    world.wait("the next primary in the queue", |world| world.instances[next].role.as_ref().map(drop));
    while let Some(at) = world.instances.iter().position(|it| it.name != name) {
        world.kill(at);
    }
    (name, epoch)
}

/// Makes an instance with these arguments the primary, with others beside it. Returns its name.
fn enthrone(world: &mut World, args: &[&str]) -> String {
    let (name, epoch) = leave_to(world, args);
    world.wait("its term", |world| world.instances[0].leads().filter(|led| *led > epoch));
    while world.instances.len() < INSTANCES {
        world.start(&[]);
    }
    world.led_beyond(epoch);
    name
}

fn kill_primary(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.kill(at);
    world.led_beyond(epoch);
}

fn kill_secondary(world: &mut World) {
    let at = secondary(world);
    world.kill(at);
}

fn leave_primary(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.term(at);
    world.led_beyond(epoch);
}

fn stop_primary(world: &mut World) {
    let at = primary(world);
    let time = milliseconds(world, 50, 1_500);
    world.stop(at);
    pass(time);
    world.go_on(at);
}

fn stop_secondary(world: &mut World) {
    let at = secondary(world);
    let time = milliseconds(world, 50, 1_500);
    world.stop(at);
    pass(time);
    world.go_on(at);
}

/// A laptop sleeps.
fn stop_everybody(world: &mut World) {
    let time = milliseconds(world, 500, 2_500);
    (0..world.instances.len()).for_each(|at| world.stop(at));
    pass(time);
    (0..world.instances.len()).for_each(|at| world.go_on(at));
}

fn start_eight(world: &mut World) {
    for _ in 0..8 {
        world.start(&["--writers", "1"]);
    }
    world.wait("a role for each", |world| world.instances.iter().all(|it| it.role.is_some()).then_some(()));
    while world.instances.len() > INSTANCES {
        world.kill(0);
    }
}

/// Somebody cleans up.
fn remove_pando(world: &mut World) {
    let dir = world.sandbox.workdir().pando_dir();
    world.fault(LOCK_LOST, "rm -rf .pando");
    world.fault(DATABASE_GONE, "rm -rf .pando");
    // Whoever looks for the lock makes the directory anew, perhaps in the middle of its removal.
    while fs::remove_dir_all(&dir).is_err_and(|error| error.kind() == std::io::ErrorKind::DirectoryNotEmpty) {}
    world.fault(DATABASE_GONE, "the last file is gone");
    world.is_new();
}

fn move_pando(world: &mut World) {
    let dir = world.sandbox.workdir().pando_dir();
    let away = world.new_place("pando");
    world.fault(LOCK_LOST, "mv .pando elsewhere");
    world.fault(DATABASE_MOVED, "mv .pando elsewhere");
    fs::rename(dir, &away).unwrap();
    world.elsewhere.push(away.join("pando.db"));
    world.is_new();
}

fn unlink_lock(world: &mut World) {
    let (_, epoch) = world.led_beyond(0);
    world.fault(LOCK_LOST, "rm .pando/ipc.lock");
    fs::remove_file(world.sandbox.workdir().lock_path()).unwrap();
    world.led_beyond(epoch);
}

/// A stopped primary loses its lock; when it goes on, its epoch is over.
fn unlink_lock_of_stopped(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.stop(at);
    world.fault(LOCK_LOST, "rm .pando/ipc.lock of a stopped primary");
    fs::remove_file(world.sandbox.workdir().lock_path()).unwrap();
    world.start(&[]);
    let newcomer = world.instances.len() - 1;
    // Stopped in the middle of a transaction it keeps everybody else from writing, and a newcomer gives up.
    let gives_up = world.wait("a newcomer that leads or cannot", |world| {
        let newcomer = &world.instances[newcomer];
        let gives_up = newcomer.process.stderr().contains("database is locked");
        (newcomer.role.is_some() || gives_up).then_some(gives_up)
    });
    if gives_up {
        world.ends(newcomer);
    }
    let time = milliseconds(world, 0, 500);
    pass(time);
    world.go_on(at);
    world.led_beyond(epoch);
}

/// A newer binary takes over in place, and the older one is asked to leave.
fn replace_primary(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.note(Deed::Term { who: world.instances[at].name.clone() });
    world.start(&["--replace"]);
    world.ends(at);
    world.led_beyond(epoch);
}

/// A stopped primary is ended by hand.
fn evict_primary(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.stop(at);
    world.note(Deed::Kill { who: world.instances[at].name.clone() });
    let evicted = pando(&world.sandbox, &["ipc", "evict", "--yes"]);
    assert_eq!(evicted.code, Some(0), "{evicted}");
    world.ends(at);
    world.led_beyond(epoch);
}

fn start_by_alias(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    let alias = world.new_place("alias");
    std::os::unix::fs::symlink(world.sandbox.path(), &alias).unwrap();
    let next = world.start(&["--workdir", alias.to_str().unwrap()]);
    world.wait("a secondary by another name", |world| (world.instances[next].acked >= epoch).then_some(()));
    world.kill(at);
    world.led_beyond(epoch);
}

/// The lock file says something else than its holder wrote; then the holder dies.
fn spoil_lock_file(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    let path = world.sandbox.workdir().lock_path();
    let foreign = fs::read_to_string(&path).unwrap().replace("\"epoch\"", "\"epoch\": 9999999, \"was\"");
    let texts = [String::new(), "{".to_owned(), "\0".repeat(4_096), "x".repeat(1 << 20), "[]\n".to_owned(), foreign];
    let text = &texts[usize::try_from(world.random.among(0..texts.len() as u64)).unwrap()];
    world.fault("lock-file-spoiled", &text.chars().take(40).collect::<String>());
    fs::write(&path, text).unwrap();
    world.start(&[]);
    let time = milliseconds(world, 0, 1_000);
    pass(time);
    world.kill(at);
    world.led_beyond(epoch);
}

/// Somebody else sits on the workdir's ports when the next primary wants them.
fn squat_ports(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    world.kill(at);
    let ports = ports_for_path(world.sandbox.path());
    let squat = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    // What the successor has already is not free to squat on.
    let squatters: Vec<_> =
        [ports.publish, ports.rpc, ports.next().publish].into_iter().filter_map(|it| squat(it).ok()).collect();
    world.fault("ports-squatted", &format!("{} of 3", squatters.len()));
    let (at, epoch) = world.led_beyond(epoch);
    world.kill(at);
    world.led_beyond(epoch);
}

fn litter_sockets(world: &mut World) {
    let (at, epoch) = world.led_beyond(0);
    let dir = world.sandbox.workdir().socket_dir().unwrap();
    let number = world.random.next();
    drop(UnixListener::bind(dir.join(format!("{number}-aaaaaa.rpc"))).unwrap());
    fs::create_dir(dir.join(format!("{number}-bbbbbb.pub"))).unwrap();
    fs::write(dir.join(format!("{number}-cccccc.rpc")), "no socket").unwrap();
    world.fault("sockets-littered", "a stale socket, a directory, a file");
    world.kill(at);
    world.led_beyond(epoch);
}

/// Sets the soft limit of a resource of an instance for some time; `None` leaves the limit alone.
fn limit(world: &mut World, name: &str, resource: Resource, value: u64) {
    let at = world.instances.iter().position(|it| it.name == name).unwrap();
    let pid = Pid::from_raw(i32::try_from(world.instances[at].process.pid()).unwrap());
    let before = rustix::process::getrlimit(resource);
    world.fault("limit", &format!("{resource:?} of {name} is {value}"));
    prlimit(pid, resource, Rlimit { current: Some(value), maximum: before.maximum }).unwrap();
    let time = milliseconds(world, 100, 1_000);
    pass(time);
    prlimit(pid, resource, before).unwrap();
    world.fault("limit", &format!("{resource:?} of {name} is as before"));
}

fn fill_disk(world: &mut World) {
    let name = enthrone(world, &["--writers", "0"]);
    limit(world, &name, Resource::Fsize, FULL_DISK_BYTES);
    kill_primary(world);
}

/// One commit takes longer than a second.
fn slow_disk(world: &mut World) {
    let name = enthrone(world, &["--arm", "commit.before@20=sleep:1300"]);
    let at = world.instances.iter().position(|it| it.name == name).unwrap();
    pass(Duration::from_millis(200));
    world.kill(at);
}

/// The sockets of a primary take their time: its own writes do not wait for them.
fn slow_binding(world: &mut World) {
    let (_, epoch) = leave_to(world, &["--arm", "bind.unix@1=sleep:3000"]);
    world.wait("its own writes while nothing is bound", |world| {
        let next = &world.instances[0];
        assert_eq!(next.leads(), None, "it writes before it serves [{world}]");
        (next.acked > epoch).then_some(())
    });
    world.led_beyond(epoch);
}

fn exhaust_descriptors(world: &mut World) {
    let name = enthrone(world, &[]);
    let pid = world.instances.iter().find(|it| it.name == name).unwrap().process.pid();
    let open: HashSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let lowest_free = (0..=open.len() as u64).find(|number| !open.contains(&number.to_string())).unwrap();
    world.start(&[]);
    world.start(&[]);
    limit(world, &name, Resource::Nofile, lowest_free);
    world.wait("a role for each", |world| world.instances.iter().all(|it| it.role.is_some()).then_some(()));
    while world.instances.len() > INSTANCES {
        let at = secondary(world);
        world.kill(at);
    }
}

fn stop_subscriber(world: &mut World) {
    let time = milliseconds(world, 100, 2_000);
    world.signal_observer(Signal::STOP);
    pass(time);
    world.signal_observer(Signal::CONT);
}

fn kill_subscriber(world: &mut World) {
    let time = milliseconds(world, 0, 300);
    pass(time);
    world.replace_observer();
}

/// A subscriber to everything never reads.
fn deaf_subscriber(world: &mut World) {
    let time = milliseconds(world, 500, 1_500);
    let mut deaf = RawPeer::handshake(world.sandbox.lock_info().pub_port, "SUB");
    deaf.subscribe("");
    world.fault("deaf-subscriber", "subscribes to everything and does not read");
    pass(time);
}

/// Somebody else's transaction keeps the write-ahead log from beginning anew.
fn long_reader(world: &mut World) {
    let time = milliseconds(world, 500, 2_000);
    let mut reader = world.sandbox.database();
    let transaction = reader.transaction().unwrap();
    let _rows: i64 = transaction.query_row("SELECT count(*) FROM trial", [], |row| row.get(0)).unwrap();
    world.fault(LOG_PINNED, &format!("for {time:?}"));
    pass(time);
    drop(transaction);
    world.fault(LOG_RELEASED, "the reader is done");
}

/// Simultaneous starts in a workdir without a database.
const STARTS: [usize; 3] = [2, 8, 32];

#[test]
fn any_number_of_simultaneous_starts_makes_one_primary() {
    for count in STARTS {
        let mut world = World::new("starts", count as u64);
        for _ in 0..count {
            world.start(&["--writers", "1"]);
        }
        let has_place = |it: &Instance| it.role.as_ref().is_some_and(|role| role.role != "seeking");
        world.wait("a place for each", |world| world.instances.iter().all(has_place).then_some(()));
        let epochs: Vec<_> = world.instances.iter().filter_map(Instance::leads).collect();
        assert_eq!(epochs, [1], "{count} started at once");
        world.finish().none_failed().holds();
    }
}

/// Flag of a descriptor that no child inherits, as `/proc/<pid>/fdinfo` shows it.
const CLOEXEC: u64 = 0o2_000_000;

#[test]
fn no_child_inherits_a_descriptor() {
    let mut world = World::new("inherit", 1);
    populate(&mut world);
    for instance in &world.instances {
        let proc = PathBuf::from(format!("/proc/{}", instance.process.pid()));
        let mut looked = 0;
        for entry in fs::read_dir(proc.join("fdinfo")).unwrap() {
            let number = entry.unwrap().file_name();
            let (Ok(info), Ok(target)) =
                (fs::read_to_string(proc.join("fdinfo").join(&number)), fs::read_link(proc.join("fd").join(&number)))
            else {
                continue;
            };
            // What came from the shell that started the tests is not ours to close.
            if target.starts_with(world.sandbox.path()) || target.to_string_lossy().starts_with("socket:") {
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
                let flags = u64::from_str_radix(flags, 8).unwrap();
                assert!(flags & CLOEXEC != 0, "a child would inherit {}", target.display());
                looked += usize::from(target.ends_with("ipc.lock"));
            }
        }
        assert!(looked > 0, "{} holds the lock or waits for it", instance.name);
    }
    world.finish().holds();
}
