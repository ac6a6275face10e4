//! `pando-bench`: measures Pando beside what people would use instead, in the same run on the same machine.
//!
//! ```text
//!  case ──► run: A B A B … ──► report: table, targets, JSON
//!    └ contender: starts a fleet of worker processes, tells them to go, adds up what they measured
//! ```
//!
//! One subject is one module with its cases (`rpc`, `events`, `db`, …). `scripts/bench` builds and calls this.

mod case;
mod db;
mod events;
mod fleet;
mod growth;
mod load;
mod machine;
mod memory;
mod plain;
mod program;
mod report;
mod rpc;
mod runtime;
mod servers;
mod start;
mod station;
mod takeover;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use case::{Case, Context, Libzmq};

/// Any failure: it ends the bench and is told to a person.
type Failure = Box<dyn Error + Send + Sync>;

/// Why what needs libzmq cannot run.
const NO_LIBZMQ: &str = "no libzmq; scripts/bench takes pyzmq's, which scripts/test installs, and needs a C compiler";

/// Measures Pando beside its peers in one run.
#[derive(Debug, Parser)]
#[command(name = "pando-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything below, one after the other
    All(Settings),
    /// Calls, beside libzmq and plain sockets
    Rpc(Settings),
    /// Events, beside libzmq's PUB and SUB, and servers that keep them
    Events(Settings),
    /// Writes and reads, beside processes that each open the database file themselves
    Db(Settings),
    /// From the start of a process to its role
    Start(Settings),
    /// What writers notice when the primary dies or leaves
    Takeover(Settings),
    /// Memory and the size of the program
    Memory(Settings),
    /// What more clients and more journaled events cost
    Growth(Settings),
    /// One process of a fleet; its job stands on stdin
    #[command(hide = true)]
    Worker,
}

/// How to measure.
#[derive(Debug, clap::Args)]
struct Settings {
    /// See that everything works, in a few seconds: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Run only the cases whose name contains this; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Interleaved repetitions of each case
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: usize,
    /// Length of one measurement, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    seconds: f64,
    /// Where workdirs and reports go; it must lie on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    dir: PathBuf,
    /// Library that slows fsync down, for `LD_PRELOAD`; without it those cases are skipped
    #[arg(long, value_name = "FILE")]
    slow_fsync: Option<PathBuf>,
    /// The program that is measured from outside; by default the one beside this one
    #[arg(long, value_name = "FILE")]
    pando: Option<PathBuf>,
    /// libzmq as a shared library; without it that peer is skipped
    #[arg(long, value_name = "FILE", requires = "libzmq_peer")]
    libzmq: Option<PathBuf>,
    /// The program that plays libzmq's part: `libzmq_peer.c`, compiled
    #[arg(long, value_name = "FILE", requires = "libzmq")]
    libzmq_peer: Option<PathBuf>,
}

impl Settings {
    fn context(&self) -> Result<Context, Failure> {
        std::fs::create_dir_all(&self.dir)?;
        let seconds = if self.quick { 0.2 } else { self.seconds };
        let pando =
            self.pando.clone().map_or_else(|| std::env::current_exe().map(|own| own.with_file_name("pando")), Ok)?;
        let libzmq = self.libzmq.clone().zip(self.libzmq_peer.clone());
        Ok(Context {
            dir: self.dir.canonicalize()?,
            quick: self.quick,
            repetitions: if self.quick { 1 } else { self.repetitions.max(1) },
            time: Duration::try_from_secs_f64(seconds)?,
            warm_up: Duration::try_from_secs_f64(seconds / 6.0)?,
            slow_fsync: self.slow_fsync.as_ref().map(|path| path.canonicalize()).transpose()?,
            pando,
            libzmq: libzmq.map(|(library, program)| Libzmq { program, library }),
        })
    }
}

/// Returns the cases of a subject.
type Cases = fn(&Context) -> Vec<Case>;

/// All subjects, in the order in which they run.
const SUBJECTS: [(&str, Cases); 7] = [
    ("rpc", rpc::cases),
    ("events", events::cases),
    ("db", db::cases),
    ("start", start::cases),
    ("takeover", |_| takeover::cases()),
    ("memory", memory::cases),
    ("growth", growth::cases),
];

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Worker => fleet::work(),
        Command::All(settings) => measure(None, &settings),
        Command::Rpc(settings) => measure(Some("rpc"), &settings),
        Command::Events(settings) => measure(Some("events"), &settings),
        Command::Db(settings) => measure(Some("db"), &settings),
        Command::Start(settings) => measure(Some("start"), &settings),
        Command::Takeover(settings) => measure(Some("takeover"), &settings),
        Command::Memory(settings) => measure(Some("memory"), &settings),
        Command::Growth(settings) => measure(Some("growth"), &settings),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when stderr is closed.
            drop(writeln!(io::stderr(), "error: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases of one subject, or of all; prints the tables, writes the JSON and the chart.
fn measure(wanted: Option<&str>, settings: &Settings) -> Result<(), Failure> {
    let context = settings.context()?;
    let is_wanted = |name: &str| settings.only.is_empty() || settings.only.iter().any(|only| name.contains(only));
    let mut count = 0;
    for (subject, cases) in SUBJECTS.into_iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name)) {
        let cases: Vec<_> = cases(&context).into_iter().filter(|case| is_wanted(case.name)).collect();
        if cases.is_empty() {
            continue;
        }
        count += cases.len();
        let report = report::Report::of(subject, &cases, &context)?;
        writeln!(io::stdout(), "\n{report}")?;
        report.save(&context.dir)?;
        if context.quick {
            report.check()?;
        }
    }
    if count == 0 {
        return Err(format!("no case has {:?} in its name", settings.only).into());
    }
    writeln!(io::stderr(), "written to {}", context.dir.display())?;
    Ok(())
}
