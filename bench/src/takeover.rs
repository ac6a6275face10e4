//! Takeovers: real processes write, the primary is killed (or leaves), and the clock runs until everybody writes again.
//!
//! Reported are, from right before kill(2) on, the successor's first acknowledged commit, and for each survivor the longest gap between two
//! acknowledged writes: what an application sees. Each process says when an acknowledgement was in its hands, by the monotonic clock that all
//! processes of a host share; how long its lines take through the pipe to here does not count.

use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
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

/// A moment of the clock that all processes of a host share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(Duration);

impl Moment {
    fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// What one process said.
enum Said {
    Role(String),
    /// When it had each acknowledgement.
    Acked(Vec<Moment>),
    Failed,
    Other,
}

/// An instance and its load.
struct Writer {
    program: Program,
    lines: Receiver<(Moment, Said)>,
    role: String,
    /// When it had them, in this order.
    acks: Vec<Moment>,
    /// When we read that it leads.
    led_at: Option<Moment>,
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
                if sender.send((Moment::now(), read(&line))).is_err() {
                    return;
                }
            }
        });
        let mut writer = Self { program, lines, role: String::new(), acks: vec![], led_at: None, failures: 0 };
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
                    if role == "primary" {
                        self.led_at = Some(at);
                    }
                    self.role = role;
                }
                Ok((_, Said::Acked(at))) => self.acks.extend(at),
                Ok((_, Said::Failed)) => self.failures += 1,
                Ok((_, Said::Other)) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err("an instance ended by itself".into()),
            }
        }
        // Its writers tell one after the other, which is not quite the order of their moments.
        self.acks.sort_unstable();
        Ok(())
    }

    /// Returns when it had its first write of its own term acknowledged.
    ///
    /// It writes before it has told that it leads, and reads its predecessor's last answers after the kill: between the two come nothing but
    /// those, a silence, and its own.
    fn first_commit(&self, killed: Moment) -> Option<Moment> {
        let led_at = self.led_at?;
        let acks = self.acks.iter().copied().filter(|ack| *ack > killed);
        let until = acks.clone().position(|ack| ack >= led_at)?;
        let mut before = killed;
        let pauses = acks.take(until + 1).map(|ack| (ack.since(std::mem::replace(&mut before, ack)), ack));
        pauses.max().map(|(_, ack)| ack)
    }

    /// Returns the longest time without an acknowledged write up to `at`, and from the last one before it on, in milliseconds.
    fn gaps(&self, at: Moment) -> Option<(f64, f64)> {
        let from = self.acks.iter().rposition(|ack| *ack <= at)?;
        let longest = |acks: &[Moment]| acks.windows(2).map(|pair| pair[1].since(pair[0])).max().map(ms);
        Some((longest(&self.acks[..=from])?, longest(&self.acks[from..])?))
    }
}

fn read(line: &str) -> Said {
    let value: Value = serde_json::from_str(line).unwrap_or_default();
    match (value["role"].as_str(), value["load"].as_str()) {
        (Some(role), _) => Said::Role(role.to_owned()),
        (None, Some("acked")) => {
            let at_ns = value["at_ns"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            Said::Acked(at_ns.map(|at_ns| Moment(Duration::from_nanos(at_ns))).collect())
        }
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
        for writer in writers.iter_mut() {
            writer.led_at = None;
        }
        let watched = Instant::now() + WATCHED;
        let at = Moment::now();
        leaving.program.signal(signal)?;
        for writer in writers.iter_mut() {
            writer.listen_until(watched)?;
        }
        let successor = writers.iter().find(|writer| writer.led_at.is_some()).ok_or("nobody took over")?;
        let first = successor.first_commit(at);
        self.first_commits.push(ms(first.ok_or("the successor did not write")?.since(at)));
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
