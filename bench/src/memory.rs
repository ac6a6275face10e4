//! Memory of one primary as the system counts it, and the size of the program.

use std::fs;
use std::path::PathBuf;
use std::thread;

use pando::{Client, Pattern, Workdir};
use pando_ipc::Kind;
use pando_ipc::client::Options;
use pando_ipc::hello::PING;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Run, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{Course, Outcome, Pace};
use crate::program::Program;
use crate::runtime::Threads;

/// Clients: connected to both sockets, each with a subscription, and calling or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    workdir: PathBuf,
    clients: u32,
    calls: bool,
    pace: Pace,
}

/// Connects the clients and keeps them.
pub(crate) fn work(job: &Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let workdir = Workdir::open(&job.workdir)?;
    let mut clients = Vec::new();
    for number in 0..job.clients {
        let options = Options::new(format!("client-{number}"), Kind::Client);
        let client = runtime.block_on(Client::connect(workdir.clone(), options))?;
        let subscription = runtime.block_on(client.subscribe(Pattern::new("session.*")?))?;
        clients.push((client, subscription));
    }
    ready()?;
    let outcome = if job.calls {
        let mut loops = JoinSet::new();
        for (client, _) in &clients {
            let (client, mut course) = (client.clone(), Course::begin(job.pace));
            let run = async move {
                while let Some(due) = course.next() {
                    course.ended(due, client.call(PING, json!({})).await.is_ok());
                }
                course.outcome()
            };
            loops.spawn_on(run, runtime.handle());
        }
        runtime.block_on(loops.join_all()).into_iter().reduce(Outcome::and).ok_or("no loop ran")?
    } else {
        Course::idle(job.pace)
    };
    fleet::done(Some(&outcome))
}

/// Returns a figure of `/proc/PID/status` in MB.
fn status_mb(pid: u32, key: &str) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or("the system does not say")?;
    let kilobytes: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?;
    Ok(kilobytes / 1e3)
}

fn measure(context: &Context, clients: u32, calls: bool) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let mut program = Program::start(&context.pando, scratch.path(), &[])?;
    program.role()?;
    let pid = program.pid();
    let now = || -> Result<Metrics, Failure> {
        Ok(Metrics::from([("rss_mb", status_mb(pid, "VmRSS:")?), ("peak_mb", status_mb(pid, "VmHWM:")?)]))
    };
    if clients == 0 {
        // What it does at the start is over when it answers after that.
        crate::load::wait_until(std::time::Instant::now() + context.time);
        return now();
    }
    let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 };
    let mut fleet = Fleet::default();
    fleet.start(&fleet::Job::Memory(Job { workdir: scratch.path().to_owned(), clients, calls, pace }), None)?;
    // Looked at in the middle, while all are connected.
    let looking = thread::spawn(move || fleet.go());
    crate::load::wait_until(std::time::Instant::now() + context.warm_up + context.time / 2);
    let figures = now()?;
    looking.join().map_err(|_| "the clients panicked")??;
    Ok(figures)
}

fn size(context: &Context) -> Result<Metrics, Failure> {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let bytes = fs::metadata(&context.pando)?.len() as f64;
    Ok(Metrics::from([("file_mb", bytes / 1e6)]))
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    let hundred = if context.quick { 10 } else { 100 };
    let case = |name, about: String, targets, run: Run| Case {
        name,
        about,
        peers: vec![],
        own: Contender { name: "pando up", skip: None, run },
        targets,
        skip: None,
    };
    let at_most = |mb| vec![Target::new("rss_mb", Rule::AtMost(mb))];
    vec![
        case(
            "memory-idle",
            "a primary alone".to_owned(),
            at_most(12.0),
            Box::new(|context| measure(context, 0, false)),
        ),
        case(
            "memory-100-clients",
            format!("a primary with {hundred} clients that each have a subscription"),
            at_most(40.0),
            Box::new(move |context| measure(context, hundred, false)),
        ),
        case(
            "memory-load",
            format!("the same, and each of the {hundred} calls as fast as it goes"),
            vec![],
            Box::new(move |context| measure(context, hundred, true)),
        ),
        case("binary", "the program with its line tables".to_owned(), vec![], Box::new(size)),
    ]
}
