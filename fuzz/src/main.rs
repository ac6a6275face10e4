//! Feeds one target for a while, with a stable Rust and nothing else. The last input of a run that ended early is the finding.
//!
//! `pando-fuzz TARGET SECONDS LAST [FILE|DIR]..`: LAST is the file that holds the input being fed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pando_fuzz::coverage::Coverage;
use pando_fuzz::mutate::{Chance, mutate};
use pando_fuzz::targets::{TARGETS, Target};

/// How long one input may take. One that takes for ever is ended by scripts/fuzz.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, seconds, last, seeds @ ..] = args.as_slice() else { return usage() };
    let (Some((_, target)), Ok(seconds)) = (TARGETS.iter().find(|(it, _)| it == name), seconds.parse()) else {
        return usage();
    };
    match feed(name, *target, Duration::from_secs(seconds), Path::new(last), seeds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let names = TARGETS.map(|(name, _)| name).join("|");
    eprintln!("usage: pando-fuzz {names} SECONDS LAST [FILE|DIR]..");
    ExitCode::from(2)
}

/// Feeds the seeds, then mutations of whatever went a new way.
fn feed(name: &str, target: Target, time: Duration, last: &Path, seeds: &[String]) -> io::Result<()> {
    let mut coverage = Coverage::default();
    if coverage.branches() == 0 {
        return Err(io::Error::other("the program is not instrumented: run it by scripts/fuzz"));
    }
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let (mut chance, last, mut fed) = (Chance(seed), File::create(last)?, 0_u64);
    let mut run = |input: &[u8]| -> io::Result<bool> {
        // Before it is fed, for what it does may leave no time for anything.
        last.write_all_at(input, 0)?;
        last.set_len(input.len() as u64)?;
        fed += 1;
        let began = Instant::now();
        let is_new = coverage.is_new(|| target(input));
        assert!(began.elapsed() <= PATIENCE, "one input took {:?}", began.elapsed());
        Ok(is_new)
    };
    let mut known = vec![Vec::new()];
    for input in read_all(seeds)? {
        run(&input)?;
        known.push(input);
    }
    let (own, until) = (known.len(), Instant::now() + time);
    while Instant::now() < until {
        let input = mutate(&mut chance, &known);
        if run(&input)? {
            known.push(input);
        }
    }
    let (kept, reached, branches) = (known.len() - own, coverage.reached(), coverage.branches());
    println!("{name}: {fed} inputs, {kept} kept, {reached} of {branches} branches (seed {seed})");
    Ok(())
}

/// Reads the seeds: files, and the files in directories.
fn read_all(paths: &[String]) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    for path in paths.iter().map(Path::new) {
        if path.is_dir() {
            let mut files = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            files.sort();
            for file in files {
                inputs.push(fs::read(file)?);
            }
        } else {
            inputs.push(fs::read(path)?);
        }
    }
    Ok(inputs)
}
