//! Takeovers: real processes write, the primary is killed (or leaves), and the clock runs until everybody writes again.
//!
//! Reported are, from the kill on, the successor's first acknowledged commit, and for each survivor the longest gap between two acknowledged
//! writes, as read from the pipes of the processes: what an application sees.

use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::Scratch;
use crate::program::{Program, ms};
use crate::report::spread;

/// Instances that run at any time.
const INSTANCES: usize = 4;
/// How long everyone is watched before the primary goes, and the survivors afterwards. What is seen before is what the machine does anyway.
const WATCHED: Duration = Duration::from_millis(700);
/// How long anything may take at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one process said, and when it was read.
enum Said {
    Role(String),
    Acked,
    Failed,
    Other,
}

/// An instance and its load.
struct Writer {
    program: Program,
    lines: Receiver<(Instant, Said)>,
    role: String,
    acks: Vec<Instant>,
    /// When it had no primary any more, and when it was one.
    sought_at: Option<Instant>,
    led_at: Option<Instant>,
    failures: u32,
}

impl Writer {
    fn start(pando: &Path, workdir: &Path, durability: &str) -> Result<Self, Failure> {
        let mut program = Program::start(pando, workdir, &["--demo-load", "--durability", durability])?;
        program.tell("go")?;
        let news = program.news().ok_or("no stdout")?;
        let (sender, lines) = channel();
        // It ends with the process whose pipe it reads.
        thread::spawn(move || {
            for line in news.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), read(&line))).is_err() {
                    return;
                }
            }
        });
        let mut writer =
            Self { program, lines, role: String::new(), acks: vec![], sought_at: None, led_at: None, failures: 0 };
        let deadline = Instant::now() + PATIENCE;
        while writer.acks.is_empty() {
            writer.listen_until(Instant::now() + Duration::from_millis(20))?;
            if Instant::now() > deadline {
                return Err("an instance never wrote".into());
            }
        }
        Ok(writer)
    }

    /// Takes note of what it says until then.
    fn listen_until(&mut self, until: Instant) -> Result<(), Failure> {
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((at, Said::Role(role))) => {
                    match role.as_str() {
                        "seeking" => self.sought_at = Some(at),
                        "primary" => self.led_at = Some(at),
                        _ => {}
                    }
                    self.role = role;
                }
                Ok((at, Said::Acked)) => self.acks.push(at),
                Ok((_, Said::Failed)) => self.failures += 1,
                Ok((_, Said::Other)) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err("an instance ended by itself".into()),
            }
        }
    }

    /// Returns when it had its first write of its own term acknowledged.
    ///
    /// It writes before it has told that it leads, and may tell of its predecessor's last answers once it seeks: between the two come nothing
    /// but those, a silence, and its own.
    fn first_commit(&self, killed: Instant) -> Option<Instant> {
        let (sought_at, led_at) = (self.sought_at.unwrap_or(killed), self.led_at?);
        let acks = self.acks.iter().copied().filter(|ack| *ack > sought_at);
        let until = acks.clone().position(|ack| ack >= led_at)?;
        let mut before = sought_at;
        let pauses = acks.take(until + 1).map(|ack| (ack - std::mem::replace(&mut before, ack), ack));
        pauses.max().map(|(_, ack)| ack)
    }

    /// Returns the longest time without an acknowledged write up to `at`, and from the last one before it on, in milliseconds.
    fn gaps(&self, at: Instant) -> Option<(f64, f64)> {
        let from = self.acks.iter().rposition(|ack| *ack <= at)?;
        let longest = |acks: &[Instant]| acks.windows(2).map(|pair| pair[1] - pair[0]).max().map(ms);
        Some((longest(&self.acks[..=from])?, longest(&self.acks[from..])?))
    }
}

fn read(line: &str) -> Said {
    let value: Value = serde_json::from_str(line).unwrap_or_default();
    match (value["role"].as_str(), value["load"].as_str()) {
        (Some(role), _) => Said::Role(role.to_owned()),
        (None, Some("acked")) => Said::Acked,
        (None, Some("failed")) => Said::Failed,
        (None, _) => Said::Other,
    }
}

/// What the takeovers took, in milliseconds.
#[derive(Default)]
struct Times {
    first_commits: Vec<f64>,
    gaps: Vec<f64>,
    /// While nobody went.
    calm_gaps: Vec<f64>,
    failures: u32,
}

impl Times {
    /// Ends the primary and watches the others.
    fn measure(&mut self, writers: &mut Vec<Writer>, signal: Signal) -> Result<(), Failure> {
        let warm = Instant::now() + WATCHED;
        for writer in writers.iter_mut() {
            writer.acks.clear();
            writer.led_at = None;
            writer.listen_until(warm)?;
        }
        let leader = writers.iter().position(|writer| writer.role == "primary").ok_or("nobody leads")?;
        let leaving = writers.swap_remove(leader);
        let at = Instant::now();
        leaving.program.signal(signal)?;
        let watched = at + WATCHED;
        for writer in writers.iter_mut() {
            (writer.sought_at, writer.led_at) = (None, None);
            writer.listen_until(watched)?;
        }
        let successor = writers.iter().find(|writer| writer.led_at.is_some()).ok_or("nobody took over")?;
        let first = successor.first_commit(at);
        self.first_commits.push(ms(first.ok_or("the successor did not write")? - at));
        for (calm, gap) in writers.iter().filter_map(|writer| writer.gaps(at)) {
            self.calm_gaps.push(calm);
            self.gaps.push(gap);
        }
        self.failures += writers.iter_mut().map(|writer| std::mem::take(&mut writer.failures)).sum::<u32>();
        Ok(())
    }
}

fn run(context: &Context, signal: Signal, durability: &str) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let (mut writers, mut times) = (Vec::new(), Times::default());
    for _ in 0..if context.quick { 1 } else { 10 } {
        while writers.len() < INSTANCES {
            writers.push(Writer::start(&context.pando, scratch.path(), durability)?);
        }
        times.measure(&mut writers, signal)?;
    }
    drop(writers);
    let mut metrics = Metrics::from([("failed", f64::from(times.failures))]);
    let (gaps, calm) = (spread(times.gaps), spread(times.calm_gaps));
    metrics.extend([
        ("gap_p50_ms", gaps["p50_ms"]),
        ("gap_max_ms", gaps["max_ms"]),
        ("calm_gap_max_ms", calm["max_ms"]),
    ]);
    metrics.extend(spread(times.first_commits));
    Ok(metrics)
}

/// Returns every case of this subject.
pub(crate) fn cases() -> Vec<Case> {
    let soon = vec![
        Target::new("p50_ms", Rule::AtMost(5.0)),
        Target::new("max_ms", Rule::AtMost(20.0)),
        Target::new("gap_max_ms", Rule::AtMost(60.0)),
    ];
    let case = |name, about: &str, signal, durability: &'static str, soon: &[Target]| Case {
        name,
        about: format!(
            "{INSTANCES} instances write ({durability}), the primary {about}; until the successor's first commit (gap: between two \
             acknowledged writes of a survivor; calm gap: while nobody goes)"
        ),
        peers: vec![],
        own: Contender::new("pando up", move |context| run(context, signal, durability)),
        targets: [&[Target::new("failed", Rule::AtMost(0.0))], soon].concat(),
        skip: None,
    };
    vec![
        case("killed-disk", "is killed", Signal::KILL, "disk", &soon),
        case("killed-os", "is killed", Signal::KILL, "os", &soon),
        case("leaves-disk", "leaves", Signal::TERM, "disk", &[]),
    ]
}
