//! Growth: what one call and one event cost with more clients connected, and with more rows in the journal.
//!
//! Each case is a curve: the same load at growing scales, the largest compared with the others.
//! The cost is processor time of all processes together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use pando::{Durability, Envelope, Instance, Options, Role, Topic, Workdir};
use pando_dbproxy::{Retention, Settings};
use rusqlite::Connection;
use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Course, Pace};
use crate::plain::{Framing, Stream};
use crate::runtime::Threads;
use crate::{events, rpc};

/// Topic of the events that are counted.
const TOPIC: &str = "llm.token";
/// Topic that bystanders subscribe to.
const OTHER: &str = "session.deleted";
/// Topic of the events that are journaled.
const JOURNALED: &str = "bench.event";
/// How many of what grows there are, and what that is called.
type Scale = (&'static str, u32);
/// Clients, the fewest first; a quick run takes the first two of each scale.
const CLIENTS: [Scale; 4] = [("1 client", 1), ("10 clients", 10), ("100 clients", 100), ("1,000 clients", 1_000)];
/// Rows in the journal.
const ROWS: [Scale; 5] = [
    ("1,000 rows", 1_000),
    ("10,000 rows", 10_000),
    ("100,000 rows", 100_000),
    ("1,000,000 rows", 1_000_000),
    ("10,000,000 rows", 10_000_000),
];
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
    Journal { workdir: PathBuf, rows: u32, pace: Pace },
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

/// Fills the journal unless it is full already, leads, and journals events one after the other.
fn append(workdir: &Path, rows: u32, pace: Pace, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let workdir = Workdir::open(workdir)?;
    let join = || async {
        let options = Options { require_primary: true, durability: Some(Durability::Os), ..Options::default() };
        let instance = Instance::join(workdir.clone(), options).await?;
        instance.role().wait_for(|role| *role != Role::Seeking).await?;
        Ok::<_, Failure>(instance)
    };
    let database = workdir.database_path();
    if !database.exists() {
        keep_all(&workdir)?;
        let instance = runtime.block_on(join())?;
        runtime.block_on(instance.leave());
        fill(&database, rows)?;
    }
    let instance = runtime.block_on(join())?;
    ready()?;
    let mut course = Course::begin(pace);
    let payload = json!({"text": "x".repeat(100)});
    while let Some(due) = course.next() {
        let published = runtime.block_on(instance.events().publish(JOURNALED, payload.clone(), ""));
        course.ended(due, published.is_ok());
    }
    fleet::done(Some(&course.outcome()))?;
    runtime.block_on(instance.leave());
    let held = "SELECT max(seq) - min(seq) + 1 FROM _pando_event";
    let held: u32 = Connection::open(&database)?.query_row(held, [], |row| row.get(0))?;
    if held < rows { Err(format!("the journal was to hold {rows} rows and holds {held}").into()) } else { Ok(()) }
}

/// Sets the journal of a new workdir to keep whatever is written.
fn keep_all(workdir: &Workdir) -> Result<(), Failure> {
    workdir.prepare()?;
    let journal = Retention { max_events: u64::MAX >> 1, max_bytes: u64::MAX >> 1, max_age_s: None };
    let settings = Settings { journal, ..Settings::default() };
    Ok(std::fs::write(workdir.pando_dir().join(pando_dbproxy::settings::FILE), serde_json::to_string(&settings)?)?)
}

/// Fills the journal of a workdir that nobody uses up to `rows`, as if they had been published.
fn fill(database: &Path, rows: u32) -> Result<(), Failure> {
    let connection = Connection::open(database)?;
    let mut event = Envelope::new("inst-bench", Topic::new(JOURNALED)?, json!({"text": ""}));
    (event.epoch, event.seq, event.prev) = (Some(1), Some(1), Some(0));
    // Written once, and to the disk before anything is measured; the next primary makes it a log again.
    for mode in ["DELETE", "OFF"] {
        connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))?;
    }
    connection.execute(
        "WITH RECURSIVE n (seq) AS (
             SELECT coalesce(max(seq), 0) + 1 FROM _pando_event UNION ALL SELECT seq + 1 FROM n WHERE seq < ?1)
         INSERT INTO _pando_event (seq, epoch, topic, prev, at, envelope)
         SELECT seq, 1, ?2, seq - 1, ?3, replace(?4, '\"seq\":1', '\"seq\":' || seq) FROM n",
        (rows, JOURNALED, event.timestamp.unix_seconds(), serde_json::to_string(&event)?),
    )?;
    // A primary would have written down the topic's last event, too, and that no op is left with these events.
    for (table, key) in [
        ("_pando_topic (topic, seq)", JOURNALED),
        ("_pando_meta (key, value)", "topics"),
        ("_pando_meta (key, value)", "ops"),
    ] {
        connection.execute(&format!("REPLACE INTO {table} VALUES (?1, ?2)"), (key, rows))?;
    }
    Ok(())
}

fn pace(context: &Context) -> Pace {
    Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 }
}

/// Calls from one client while so many are connected.
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

/// Events that are journaled where there are so many rows already; the journal of a scale is filled once.
fn journal(context: &Context, rows: u32, filled: &mut BTreeMap<u32, Scratch>) -> Result<Metrics, Failure> {
    let scratch = match filled.entry(rows) {
        Entry::Occupied(scratch) => scratch.into_mut(),
        Entry::Vacant(place) => place.insert(Scratch::new(&context.dir)?),
    };
    let mut fleet = Fleet::default();
    let job = Job::Journal { workdir: scratch.path().to_owned(), rows, pace: pace(context) };
    fleet.start(&fleet::Job::Growth(job), None)?;
    Ok(load::sum(&fleet.go()?))
}

/// Returns a case that measures the same load at each scale, and compares the largest with the others; `axis` is what grows.
fn curve(
    name: &'static str,
    about: &str,
    axis: &'static str,
    scales: &[Scale],
    run: impl Fn(&Context, u32) -> Result<Metrics, Failure> + 'static,
) -> Case {
    let run = Rc::new(run);
    let at = |(label, scale): Scale| {
        let run = Rc::clone(&run);
        Contender::new(label, move |context| {
            let mut metrics = run(context, scale)?;
            metrics.insert(axis, f64::from(scale));
            Ok(metrics)
        })
    };
    let last = scales.len() - 1;
    Case {
        name,
        about: about.to_owned(),
        peers: scales[..last].iter().copied().map(at).collect(),
        own: at(scales[last]),
        targets: vec![Target::new("cpu_us", Rule::RatioAtMost(1.25))],
        skip: None,
    }
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    let few = |scales: &'static [Scale]| if context.quick { &scales[..2] } else { scales };
    let (clients, rows) = (few(&CLIENTS), few(&ROWS));
    let filled = RefCell::new(BTreeMap::new());
    vec![
        curve("calls", "16 calls in flight of one client, among so many that are connected", "clients", clients, calls),
        curve(
            "events",
            "ephemeral events to so many subscribers, each delivery",
            "clients",
            clients,
            |context, count| deliveries(context, count, 0),
        ),
        curve(
            "bystanders",
            "ephemeral events to one subscriber, among so many of which the others subscribe to something else",
            "clients",
            clients,
            |context, count| deliveries(context, 1, count - 1),
        ),
        curve(
            "journal",
            "durable (os) events of the primary, one after the other, with so many rows in the journal",
            "rows",
            rows,
            move |context, rows| journal(context, rows, &mut filled.borrow_mut()),
        ),
    ]
}
