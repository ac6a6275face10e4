//! `pando-bench-inner`: holds the instructions of the hot parts against the baseline in the repository. `scripts/bench instructions` calls it.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use pando_bench_inner::guard::{self, Baseline, TOLERANCE};

/// Counts the instructions of Pando's hot parts.
#[derive(Debug, Parser)]
#[command(name = "pando-bench-inner", version)]
enum Cli {
    /// Fail when a part takes over 10 % more instructions than the baseline says
    Guard {
        /// The baseline
        baseline: PathBuf,
        /// Write what is counted into the baseline instead
        #[arg(long)]
        update: bool,
    },
    /// Repeat one part; callgrind counts
    #[command(hide = true)]
    Repeat {
        /// Its name
        part: String,
        /// How often
        times: u64,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli::Repeat { part, times } => guard::repeat(&part, times).ok_or_else(|| format!("no part {part:?}").into()),
        Cli::Guard { baseline, update: false } => check(&baseline),
        Cli::Guard { baseline, update: true } => update(&baseline),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            drop(writeln!(io::stderr(), "error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut out = io::stdout();
    let baseline = guard::read(path)?;
    if baseline.arch != std::env::consts::ARCH {
        return Ok(writeln!(out, "skipped: instructions: the baseline was counted on {}", baseline.arch)?);
    }
    let lines = guard::compare(&baseline, &guard::count()?);
    for line in &lines {
        writeln!(out, "{line}")?;
    }
    let grown: Vec<_> = lines.iter().filter(|line| line.is_too_much()).map(|line| line.name.as_str()).collect();
    if grown.is_empty() {
        return Ok(());
    }
    let (grown, path, compiler) = (grown.join("; "), path.display(), baseline.rustc);
    Err(format!(
        "over {TOLERANCE} % more instructions than {path} says (counted with {compiler}): {grown}\n\
         hint: when that is meant, run 'scripts/bench instructions --update' and commit the baseline with the change"
    )
    .into())
}

fn update(path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let version = Command::new("rustc").arg("--version").output()?.stdout;
    let baseline = Baseline {
        arch: std::env::consts::ARCH.to_owned(),
        rustc: String::from_utf8_lossy(&version).trim().to_owned(),
        instructions: guard::count()?,
    };
    Ok(fs::write(path, serde_json::to_string_pretty(&baseline)? + "\n")?)
}
