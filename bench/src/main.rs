//! `pando-bench`: measures Pando beside what people would use instead, in the same run on the same machine.
//!
//! ```text
//!  case ──► run: A B A B … ──► report: table, targets, JSON
//!    └ contender: starts a fleet of worker processes, tells them to go, adds up what they measured
//! ```
//!
//! One subject is one module with its cases (`db`). `scripts/bench` builds and calls this.

mod case;
mod db;
mod fleet;
mod load;
mod machine;
mod report;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use case::Context;

/// Any failure: it ends the bench and is told to a person.
type Failure = Box<dyn Error + Send + Sync>;

/// Measures Pando beside its peers in one run.
#[derive(Debug, Parser)]
#[command(name = "pando-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes and reads, beside processes that each open the database file themselves
    Db(Settings),
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
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Length of one measurement, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Where workdirs and reports go; it must lie on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    dir: PathBuf,
    /// Library that slows fsync down, for `LD_PRELOAD`; without it those cases are skipped
    #[arg(long, value_name = "FILE")]
    slow_fsync: Option<PathBuf>,
}

impl Settings {
    fn context(&self) -> Result<Context, Failure> {
        std::fs::create_dir_all(&self.dir)?;
        let seconds = if self.quick { 0.2 } else { self.seconds };
        Ok(Context {
            dir: self.dir.canonicalize()?,
            quick: self.quick,
            repetitions: if self.quick { 1 } else { self.repetitions.max(1) },
            time: Duration::try_from_secs_f64(seconds)?,
            warm_up: Duration::try_from_secs_f64(seconds / 6.0)?,
            slow_fsync: self.slow_fsync.as_ref().map(|path| path.canonicalize()).transpose()?,
        })
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Worker => fleet::work(),
        Command::Db(settings) => measure("db", &settings),
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

/// Runs the cases of one subject, prints the tables and writes the JSON.
fn measure(subject: &'static str, settings: &Settings) -> Result<(), Failure> {
    let context = settings.context()?;
    let wanted = |name: &str| settings.only.is_empty() || settings.only.iter().any(|only| name.contains(only));
    let cases: Vec<_> = db::cases(&context).into_iter().filter(|case| wanted(case.name)).collect();
    if cases.is_empty() {
        return Err(format!("no case of {subject} has {:?} in its name", settings.only).into());
    }
    let report = report::Report::of(subject, &cases, &context)?;
    writeln!(io::stdout(), "\n{report}")?;
    let path = context.dir.join(format!("{subject}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&report.to_json())? + "\n")?;
    writeln!(io::stderr(), "written to {}", path.display())?;
    Ok(())
}
