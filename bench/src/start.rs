//! Starts: from the start of the process to the line that says what it is, beside a process that starts and does nothing.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use pando::Workdir;
use rustix::fs::{Advice, fadvise, fsync};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::Scratch;
use crate::program::{Program, timed};
use crate::report::spread;

/// What is started, and into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// A primary, where one has been before.
    Primary,
    /// A primary in a new directory, which makes the database.
    New,
    /// A primary whose program and database are not in memory.
    Cold,
    /// A secondary.
    Secondary,
}

fn rounds(context: &Context) -> usize {
    if context.quick { 2 } else { 10 }
}

impl Start {
    fn run(self, context: &Context) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let (path, pando) = (scratch.path(), &context.pando);
        let mut primary = Program::start(pando, path, &[])?;
        primary.role()?;
        let primary = if self == Self::Secondary { Some(primary) } else { primary.leave().map(|()| None)? };
        let mut times = Vec::new();
        for _ in 0..rounds(context) {
            let fresh = Scratch::new(&context.dir)?;
            let path = if self == Self::New { fresh.path() } else { path };
            if self == Self::Cold {
                forget(pando)?;
                forget(&Workdir::open(path)?.database_path())?;
            }
            let (time, program) = timed(|| {
                let mut program = Program::start(pando, path, &[])?;
                program.role().map(|_| program)
            })?;
            program.leave()?;
            times.push(time);
        }
        drop(primary);
        Ok(spread(times))
    }
}

/// Drops a file from the page cache, as far as the system agrees.
fn forget(path: &Path) -> Result<(), Failure> {
    let file = File::open(path)?;
    fsync(&file)?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Starts the program, which says its version and ends.
fn nothing(context: &Context) -> Result<Metrics, Failure> {
    let mut times = Vec::new();
    for _ in 0..rounds(context) {
        let mut command = Command::new(&context.pando);
        let (time, _) = timed(|| Ok(command.arg("--version").stdout(Stdio::null()).status()?))?;
        times.push(time);
    }
    Ok(spread(times))
}

/// Starts so many at once in one directory and waits until each has a role.
fn crowd(context: &Context, count: usize) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let (path, pando) = (scratch.path().to_owned(), context.pando.clone());
    let starting: Vec<_> = (0..count)
        .map(|_| {
            let (path, pando) = (path.clone(), pando.clone());
            thread::spawn(move || {
                timed(|| {
                    let mut program = Program::start(&pando, &path, &[])?;
                    program.role().map(|role| (role, program))
                })
            })
        })
        .collect();
    let (mut times, mut programs, mut primaries) = (Vec::new(), Vec::new(), 0);
    for thread in starting {
        let (time, (role, program)) = thread.join().map_err(|_| "a start panicked")??;
        primaries += usize::from(role == "primary");
        times.push(time);
        programs.push(program);
    }
    if primaries != 1 {
        return Err(format!("{primaries} of {count} instances led").into());
    }
    Ok(spread(times))
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    let case = |name, about: &str, start: Start, targets| Case {
        name,
        about: format!("{about}; the peer is the same program that says its version and ends"),
        peers: vec![Contender::new("--version", nothing)],
        own: Contender::new("pando up", move |context| start.run(context)),
        targets,
        skip: None,
    };
    let within = |ms| vec![Target::new("p50_ms", Rule::AtMost(ms))];
    let count = if context.quick { 8 } else { 32 };
    vec![
        case("start-primary", "a primary, where one has been before", Start::Primary, within(30.0)),
        case("start-new", "a primary in a new directory, which makes the database", Start::New, vec![]),
        case("start-cold", "a primary whose program and database are not in memory", Start::Cold, vec![]),
        case("start-secondary", "a secondary", Start::Secondary, within(20.0)),
        Case {
            name: "start-32",
            about: format!(
                "{count} at once in one new directory; each until it has a role, of which one is the primary's"
            ),
            peers: vec![],
            own: Contender::new("pando up", move |context| crowd(context, count)),
            targets: vec![],
            skip: None,
        },
    ]
}
