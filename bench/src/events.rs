//! Events: envelopes of 300 bytes from one publisher to many subscribers, beside libzmq's PUB and SUB.
//!
//! Each event carries when it was due and its number, so every subscriber knows its latency and what it lost. As fast as it goes means
//! that nothing is dropped on either side: the publisher waits for the sockets. At a pace nobody waits for anybody.

mod durable;
mod ephemeral;
mod jet_stream;
mod redis;

use std::path::PathBuf;

use pando::{Durability, Workdir};
use pando_ipc::rpc::Json;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Pace};

/// Bytes of one event: topic, NUL and envelope.
const EVENT_BYTES: usize = 300;
/// Topic of ephemeral events, as in `libzmq_peer.c`.
const EPHEMERAL: &str = "llm.token";
/// Topic of durable events.
const DURABLE: &str = "bench.event";

/// The part of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Leads, and publishes ephemeral events.
    Station { workdir: PathBuf, pace: Pace },
    /// Leads, and only serves.
    Lead { workdir: PathBuf, durability: Durability, pace: Pace },
    /// Publishes durable events from a secondary, so many at once.
    Publish { workdir: PathBuf, in_flight: u32, pace: Pace },
    /// Receives with Pando's client.
    Subscribe { workdir: PathBuf, topic: String, pace: Pace },
    /// Subscribes at this endpoint and reads nothing.
    Stall { endpoint: String, pace: Pace },
}

/// Does one process's part.
pub(crate) fn work(job: Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    match job {
        Job::Station { workdir, pace } => ephemeral::station(&workdir, pace, ready),
        Job::Stall { endpoint, pace } => ephemeral::stall(&endpoint, pace, ready),
        Job::Subscribe { workdir, topic, pace } => ephemeral::subscribe(&workdir, &topic, pace, ready),
        Job::Lead { workdir, durability, pace } => durable::lead(&workdir, durability, pace, ready),
        Job::Publish { workdir, in_flight, pace } => durable::publish(&workdir, in_flight, pace, ready),
    }
}

/// Added to the numbers in events, so that all are as long.
const EIGHTEEN_DIGITS: u64 = 100_000_000_000_000_000;

/// What is published: when the event was due, its number, and text that makes it as long as it is to be.
#[derive(Serialize)]
struct Stamped {
    at: u64,
    n: u64,
    text: &'static str,
}

/// Returns the payload of an event of [`EVENT_BYTES`] bytes, of which the envelope around it takes `around`.
fn payload(due_ns: u64, number: u64, around: usize) -> Json {
    const TEXT: &[u8] = &[b'x'; EVENT_BYTES];
    let bare = r#"{"at":123456789012345678,"n":123456789012345678,"text":""}"#.len();
    let text = str::from_utf8(&TEXT[..EVENT_BYTES.saturating_sub(around + bare)]).unwrap_or_default();
    Json::of(&Stamped { at: EIGHTEEN_DIGITS + due_ns, n: EIGHTEEN_DIGITS + number, text })
}

/// Returns when the event was due, and its number: found in the text, as `libzmq_peer.c` does, for no JSON reader is measured here.
fn stamp(payload: &Json) -> Option<(u64, u64)> {
    let number = |key: &str| {
        let (_, rest) = payload.as_str().split_once(key)?;
        rest.get(..18)?.parse::<u64>().ok()?.checked_sub(EIGHTEEN_DIGITS)
    };
    Some((number("\"at\":")?, number("\"n\":")?))
}

/// Who subscribes to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Pando's client to Pando.
    Pando,
    /// libzmq's SUB to Pando's native door.
    Door,
    /// libzmq's SUB to libzmq's PUB.
    Libzmq,
}

/// How ephemeral events flow.
#[derive(Debug, Clone, Copy)]
struct Stream {
    subscribers: u32,
    per_second: Option<f64>,
    /// One more subscribes and never reads.
    has_stalled: bool,
}

impl Stream {
    fn run(self, side: Side, context: &Context) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let workdir = Workdir::open(scratch.path())?;
        workdir.prepare()?;
        let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: self.per_second, seed: 1 };
        let path = workdir.path().to_owned();
        let mut fleet = Fleet::default();
        let place = if side == Side::Libzmq {
            let endpoint = format!("ipc://{}", workdir.pando_dir().join("z").display());
            // A stalled one needs no place of its own among those that are waited for.
            let subscribers = (self.subscribers + u32::from(self.has_stalled)).to_string();
            let rate = self.per_second.unwrap_or(0.0).to_string();
            fleet.start_libzmq(context, pace, &["pub", &endpoint, &subscribers, &rate])?
        } else {
            let job = Job::Station { workdir: path.clone(), pace };
            fleet.start(&fleet::Job::Events(job), None)?;
            let doors = pando_ipc::read_lock_for_path(&workdir)?.doors();
            doors.publish.first().ok_or("the primary has no door")?.clone()
        };
        if self.has_stalled {
            let job = Job::Stall { endpoint: place.clone(), pace };
            fleet.start(&fleet::Job::Events(job), None)?;
        }
        for _ in 0..self.subscribers {
            if side == Side::Pando {
                let job = Job::Subscribe { workdir: path.clone(), topic: EPHEMERAL.to_owned(), pace };
                fleet.start(&fleet::Job::Events(job), None)?;
            } else {
                fleet.start_libzmq(context, pace, &["sub", &place])?;
            }
        }
        Ok(per_subscriber(load::sum(&fleet.go()?), self.subscribers))
    }

    fn case(self, name: &'static str, side: Side, context: &Context, targets: Vec<Target>) -> Case {
        let missing = context.libzmq.is_none().then_some(crate::NO_LIBZMQ);
        let plural = if self.subscribers == 1 { "" } else { "s" };
        let rate = self.per_second.map_or("as fast as it goes".to_owned(), |rate| format!("{rate} events/s"));
        let stalled = if self.has_stalled { ", and one that never reads" } else { "" };
        let who = match side {
            Side::Door => "libzmq's SUB on both sides, ours on the native door",
            Side::Pando | Side::Libzmq => "native door, Pando's client; libzmq over ipc",
        };
        Case {
            name,
            about: format!("ephemeral, {} subscriber{plural}{stalled}, {rate}; {who}", self.subscribers),
            peers: vec![Contender::new("libzmq", move |context| self.run(Side::Libzmq, context)).unless(missing)],
            own: Contender::new("pando", move |context| self.run(side, context)),
            targets,
            skip: (side == Side::Door).then_some(missing).flatten().map(str::to_owned),
        }
    }
}

/// Makes the rate that of one subscriber, and says that what did not come was lost.
fn per_subscriber(mut metrics: Metrics, subscribers: u32) -> Metrics {
    if let Some(rate) = metrics.get_mut("per_s") {
        *rate /= f64::from(subscribers.max(1));
    }
    let lost = metrics.remove("failed");
    metrics.extend(lost.map(|lost| ("lost", lost)));
    metrics
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    use Rule::{AtMost, RatioAtLeast};
    let rate = |ratio| Target::new("per_s", RatioAtLeast(ratio));
    let whole = Target::new("lost", AtMost(0.0));
    let most = if context.quick { 4 } else { 16 };
    let fast = |subscribers| Stream { subscribers, per_second: None, has_stalled: false };
    let paced = |subscribers| Stream { subscribers, per_second: Some(1_000.0), has_stalled: false };
    let stalled = Stream { subscribers: 4, per_second: Some(20_000.0), has_stalled: true };
    let prompt = vec![Target::new("p50_ms", AtMost(0.1)), Target::new("p99_ms", AtMost(0.25)), whole];
    let mut cases = vec![
        fast(1).case("ephemeral-1", Side::Pando, context, vec![rate(1.1), whole]),
        fast(4).case("ephemeral-4", Side::Pando, context, vec![rate(1.1), whole]),
        fast(most).case("ephemeral-16", Side::Pando, context, vec![rate(1.5), whole]),
        fast(1).case("door-1", Side::Door, context, vec![rate(1.1), whole]),
        fast(4).case("door-4", Side::Door, context, vec![rate(1.1), whole]),
        fast(most).case("door-16", Side::Door, context, vec![rate(1.5), whole]),
        paced(1).case("paced-1", Side::Pando, context, vec![whole]),
        paced(4).case("paced-4", Side::Pando, context, vec![whole]),
        paced(most).case("paced-16", Side::Pando, context, prompt),
        stalled.case("stalled", Side::Pando, context, vec![whole]),
    ];
    cases.extend(durable::cases(context));
    cases
}
