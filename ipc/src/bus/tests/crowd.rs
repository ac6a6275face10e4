use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::*;

/// Set for the process of its own that runs a part of a test.
pub(super) const PART: &str = "PANDO_TEST_PART";
/// Connections that come and go; `scripts/soak-doors` asks for more.
const CONNECTS: &str = "PANDO_TEST_CONNECTS";
const USUAL_CONNECTS: usize = 20_000;
/// Connections before the first look: allocators and tables have grown by then.
const WARM_UP: usize = 2_000;
/// Connections at once while they come and go.
const AT_ONCE: usize = 16;
/// What the process may grow by over all connects, by 400 KiB usually: a hundred bytes that each of them leaves are too much.
const GROWTH_KIB: u64 = 2 * 1024;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(super) fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Connects, says nothing, half a greeting, all of it, or a call, and leaves.
async fn come_and_go(fixture: &Fixture, number: usize) {
    let role = if number.is_multiple_of(2) { Role::Router } else { Role::Pub };
    let socket_type = if role == Role::Router { "DEALER" } else { "SUB" };
    match number % 5 {
        0 => drop(fixture.tcp(role).await),
        1 => Raw(fixture.unix(role).await).write(b"\xff\0\0").await,
        2 => drop(Raw::greet(fixture.unix(role).await, 0, socket_type).await),
        3 => {
            let mut subscriber = Raw::greet(fixture.tcp(Role::Pub).await, 1, "SUB").await;
            subscriber.frame(0, b"\x01a").await;
        }
        _ => {
            let mut caller = Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
            caller.frame(0, br#"{"jsonrpc":"2.0","id":1,"method":"later"}"#).await;
        }
    }
}

async fn all_come_and_go(fixture: &Arc<Fixture>, count: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (fixture, next) = (Arc::clone(fixture), Arc::clone(&next));
        crowd.spawn(async move {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= count {
                    return;
                }
                come_and_go(&fixture, number).await;
            }
        });
    }
    while let Some(done) = crowd.join_next().await {
        done.unwrap();
    }
    let is_empty = || {
        let stats = fixture.bus.stats();
        stats.callers + stats.subscribers + stats.calls_in_flight + stats.queued_bytes == 0
            && fixture.bus.inner.shared.connections.len() == 4
    };
    eventually("all are gone", is_empty).await;
}

/// Runs in a process of its own, so that its descriptors and its memory are those of the bus alone.
#[tokio::test(flavor = "multi_thread")]
async fn comes_and_goes() {
    if std::env::var_os(PART).is_none() {
        return;
    }
    let count = std::env::var(CONNECTS).map_or(USUAL_CONNECTS, |count| count.parse().unwrap());
    let fixture = Arc::new(Fixture::start().await);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    all_come_and_go(&fixture, WARM_UP).await;
    let (open, alive, resident) = (descriptors(), tasks(), resident_kib());
    all_come_and_go(&fixture, count).await;
    assert!(fixture.bus.stats().accepted >= count as u64);
    assert_eq!(descriptors(), open);
    eventually("their tasks have ended", || tasks() <= alive).await;
    let grown = resident_kib().saturating_sub(resident);
    assert!(grown < GROWTH_KIB, "{count} connects left {grown} KiB");
    fixture.check_alive().await;
}

/// Runs a test of the bus in a process of its own, where it finds [`PART`].
pub(super) fn run_part(name: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("bus::tests::{name}"), "--nocapture"]).env(PART, name);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    run_part("crowd::comes_and_goes");
}

/// Runs in a process of its own, whose descriptors run out.
#[tokio::test(flavor = "multi_thread")]
async fn runs_out_of_descriptors() {
    if std::env::var_os(PART).is_none() {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let fixture = Fixture::start().await;
    assert_eq!(fixture.bus.inner.shared.limits.max_connections, 192);
    let mut friend = Dealer::connect(&fixture.rpc()[0]).await;
    assert_eq!(friend.call("now", json!([1])).await["result"], json!([1]));
    let path = fixture.rpc()[0].strip_prefix("ipc://").unwrap().to_owned();
    let mut taken: VecDeque<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let accepted = fixture.bus.stats().accepted;
    let mut turned_away = 0;
    while turned_away < 3 {
        // One descriptor for our end; none is left for the other, but for the reserve.
        taken.pop_front();
        let knock = UnixStream::from_std(nonblocking(StdUnixStream::connect(&path).unwrap())).unwrap();
        Raw(knock).closed().await;
        taken.extend(File::open("/dev/null").ok());
        turned_away += 1;
        assert_eq!(friend.call("later", json!([2])).await["result"], json!([2]), "who is in is served");
    }
    assert_eq!((fixture.refusals("descriptors"), fixture.bus.stats().accepted), (3, accepted));
    taken.pop_front();
    let worked = cpu_ticks();
    let knocks = StdUnixStream::connect(&path).unwrap();
    timeout(Duration::from_secs(1), std::future::pending::<()>()).await.unwrap_err();
    taken.pop_front();
    let ticks = cpu_ticks() - worked;
    assert!(ticks < 20, "{ticks} of 100 ticks of a second");
    drop(knocks);
    taken.clear();
    let mut late = Dealer::connect(&fixture.rpc()[0]).await;
    assert_eq!(late.call("now", json!([3])).await["result"], json!([3]), "descriptors are back");
}

fn nonblocking(stream: StdUnixStream) -> StdUnixStream {
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Returns the processor time of this process, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn without_descriptors_the_bus_turns_away_and_does_not_spin() {
    run_part("crowd::runs_out_of_descriptors");
}

/// Clients of the test of fairness.
const CLIENTS: usize = 1_000;
/// Calls that each of them keeps in flight.
const IN_FLIGHT: usize = 4;
/// Answers in all, after which the clients compare. Who is served next is partly chance, as the system wakes sockets and
/// tasks: it evens out over a hundred answers each, while what a door prefers does not.
const ANSWERS: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_are_served_alike() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let fixture = Fixture::start().await;
    let mut clients = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        let door: Box<dyn Stream> = if number % 2 == 0 {
            Box::new(fixture.unix(Role::Router).await)
        } else {
            Box::new(fixture.tcp(Role::Router).await)
        };
        clients.push(Raw::greet(door, 0, "DEALER").await);
    }
    let total = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(Barrier::new(CLIENTS));
    let mut crowd = JoinSet::new();
    for mut client in clients {
        let (total, start) = (Arc::clone(&total), Arc::clone(&start));
        crowd.spawn(async move {
            start.wait().await;
            let request = br#"{"jsonrpc":"2.0","id":1,"method":"later"}"#;
            for _ in 0..IN_FLIGHT {
                client.frame(0, request).await;
            }
            let mut own = 0;
            while total.fetch_add(1, Relaxed) < ANSWERS {
                client.read_frame().await;
                client.read_frame().await;
                own += 1;
                client.frame(0, request).await;
            }
            own
        });
    }
    let mut answers = Vec::with_capacity(CLIENTS);
    // Each frame is waited for within our patience; all of them take what the machine takes.
    while let Some(own) = crowd.join_next().await {
        answers.push(own.unwrap());
    }
    answers.sort_unstable();
    let (least, most) = (answers[0], answers[CLIENTS - 1]);
    let fair = ANSWERS / CLIENTS;
    assert!(least >= fair / 3 && most <= fair * 3, "{least} to {most} answers, {fair} would be even");
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
