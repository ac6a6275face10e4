//! Growth: what one call and one event cost with more clients connected, and with more rows in the journal.
//!
//! Each case compares the same load on the larger scale with the smallest one; the cost is processor time of all processes together.

use std::path::{Path, PathBuf};

use pando::{Durability, Envelope, Instance, Options, Role, Topic, Workdir};
use rusqlite::Connection;
use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Course, Pace};
use crate::plain::{Framing, Stream};
use crate::{events, rpc};

/// Topic of the events that are counted.
const TOPIC: &str = "llm.token";
/// Topic that bystanders subscribe to.
const OTHER: &str = "session.deleted";
/// Sockets that are looked at together.
const EVENTS: usize = 256;
/// Room for what arrives at once.
const INPUT_BYTES: usize = 64 * 1024;

/// The part of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Connects so many callers that say nothing.
    Callers { place: String, count: u32, pace: Pace },
    /// Receives as so many subscribers, and counts what they received.
    Subscribers { place: String, prefix: String, count: u32, pace: Pace },
    /// Leads and writes events into a journal that has so many rows.
    Journal { workdir: PathBuf, rows: u64, pace: Pace },
}

/// Does one process's part.
pub(crate) fn work(job: Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    match job {
        Job::Callers { place, count, pace } => {
            let lines = (0..count).map(|_| Stream::connect(&place, Framing::Zmtp));
            let lines = lines.collect::<Result<Vec<_>, _>>()?;
            ready()?;
            fleet::done(Some(&Course::idle(pace)))?;
            drop(lines);
            Ok(())
        }
        Job::Subscribers { place, prefix, count, pace } => receive(&place, &prefix, count, pace, ready),
        Job::Journal { workdir, rows, pace } => append(&workdir, rows, pace, ready),
    }
}

/// Reads what comes to so many subscribers, and counts it.
fn receive(
    place: &str,
    prefix: &str,
    count: u32,
    pace: Pace,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let readable = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut lines = Vec::new();
    for at in 0..count {
        let stream = Stream::subscribe(place, prefix.as_bytes())?;
        epoll::add(&readable, &stream, epoll::EventData::new_u64(at.into()), epoll::EventFlags::IN)?;
        lines.push((stream, Vec::new()));
    }
    ready()?;
    let mut course = Course::begin(pace);
    let mut ready_lines = Vec::with_capacity(EVENTS);
    let mut input = vec![0; INPUT_BYTES];
    let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while let Some(now) = course.next() {
        ready_lines.clear();
        epoll::wait(&readable, rustix::buffer::spare_capacity(&mut ready_lines), Some(&patience))?;
        for event in &ready_lines {
            let (stream, held) = &mut lines[usize::try_from(event.data.u64())?];
            let read = std::io::Read::read(stream, &mut input)?;
            if read == 0 {
                return Err("the primary closed a connection".into());
            }
            held.extend_from_slice(&input[..read]);
            let (events, bytes) = Framing::Zmtp.count(held);
            held.drain(..bytes);
            for _ in 0..events {
                course.ended(now, true);
            }
        }
    }
    let outcome = course.outcome();
    fleet::done(Some(&if prefix == TOPIC { outcome } else { outcome.into_idle() }))
}

/// Fills the journal, leads, and journals events one after the other.
fn append(workdir: &Path, rows: u64, pace: Pace, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let join = || async {
        let options = Options { require_primary: true, durability: Some(Durability::Os), ..Options::default() };
        let instance = Instance::join(Workdir::open(workdir)?, options).await?;
        instance.role().wait_for(|role| *role != Role::Seeking).await?;
        Ok::<_, Failure>(instance)
    };
    let instance = runtime.block_on(join())?;
    runtime.block_on(instance.leave());
    fill(&Workdir::open(workdir)?.database_path(), rows)?;
    let instance = runtime.block_on(join())?;
    ready()?;
    let mut course = Course::begin(pace);
    let payload = json!({"text": "x".repeat(100)});
    while let Some(due) = course.next() {
        let published = runtime.block_on(instance.events().publish("bench.event", payload.clone(), ""));
        course.ended(due, published.is_ok());
    }
    fleet::done(Some(&course.outcome()))?;
    runtime.block_on(instance.leave());
    Ok(())
}

/// Fills the journal up to `rows` as if it had been written.
fn fill(database: &Path, rows: u64) -> Result<(), Failure> {
    let connection = Connection::open(database)?;
    let mut event = Envelope::new("inst-bench", Topic::new("bench.event")?, json!({"text": "x".repeat(100)}));
    (event.epoch, event.seq, event.prev) = (Some(1), Some(1), Some(0));
    connection.execute(
        "WITH RECURSIVE n (seq) AS (
             SELECT coalesce(max(seq), 0) + 1 FROM _pando_event UNION ALL SELECT seq + 1 FROM n WHERE seq < ?1)
         INSERT INTO _pando_event (seq, epoch, topic, prev, at, envelope)
         SELECT seq, 1, 'bench.event', seq - 1, (SELECT max(at) FROM _pando_event), replace(?2, '\"seq\":1', '\"seq\":' || seq) FROM n",
        (i64::try_from(rows)?, serde_json::to_string(&event)?),
    )?;
    Ok(())
}

fn pace(context: &Context) -> Pace {
    Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 }
}

/// Calls from one client while so many more are connected.
fn calls(context: &Context, clients: u32) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let workdir = Workdir::open(scratch.path())?;
    let pace = pace(context);
    let mut fleet = Fleet::default();
    let serve = rpc::Job::Serve { server: rpc::Server::Pando, workdir: workdir.path().to_owned(), tcp: false, pace };
    let places = fleet.start(&fleet::Job::Rpc(serve), None)?;
    let place = places.split(' ').next().unwrap_or_default().to_owned();
    let idle = Job::Callers { place: place.clone(), count: clients - 1, pace };
    fleet.start(&fleet::Job::Growth(idle), None)?;
    let call = rpc::Job::Call { caller: rpc::Caller::Zmtp, place, clients: 1, in_flight: 16, pace };
    fleet.start(&fleet::Job::Rpc(call), None)?;
    Ok(load::sum(&fleet.go()?))
}

/// Events to so many subscribers, or to one beside so many that subscribe to something else.
fn deliveries(context: &Context, subscribers: u32, bystanders: u32) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let workdir = Workdir::open(scratch.path())?;
    let pace = pace(context);
    let mut fleet = Fleet::default();
    let station = events::Job::Station { workdir: workdir.path().to_owned(), pace };
    fleet.start(&fleet::Job::Events(station), None)?;
    let doors = pando_ipc::read_lock_for_path(&workdir)?.doors();
    let place = doors.publish.first().ok_or("the primary has no door")?;
    for (prefix, count) in [(OTHER, bystanders), (TOPIC, subscribers)] {
        if count > 0 {
            let job = Job::Subscribers { place: place.clone(), prefix: prefix.to_owned(), count, pace };
            fleet.start(&fleet::Job::Growth(job), None)?;
        }
    }
    Ok(load::sum(&fleet.go()?))
}

/// Events that are journaled where there are so many rows already.
fn journal(context: &Context, rows: u64) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let mut fleet = Fleet::default();
    let job = Job::Journal { workdir: scratch.path().to_owned(), rows, pace: pace(context) };
    fleet.start(&fleet::Job::Growth(job), None)?;
    Ok(load::sum(&fleet.go()?))
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    let constant = || vec![Target::new("cpu_us", Rule::RatioAtMost(1.25))];
    let case = |name, about: String, small: Contender, large: Contender| Case {
        name,
        about,
        peers: vec![small],
        own: large,
        targets: constant(),
        skip: None,
    };
    let mut cases = Vec::new();
    let scale = |small: u32, large: u32| if context.quick { small } else { large };
    for (name, clients) in [("calls-10", 10), ("calls-100", scale(20, 100)), ("calls-1000", scale(30, 1_000))] {
        let small = Contender::new("1 client", |context| calls(context, 1));
        let large = Contender::new("more", move |context| calls(context, clients));
        cases.push(case(name, format!("16 calls in flight of one client; {clients} are connected"), small, large));
    }
    for (name, count) in [("events-10", 10), ("events-100", scale(20, 100)), ("events-1000", scale(30, 1_000))] {
        let small = Contender::new("1 subscriber", |context| deliveries(context, 1, 0));
        let large = Contender::new("more", move |context| deliveries(context, count, 0));
        cases.push(case(name, format!("ephemeral events to {count} subscribers, each delivery"), small, large));
    }
    let bystanders = scale(30, 1_000);
    cases.push(case(
        "bystanders-1000",
        format!("ephemeral events to one subscriber while {bystanders} subscribe to something else"),
        Contender::new("1 subscriber", |context| deliveries(context, 1, 0)),
        Contender::new("more", move |context| deliveries(context, 1, bystanders)),
    ));
    let sizes = [("journal-10000", 10_000), ("journal-100000", 100_000), ("journal-900000", 900_000)];
    for (name, rows) in sizes.into_iter().take(if context.quick { 1 } else { 3 }) {
        let small = Contender::new("1,000 rows", |context| journal(context, 1_000));
        let large = Contender::new("more", move |context| journal(context, rows));
        cases.push(case(name, format!("durable (os) events of the primary, {rows} rows in the journal"), small, large));
    }
    cases
}
