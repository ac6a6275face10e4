//! A child process whose lines are read as they come, and that never outlives its test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Sandbox, eventually};

/// A line that a process printed, and when we read it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

/// A child process with its pipes; it ends with its owner.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Reaped,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its stdin open, its stdout read line by line and its stderr in a log of the sandbox.
    pub(crate) fn spawn(sandbox: &Sandbox, name: &str, mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        let (mut child, log) = Self::child(sandbox, name, &mut command);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        let read = move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(Line { at: Instant::now(), text }).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name(format!("stdout of {name}")).spawn(read).unwrap();
        Self { name: name.to_owned(), child, stdin, lines, log }
    }

    /// The same with its stdout in a file: it says nothing to us.
    pub(crate) fn spawn_into(sandbox: &Sandbox, name: &str, mut command: Command, stdout: File) -> Self {
        command.stdout(stdout);
        let (mut child, log) = Self::child(sandbox, name, &mut command);
        let stdin = child.stdin.take();
        Self { name: name.to_owned(), child, stdin, lines: channel().1, log }
    }

    fn child(sandbox: &Sandbox, name: &str, command: &mut Command) -> (Reaped, PathBuf) {
        let log = sandbox.new_log(name);
        command.stdin(Stdio::piped()).stderr(File::create(&log).unwrap());
        (Reaped::spawn(command), log)
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the first line in which `find` finds something; what comes before it is read and forgotten.
    #[track_caller]
    pub(crate) fn wait_for<T>(&mut self, what: &str, within: Duration, mut find: impl FnMut(&Line) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(found) = find(&line) {
                        return found;
                    }
                    heard.push(line.text);
                }
                Err(why) => {
                    let end = match why {
                        RecvTimeoutError::Timeout => format!("did not say so within {within:?}"),
                        RecvTimeoutError::Disconnected => format!("ended: {:?}", self.child.wait()),
                    };
                    panic!("waiting for {what}: {} {end}\nstdout: {heard:#?}\nstderr:\n{}", self.name, self.stderr());
                }
            }
        }
    }

    /// Returns what it has said and nobody has read yet, without waiting.
    pub(crate) fn unread(&self) -> impl Iterator<Item = Line> {
        self.lines.try_iter()
    }

    /// Returns what it says until its stdout ends.
    pub(crate) fn rest(&self) -> impl Iterator<Item = Line> {
        self.lines.iter()
    }

    /// Writes a line to its stdin.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{} does not listen: {error}", self.name));
    }

    /// Ends its stdin.
    pub(crate) fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it with SIGKILL, waits for its end and tells when the signal was sent.
    pub(crate) fn kill(&mut self) -> Instant {
        let at = Instant::now();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        at
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn end(&mut self, within: Duration) -> ExitStatus {
        let Self { child, name, .. } = self;
        eventually(&format!("the end of {name}"), within, || child.try_wait().unwrap())
    }
}

/// A child that is killed and waited for when nobody owns it any more.
#[derive(Debug)]
pub(super) struct Reaped(Child);

impl Reaped {
    pub(super) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Deref for Reaped {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Reaped {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}
