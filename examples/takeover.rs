//! Measures takeovers: real processes write, the primary is killed (or leaves), and the clock runs until everybody writes again.
//!
//! `scripts/bench-takeover` builds and runs it. Reported are, from the kill on, the successor's first acknowledged commit, and for each
//! survivor the longest gap between two acknowledged writes, as read from the pipes of the processes: what an application sees.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Instances that run at any time.
const INSTANCES: usize = 4;
/// How long everyone is watched before the primary goes, and the survivors afterwards. What is seen before is what the machine does anyway.
const WATCHED: Duration = Duration::from_millis(700);
/// How long anything may take at all.
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What one process said, and when it was read.
enum Said {
    Role { role: String },
    Acked,
    Failed(String),
    Started,
}

struct Writer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<(Instant, Said)>,
    role: String,
    acks: Vec<Instant>,
    led_at: Option<Instant>,
    failures: usize,
}

impl Writer {
    /// Starts an instance and its load.
    fn start(program: &Path, workdir: &Path, durability: &str) -> Outcome<Self> {
        let mut command = Command::new(program);
        command.args(["--json", "--workdir"]).arg(workdir).args(["up", "--demo-load", "--durability", durability]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut stdin, stdout) = (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
        writeln!(stdin, "go")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let at = Instant::now();
                if let Some(said) = read(&line)
                    && sender.send((at, said)).is_err()
                {
                    return;
                }
            }
        });
        let mut writer = Self { child, stdin, lines, role: String::new(), acks: vec![], led_at: None, failures: 0 };
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
    fn listen_until(&mut self, until: Instant) -> Outcome<()> {
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((at, Said::Role { role })) => {
                    if role == "primary" {
                        self.led_at = Some(at);
                    }
                    self.role = role;
                }
                Ok((at, Said::Acked)) => self.acks.push(at),
                Ok((_, Said::Failed(error))) => {
                    eprint_line(&format!("a write failed: {error}"));
                    self.failures += 1;
                }
                Ok((_, Said::Started)) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err("an instance ended by itself".into()),
            }
        }
    }

    /// Returns the longest time without an acknowledged write up to `at`, and from the last one before it on.
    fn gaps(&self, at: Instant) -> Option<(Duration, Duration)> {
        let from = self.acks.iter().rposition(|ack| *ack <= at)?;
        let longest = |acks: &[Instant]| acks.windows(2).map(|pair| pair[1] - pair[0]).max();
        Some((longest(&self.acks[..=from])?, longest(&self.acks[from..])?))
    }

    fn end(mut self, signal: Signal) -> Outcome<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        drop(self.stdin);
        self.child.wait()?;
        Ok(())
    }
}

fn read(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    if let Some(role) = value["role"].as_str() {
        return Some(Said::Role { role: role.to_owned() });
    }
    Some(match value["load"].as_str()? {
        "acked" => Said::Acked,
        "failed" => Said::Failed(value["error"].to_string()),
        _ => Said::Started,
    })
}

/// What one takeover took.
struct Takeover {
    first_commit: Duration,
    gaps: Vec<Duration>,
    /// While nobody went.
    calm_gaps: Vec<Duration>,
    failures: usize,
}

fn measure(writers: &mut Vec<Writer>, signal: Signal) -> Outcome<Takeover> {
    let warm = Instant::now() + WATCHED;
    for writer in writers.iter_mut() {
        writer.acks.clear();
        writer.listen_until(warm)?;
    }
    let leader = writers.iter().position(|writer| writer.role == "primary").ok_or("nobody leads")?;
    let leaving = writers.swap_remove(leader);
    let at = Instant::now();
    kill_process(Pid::from_child(&leaving.child), signal)?;
    for writer in writers.iter_mut() {
        writer.led_at = None;
    }
    let watched = at + WATCHED;
    for writer in writers.iter_mut() {
        writer.listen_until(watched)?;
    }
    leaving.end(signal)?;
    let successor = writers.iter().find(|writer| writer.led_at.is_some()).ok_or("nobody took over")?;
    let first = successor.acks.iter().copied().find(|ack| Some(*ack) >= successor.led_at);
    let first_commit = first.ok_or("the successor did not write")? - at;
    let (calm_gaps, gaps) = writers.iter().filter_map(|writer| writer.gaps(at)).unzip();
    let failures = writers.iter_mut().map(|writer| std::mem::take(&mut writer.failures)).sum();
    Ok(Takeover { first_commit, gaps, calm_gaps, failures })
}

/// Returns one line: percentiles in milliseconds.
fn summary(name: &str, mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1)].as_secs_f64() * 1e3;
    format!("{name:<42} p50 {:>7.1}   p90 {:>7.1}   p99 {:>7.1}   max {:>7.1} ms", at(50), at(90), at(99), at(100))
}

#[expect(clippy::print_stderr, reason = "a program that measures says so on its terminal")]
fn eprint_line(text: &str) {
    eprintln!("{text}");
}

#[expect(clippy::print_stdout, reason = "the result of the measurement")]
fn print_line(text: &str) {
    println!("{text}");
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let program = PathBuf::from(arguments.next().ok_or("usage: takeover PROGRAM [ROUNDS [kill|leave [disk|os]]]")?);
    let rounds: usize = arguments.next().map_or(Ok(30), |text| text.parse())?;
    let signal = if arguments.next().as_deref() == Some("leave") { Signal::TERM } else { Signal::KILL };
    let durability = arguments.next().unwrap_or_else(|| "disk".to_owned());
    let workdir = std::env::temp_dir().join(format!("pando-takeover-{}", std::process::id()));
    std::fs::create_dir(&workdir)?;
    let mut writers = Vec::new();
    let (mut first_commits, mut gaps, mut worst, mut calm, mut failures) = (vec![], vec![], vec![], vec![], 0);
    for round in 1..=rounds {
        while writers.len() < INSTANCES {
            writers.push(Writer::start(&program, &workdir, &durability)?);
        }
        let takeover = measure(&mut writers, signal)?;
        let gap = takeover.gaps.iter().max().copied().unwrap_or_default();
        eprint_line(&format!("round {round}: first commit {:.1?}, worst gap {gap:.1?}", takeover.first_commit));
        first_commits.push(takeover.first_commit);
        gaps.extend(takeover.gaps);
        calm.extend(takeover.calm_gaps);
        worst.push(gap);
        failures += takeover.failures;
    }
    for writer in writers {
        writer.end(Signal::KILL)?;
    }
    std::fs::remove_dir_all(&workdir)?;
    print_line(&format!("{rounds} takeovers, {INSTANCES} instances, all writing, durability {durability}"));
    print_line(&summary("the successor's first acknowledged commit", first_commits));
    print_line(&summary("gap of a writer, each survivor", gaps));
    print_line(&summary("gap of a writer, worst of a takeover", worst));
    print_line(&summary("gap of a writer while nobody goes", calm));
    print_line(&format!("failed writes                              {failures}"));
    Ok(())
}
