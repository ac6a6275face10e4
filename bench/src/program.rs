//! The `pando` program as a person starts it: one process of `pando up`, heard through its pipe.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Failure;

/// A running `pando up`; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    news: Option<BufReader<ChildStdout>>,
    stdin: Option<ChildStdin>,
}

impl Program {
    /// Starts an instance; `arguments` follow `up`.
    pub(crate) fn start(pando: &Path, workdir: &Path, arguments: &[&str]) -> Result<Self, Failure> {
        let mut command = Command::new(pando);
        command.args(["--json", "--workdir"]).arg(workdir).arg("up").args(arguments);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("cannot start {}: {error}", pando.display()))?;
        let news = child.stdout.take().map(BufReader::new);
        let stdin = child.stdin.take();
        Ok(Self { child, news, stdin })
    }

    /// Waits until it says what it is.
    pub(crate) fn role(&mut self) -> Result<String, Failure> {
        let news = self.news.as_mut().ok_or("somebody else listens")?;
        let mut line = String::new();
        while news.read_line(&mut line)? > 0 {
            if let Some(role) = serde_json::from_str::<Value>(&line)?["role"].as_str() {
                return Ok(role.to_owned());
            }
            line.clear();
        }
        Err("an instance ended before it had a role".into())
    }

    /// Returns what it says from now on.
    pub(crate) fn news(&mut self) -> Option<BufReader<ChildStdout>> {
        self.news.take()
    }

    /// Tells it something.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), Failure> {
        Ok(writeln!(self.stdin.as_mut().ok_or("it has no stdin")?, "{line}")?)
    }

    /// Returns its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Asks it to leave, and waits until it has.
    pub(crate) fn leave(mut self) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns a time in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns how long something took, in milliseconds, and what came of it.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(f64, T), Failure> {
    let began = Instant::now();
    let outcome = work()?;
    Ok((ms(began.elapsed()), outcome))
}
