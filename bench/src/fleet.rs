//! A fleet of worker processes that begin together, and the worker's end of the conversation.
//!
//! A worker reads its job from the first line of stdin, says `ready` (and where it is reached), begins at the line `go`, says what it
//! measured, and ends with stdin.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::case::Context;
use crate::load::{Outcome, Pace};
use crate::{Failure, db, events, growth, memory, rpc};

/// What a worker process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// A part in a case of [`db`].
    Db(db::Job),
    /// A part in a case of [`rpc`].
    Rpc(rpc::Job),
    /// A part in a case of [`events`].
    Events(events::Job),
    /// A part in a case of [`memory`].
    Memory(memory::Job),
    /// A part in a case of [`growth`].
    Growth(growth::Job),
}

/// Worker processes; those that still run are killed when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    process: Child,
    orders: Option<ChildStdin>,
    news: BufReader<ChildStdout>,
}

impl Fleet {
    /// Starts one more worker and waits until it is ready; returns where it is reached. `preload` is a library for `LD_PRELOAD`.
    pub(crate) fn start(&mut self, job: &Job, preload: Option<&Path>) -> Result<String, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker");
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        self.enter(command, &serde_json::to_string(job)?)
    }

    /// Starts one more process of libzmq's with these arguments, and waits as [`Fleet::start`] does.
    pub(crate) fn start_libzmq(
        &mut self,
        context: &Context,
        pace: Pace,
        arguments: &[&str],
    ) -> Result<String, Failure> {
        let libzmq = context.libzmq.as_ref().ok_or("there is no libzmq")?;
        let mut command = Command::new(&libzmq.program);
        command.arg(&libzmq.library).args(arguments);
        self.enter(command, &format!("{} {}", pace.warm_up.as_millis(), pace.time.as_millis()))
    }

    fn enter(&mut self, mut command: Command, job: &str) -> Result<String, Failure> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(orders), Some(news)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a worker has no stdin or stdout".into());
        };
        self.members.push(Member { process, orders: Some(orders), news: BufReader::new(news) });
        let Some(member) = self.members.last_mut() else { return Err("the worker is not there".into()) };
        member.order(job)?;
        let said = member.hear()?;
        match said.strip_prefix("ready") {
            Some(place) => Ok(place.trim().trim_end_matches('\0').to_owned()),
            None => Err(format!("a worker said {said:?} instead of being ready").into()),
        }
    }

    /// Lets all begin; returns what each measured, then ends them.
    pub(crate) fn go(mut self) -> Result<Vec<Outcome>, Failure> {
        for member in &mut self.members {
            member.order("go")?;
        }
        let mut outcomes = Vec::new();
        for member in &mut self.members {
            outcomes.extend(serde_json::from_str::<Option<Outcome>>(&member.hear()?)?);
        }
        // The last comes first: it may be served by an earlier one.
        for member in self.members.iter_mut().rev() {
            member.orders = None;
            let ended = member.process.wait()?;
            if !ended.success() {
                return Err(format!("a worker ended with {ended}").into());
            }
        }
        Ok(outcomes)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that has ended is not there to be killed.
            drop(member.process.kill());
            drop(member.process.wait());
        }
    }
}

impl Member {
    fn order(&mut self, line: &str) -> Result<(), Failure> {
        let orders = self.orders.as_mut().ok_or("the worker has been told to end")?;
        Ok(writeln!(orders, "{line}")?)
    }

    fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.news.read_line(&mut line)? == 0 {
            return Err(format!("a worker ended too early: {}", self.process.wait()?).into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Does the job that stands on stdin: all of a worker process.
pub(crate) fn work() -> Result<(), Failure> {
    let job: Job = serde_json::from_str(&line()?)?;
    let ready = |place: &str| {
        writeln!(io::stdout(), "ready {place}")?;
        line().map(drop)
    };
    match job {
        Job::Db(job) => db::work(&job, || ready("")),
        Job::Rpc(job) => rpc::work(job, ready),
        Job::Events(job) => events::work(job, || ready("")),
        Job::Memory(job) => memory::work(&job, || ready("")),
        Job::Growth(job) => growth::work(job, || ready("")),
    }
}

fn line() -> Result<String, Failure> {
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        return Err("stdin ended too early".into());
    }
    Ok(line)
}

/// Says what was measured, and waits until the fleet ends.
pub(crate) fn done(outcome: Option<&Outcome>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// A directory of its own for one run, removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes the directory below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(format!("work-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a file in it.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.join(name.as_ref())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            // Nobody is left to tell when stderr is closed.
            drop(writeln!(io::stderr(), "{} stays: {error}", self.0.display()));
        }
    }
}
