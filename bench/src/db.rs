//! Writes and reads: Pando beside processes that each open the database file themselves.
//!
//! The write is an insert of a row with 500 bytes and two indexes, and the update of a counter, in one transaction. Both sides run the
//! same SQLite with the same `synchronous` setting. Of Pando one more process leads and serves, unless a case says otherwise.

mod open;
mod own;
mod rqlite;

use std::path::PathBuf;

use pando::Durability;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Pace};
use crate::servers::{self, Talk};

/// What both sides write into.
const SCHEMA: [&str; 4] = [
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, author INTEGER NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX entry_author ON entry (author, at)",
    "CREATE INDEX entry_at ON entry (at)",
    "CREATE TABLE counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
];
/// Rows of `counter`, and rows of `entry` that are there for readers.
const FILL: [&str; 2] = [
    "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 63) INSERT INTO counter SELECT i, 0 FROM n",
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
     INSERT INTO entry (author, at, body) SELECT 0, i, hex(randomblob(250)) FROM n",
];
const FILLED_ENTRIES: u64 = 2_000;
const INSERT: &str = "INSERT INTO entry (author, at, body) VALUES (?1, ?2, ?3)";
const COUNT: &str = "UPDATE counter SET n = n + 1 WHERE id = ?1";
const READ: &str = "SELECT author, at, body FROM entry WHERE id = ?1";
const BODY_BYTES: usize = 500;
/// Statements of one write.
const STATEMENTS: u32 = 2;

/// What a process does to the database.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Activity {
    /// Writes, so many at once, each so often the realistic write.
    Write { in_flight: u32, pairs: u32 },
    /// Reads single rows, one after the other.
    Read,
}

/// The part of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    engine: Engine,
    workdir: PathBuf,
    durability: Durability,
    number: u32,
    /// What it does; a leader may only serve.
    activity: Option<Activity>,
    /// Whether what it measures counts.
    counts: bool,
    pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Engine {
    /// The process opens the file itself.
    Open,
    /// The process is the primary.
    Lead,
    /// The process is a secondary.
    Follow,
}

/// Does one process's part.
pub(crate) fn work(job: &Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    match job.engine {
        Engine::Open => open::work(job, ready),
        Engine::Lead | Engine::Follow => own::work(job, ready),
    }
}

/// How a case writes.
#[derive(Debug, Clone, Copy)]
struct Load {
    durability: Durability,
    processes: u32,
    /// At once in each process of ours; a connection of the peer's can do but one at a time.
    in_flight: u32,
    /// Realistic writes in one write of ours.
    pairs: u32,
    per_second: Option<f64>,
    /// The processes of ours lead, rather than follow a further one.
    leads: bool,
    slow_fsync: bool,
}

impl Load {
    fn new(durability: Durability, processes: u32) -> Self {
        Self { durability, processes, in_flight: 1, pairs: 1, per_second: None, leads: false, slow_fsync: false }
    }

    fn about(&self) -> String {
        let durability = match self.durability {
            Durability::Disk => "disk (synchronous=FULL)",
            Durability::Os => "os (synchronous=NORMAL)",
        };
        let processes = match (self.processes, self.leads) {
            (1, true) => "one process, which is the primary".to_owned(),
            (1, false) => "one process, a secondary".to_owned(),
            (n, _) => format!("{n} processes"),
        };
        let pace = self.per_second.map_or("as fast as it goes".to_owned(), |rate| {
            format!("about {rate} writes/s each at random times; latency counts from when a write was due")
        });
        let mut about = vec![format!("{processes}, {durability}, {pace}")];
        if self.in_flight > 1 {
            about.push(format!("ours have {} in flight each", self.in_flight));
        }
        if self.pairs > 1 {
            let statements = self.pairs * STATEMENTS;
            about.push(format!("ours put {statements} statements into a write; rates are statements"));
        }
        if self.slow_fsync {
            about.push("fsync takes 2 ms longer".to_owned());
        }
        about.join("; ")
    }

    fn pace(&self, context: &Context, seed: u32) -> Pace {
        let (warm_up, time) = (context.warm_up, context.time);
        Pace { warm_up, time, per_second: self.per_second, seed: u64::from(seed) + 1 }
    }

    fn run(self, own: bool, context: &Context) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let preload = context.slow_fsync.as_deref().filter(|_| self.slow_fsync);
        let mut fleet = Fleet::default();
        let mut start = |engine, number, activity: Option<Activity>| {
            let (workdir, pace) = (scratch.path().to_owned(), self.pace(context, number));
            let job = Job { engine, workdir, durability: self.durability, number, activity, counts: true, pace };
            fleet.start(&fleet::Job::Db(job), preload).map(drop)
        };
        let engine = match (own, self.leads) {
            (false, _) => Engine::Open,
            (true, true) => Engine::Lead,
            (true, false) => Engine::Follow,
        };
        match engine {
            Engine::Open => open::create(&scratch.file(open::FILE))?,
            Engine::Follow => start(Engine::Lead, 0, None)?,
            Engine::Lead => {}
        }
        let (in_flight, pairs) = if own { (self.in_flight, self.pairs) } else { (1, 1) };
        for number in 0..self.processes {
            start(engine, number, Some(Activity::Write { in_flight, pairs }))?;
        }
        let mut metrics = load::sum(&fleet.go()?);
        check(&scratch, own)?;
        if self.pairs > 1
            && let Some(rate) = metrics.get_mut("per_s")
        {
            *rate *= f64::from(pairs * STATEMENTS);
        }
        Ok(metrics)
    }

    fn case(self, name: &'static str, context: &Context, targets: Vec<Target>) -> Case {
        // A quick run is to be quick, also on a busy machine.
        let load = if context.quick { Self { processes: self.processes.min(4), ..self } } else { self };
        let skip = (load.slow_fsync && context.slow_fsync.is_none())
            .then(|| "no library that slows fsync down; scripts/bench makes it where there is a C compiler".to_owned());
        Case {
            name,
            about: load.about(),
            peers: vec![Contender::new("each opens the file", move |context| load.run(false, context))],
            own: Contender::new("pando", move |context| load.run(true, context)),
            targets,
            skip,
        }
    }
}

/// Sees that every entry was counted: a write is done as a whole, once.
fn check(scratch: &Scratch, own: bool) -> Result<(), Failure> {
    let path = if own { pando::Workdir::open(scratch.path())?.database_path() } else { scratch.file(open::FILE) };
    let connection = Connection::open(path)?;
    let sql = "SELECT (SELECT count(*) FROM entry), (SELECT sum(n) FROM counter)";
    let (entries, counted) = connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    let written = entries - i64::try_from(FILLED_ENTRIES)?;
    if written == counted && written > 0 {
        return Ok(());
    }
    Err(format!("{written} rows were written, but {counted} were counted").into())
}

/// Reads on a secondary, with an idle primary and with one that writes as fast as it can.
fn reads() -> Case {
    fn run(context: &Context, is_saturated: bool) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let load = Load::new(Durability::Os, 1);
        let mut fleet = Fleet::default();
        let writes = is_saturated.then_some(Activity::Write { in_flight: 16, pairs: 1 });
        for (engine, activity, counts) in [(Engine::Lead, writes, false), (Engine::Follow, Some(Activity::Read), true)]
        {
            let (workdir, pace) = (scratch.path().to_owned(), load.pace(context, 0));
            let job = Job { engine, workdir, durability: Durability::Os, number: 0, activity, counts, pace };
            fleet.start(&fleet::Job::Db(job), None)?;
        }
        Ok(load::sum(&fleet.go()?))
    }
    Case {
        name: "reads-os",
        about: "single rows read by key on a secondary; the primary is idle, or writes with 16 in flight".to_owned(),
        peers: vec![Contender::new("idle", |context| run(context, false))],
        own: Contender::new("saturated", |context| run(context, true)),
        targets: vec![Target::new("p99_ms", Rule::RatioAtMost(2.0))],
        skip: None,
    }
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    use Durability::{Disk, Os};
    use Rule::{AtMost, RatioAtLeast, RatioAtMost};
    let rate = |ratio| Target::new("per_s", RatioAtLeast(ratio));
    let longest = |ratio| Target::new("max_ms", RatioAtMost(ratio));
    let fair = Target::new("most_to_fewest", AtMost(1.2));
    let case = |name, load: Load, targets| load.case(name, context, targets);
    let paced = Load { per_second: Some(50.0), ..Load::new(Disk, 16) };
    let slow = Load { slow_fsync: true, ..Load::new(Disk, 16) };
    let leads = |durability| Load { leads: true, ..Load::new(durability, 1) };
    let pipelined = Load { in_flight: 16, ..Load::new(Os, 4) };
    let p = |metric, ratio| Target::new(metric, RatioAtMost(ratio));
    let mut disk_16 =
        case("disk-16", Load::new(Disk, 16), vec![rate(3.0), longest(0.01), fair, rate(4.0).to(rqlite::Rqlite::NAME)]);
    disk_16.peers.push(servers::contender(rqlite::Rqlite, 16, 1, context));
    vec![
        case("disk-1", Load::new(Disk, 1), vec![rate(0.6)]),
        case("disk-4", Load::new(Disk, 4), vec![]),
        disk_16,
        case("disk-16-slow-fsync", slow, vec![rate(8.0)]),
        case("os-1", Load::new(Os, 1), vec![rate(0.45)]),
        case("os-4", Load::new(Os, 4), vec![]),
        case("os-16", Load::new(Os, 16), vec![rate(1.0), longest(0.02), fair]),
        case("primary-disk", leads(Disk), vec![rate(0.95)]),
        case("primary-os", leads(Os), vec![rate(0.9)]),
        // 20,000 writes/s where the peer makes 16,000.
        case("pipelined-os", pipelined, vec![rate(1.25)]),
        // 60,000 statements/s where the peer makes 16,000 writes of two.
        case("batched-os", Load { pairs: 5, ..pipelined }, vec![rate(1.875)]),
        case("paced-disk-16", paced, vec![p("p99_ms", 0.125), p("p99.9_ms", 0.0125)]),
        reads(),
    ]
}
