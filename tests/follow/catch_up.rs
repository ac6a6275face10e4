//! Followers that stand still while others publish: what they then read, and how fast.
//!
//! Two of them: one in a program that takes nothing from its follower, and `pando ipc tail`, whose process is stopped.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pando_dbproxy::Readers;
use pando_ipc::client::{Client, Followed, Follower, LocalHistory, Since};
use pando_ipc::{Kind, Pattern, Workdir};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::fleet::Fleet;
use crate::{Scale, client};

/// How often a handful of events is published.
const BEAT: Duration = Duration::from_millis(10);

pub(crate) async fn followers_that_stood_still_miss_none(scale: Scale) {
    let fleet = Fleet::start().await;
    let publisher = client(fleet.workdir(), "publisher", Kind::Client);
    let start = head(&publisher).await;
    let reader = client(fleet.workdir(), "reader", Kind::Observer);
    let mut program = Program::start(fleet.workdir(), &reader, start);
    let mut tail = Tail::start(fleet.workdir(), start);
    publish(&publisher, 1).await;
    let first = head(&publisher).await;
    program.read_to(first).await;
    tail.read_to(first).await;

    tail.signal(Signal::STOP);
    let published = Instant::now();
    publish_for(&publisher, scale.away, scale.pace).await;
    let (published, last) = (published.elapsed(), head(&publisher).await);
    assert!(last - first >= scale.away * scale.pace);
    println!("published: {} events in {:.1} s, while followers stood still", last - first, published.as_secs_f64());

    let began = Instant::now();
    program.read_to(last).await;
    tell("a program", last - first, began, scale.rate);
    tail.signal(Signal::CONT);
    let began = Instant::now();
    tail.read_to(last).await;
    tell("pando ipc tail", last - first, began, scale.rate);
    reader.close().await;
    publisher.close().await;
}

async fn head(client: &Client) -> u64 {
    client.call("events.head", json!({})).await.unwrap()["seq"].as_u64().unwrap()
}

fn tell(who: &str, events: u64, began: Instant, wanted: u64) {
    let seconds = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let (reached, wanted) = (events as f64 / seconds, wanted as f64);
    println!("caught up: {who}, {events} events in {seconds:.2} s, {reached:.0} events/s");
    assert!(reached >= wanted, "{reached:.0} events/s, {wanted} were wanted");
}

async fn publish(client: &Client, events: u64) {
    let mut calls = JoinSet::new();
    for number in 0..events {
        let client = client.clone();
        calls.spawn(async move {
            let event = json!({"topic": "build.step", "payload": {"number": number, "ok": true}});
            client.call("events.publish", event).await.unwrap();
        });
    }
    calls.join_all().await;
}

/// Publishes so many events a second; where the machine is too slow for that, it takes longer.
async fn publish_for(client: &Client, seconds: u64, pace: u64) {
    let beats = u64::try_from(Duration::from_secs(seconds).as_millis() / BEAT.as_millis()).unwrap();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut published = 0;
    for number in 1..=beats {
        beat.tick().await;
        let due = seconds * pace * number / beats;
        publish(client, due - published).await;
        published = due;
    }
}

/// A follower in this process.
struct Program {
    follower: Follower,
    last: u64,
}

impl Program {
    fn start(workdir: &Workdir, client: &Client, after: u64) -> Self {
        let file = Arc::new(Readers::open(workdir.database_path(), 1));
        let history = Arc::new(LocalHistory::new(file, client.clone()));
        Self { follower: client.follow(vec![Pattern::All], Since::Seq(after), history), last: after }
    }

    async fn read_to(&mut self, end: u64) {
        while let Some(item) = self.follower.recv_upto(end).await {
            match item {
                Followed::Event(event) => {
                    let Some(seq) = event.seq else { continue };
                    assert_eq!(seq, self.last + 1);
                    self.last = seq;
                }
                Followed::Lagged(_) => {}
                Followed::Resync(gap) => panic!("{gap:?}"),
            }
        }
        assert_eq!(self.last, end);
    }
}

/// `pando ipc tail` as a process; it ends with its owner.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    last: u64,
}

impl Tail {
    fn start(workdir: &Workdir, after: u64) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pando"));
        command.args(["--quiet", "ipc", "tail", "--format", "{seq}", "--since", &after.to_string()]);
        command.arg("--workdir").arg(workdir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::with_capacity(1 << 16, child.stdout.take().unwrap()).lines();
        Self { child, lines, last: after }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(pid, signal).unwrap();
    }

    async fn read_to(&mut self, end: u64) {
        while self.last < end {
            let line = tokio::time::timeout(crate::PATIENCE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("nothing came behind {}", self.last)).unwrap();
            // An ephemeral event has no number.
            let Ok(seq) = line.expect("it goes on").parse::<u64>() else { continue };
            assert_eq!(seq, self.last + 1);
            self.last = seq;
        }
    }
}
