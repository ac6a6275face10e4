//! Five followers with different filters, while primaries are killed and followers start again: each stream is the journal, filtered.
//! And followers that stand still while others publish: they miss none.
//!
//! ```text
//! cargo test --test follow                                                                    a small form, as CI runs it
//! cargo test --release --test follow -- --events 100000 --takeovers 20 --restarts 10          all of it
//! cargo test --release --test follow -- --away 60 --pace 5000                                 how fast one catches up after a minute
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test without harness: it fails by a panic and tells its figures"
)]

mod catch_up;
mod fleet;
mod follower;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pando_dbproxy::Readers;
use pando_ipc::client::{CallError, Client, Options};
use pando_ipc::{Envelope, Kind, Pattern, Workdir};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use fleet::Fleet;
use follower::Observer;

/// What the followers follow.
const FILTERS: [&[&str]; 5] = [&["*"], &["a.*"], &["a.one", "c"], &["*.two"], &["b.one"]];
/// What is published, in turn.
const TOPICS: [&str; 5] = ["a.one", "a.two", "b.one", "c", "b.two"];
/// How many events are published at once.
const LANES: u64 = 16;
/// How long the whole may take for each thousand events, and a takeover.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much to do.
#[derive(Debug, Clone, Copy)]
struct Scale {
    events: u64,
    takeovers: u64,
    /// Restarts of each follower.
    restarts: u64,
    /// Seconds for which followers stand still.
    away: u64,
    /// Events that are published in each of them.
    pace: u64,
    /// How many events a follower must then read in a second; 0: any number will do.
    rate: u64,
}

impl Scale {
    /// Reads `--events N` and the like. Other arguments are for the harness that this is not.
    fn of_arguments() -> Self {
        let mut scale = Self { events: 2_000, takeovers: 3, restarts: 3, away: 1, pace: 2_000, rate: 0 };
        let arguments: Vec<String> = std::env::args().collect();
        for pair in arguments.windows(2) {
            let target = match pair[0].as_str() {
                "--events" => &mut scale.events,
                "--takeovers" => &mut scale.takeovers,
                "--restarts" => &mut scale.restarts,
                "--away" => &mut scale.away,
                "--pace" => &mut scale.pace,
                "--rate" => &mut scale.rate,
                _ => continue,
            };
            *target = pair[1].parse().unwrap_or_else(|_| panic!("{} takes a number, not {:?}", pair[0], pair[1]));
        }
        scale
    }
}

fn main() {
    let scale = Scale::of_arguments();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(streams_are_the_journal_filtered(scale));
    runtime.block_on(catch_up::followers_that_stood_still_miss_none(scale));
}

/// Returns a client that identifies itself.
fn client(workdir: &Workdir, name: &str, kind: Kind) -> Client {
    Client::open(workdir.clone(), Options::new(name, kind))
}

async fn streams_are_the_journal_filtered(scale: Scale) {
    let began = Instant::now();
    let mut fleet = Fleet::start().await;
    let workdir = fleet.workdir().clone();
    let (progress, published) = watch::channel(0);
    let mut observers = JoinSet::new();
    for (index, filter) in FILTERS.into_iter().enumerate() {
        let patterns: Vec<_> = filter.iter().map(|text| Pattern::new(text).unwrap()).collect();
        observers.spawn(Observer::new(index, workdir.clone(), patterns, scale).follow(published.clone()));
    }
    let mut publishing = JoinSet::new();
    publishing.spawn(publish(client(&workdir, "publisher", Kind::Client), scale.events, progress));
    for takeover in 1..=scale.takeovers {
        let due = takeover * scale.events / (scale.takeovers + 1);
        let mut published = published.clone();
        within(scale, "events between takeovers", published.wait_for(|count| *count >= due)).await.unwrap();
        fleet.take_over().await;
    }
    let kept = within(scale, "publishing", publishing.join_all()).await.into_iter().sum();
    let streams = within(scale, "the followers' end", observers.join_all()).await;
    check(&journal(&workdir).await, kept, streams);
    println!(
        "followed: {} events, {} takeovers, {} restarts of each of {} followers, in {:?}",
        scale.events,
        scale.takeovers,
        scale.restarts,
        FILTERS.len(),
        began.elapsed()
    );
}

async fn within<T>(scale: Scale, what: &str, work: impl Future<Output = T>) -> T {
    let limit = PATIENCE + PATIENCE * u32::try_from(scale.events / 1_000 + scale.takeovers).unwrap();
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

/// Publishes so many events, each until it is acknowledged; tells how many were, and in the end that it is over.
async fn publish(client: Client, events: u64, progress: watch::Sender<u64>) -> u64 {
    let next = Arc::new(AtomicU64::new(0));
    let mut lanes = JoinSet::new();
    let progress = Arc::new(progress);
    for _ in 0..LANES {
        let (client, next, progress) = (client.clone(), Arc::clone(&next), Arc::clone(&progress));
        lanes.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= events {
                    return;
                }
                let topic = TOPICS[usize::try_from(number).unwrap() % TOPICS.len()];
                let params = json!({"topic": topic, "payload": {"number": number}, "op_id": format!("op-{number}")});
                while let Err(error) = client.call("events.publish", params.clone()).await {
                    let fault = error.fault();
                    assert!(fault.is_none_or(pando_ipc::Fault::is_retryable), "{error}");
                    assert!(!matches!(error, CallError::NotSent(pando_ipc::client::Cause::Closed)));
                }
                progress.send_modify(|count| *count += 1);
            }
        });
    }
    lanes.join_all().await;
    client.close().await;
    events
}

/// Reads the whole journal from the file.
async fn journal(workdir: &Workdir) -> Vec<Envelope> {
    let readers = Readers::open(workdir.database_path(), 1);
    let mut journal = Vec::new();
    let mut upto = 0;
    loop {
        let page = readers.since(upto, &[Pattern::All], 10_000).await.unwrap();
        assert_eq!(page.resync, None);
        journal.extend(page.events);
        upto = page.upto;
        if page.upto == page.head {
            return journal;
        }
    }
}

fn check(journal: &[Envelope], published: u64, streams: Vec<(usize, Vec<u64>)>) {
    assert!(journal.iter().map(|event| event.seq).eq((1..=journal.len() as u64).map(Some)), "dense");
    let number = |event: &Envelope| event.payload.raw().member("number")?.read::<u64>().ok();
    let mut numbers: Vec<_> = journal.iter().filter_map(number).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..published), "each event is in the journal once");
    for (index, stream) in streams {
        let patterns: Vec<_> = FILTERS[index].iter().map(|text| Pattern::new(text).unwrap()).collect();
        let wanted: Vec<&Envelope> = journal
            .iter()
            .filter(|event| patterns.iter().any(|pattern| pattern.matches(event.topic.as_str())))
            .collect();
        let differs = stream.iter().zip(&wanted).position(|(got, wanted)| Some(*got) != wanted.seq);
        assert_eq!(differs, None, "{:?}: from {:?}", FILTERS[index], differs.map(|at| (&stream[at], wanted[at].seq)));
        // What is behind the stream's end, such as the departure of a client, came after it.
        let behind = wanted.get(stream.len()..).unwrap_or_default();
        assert!(stream.len() <= wanted.len(), "{:?} has more than the journal", FILTERS[index]);
        let missing = behind.iter().find(|event| number(event).is_some());
        assert!(missing.is_none(), "{:?} ends early: {missing:?}", FILTERS[index]);
    }
}
