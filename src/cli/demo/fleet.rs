//! The demo's processes, and everything they say as one stream.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pando_ipc::{Envelope, Workdir};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::load::LoadLine;
use crate::cli::failure::Failure;
use crate::cli::up::RoleLine;

/// Lines read and not yet looked at; when it is full, the processes wait in their writes to stdout.
const UNSEEN: usize = 1_024;
/// How long processes may take to leave in good order.
const LEAVE: Duration = Duration::from_secs(5);

/// Something that a process said.
#[derive(Debug)]
pub(super) enum Said {
    /// An instance changed its role.
    Role(RoleLine),
    /// An instance told of its load.
    Load(LoadLine),
    /// The observer saw an event.
    Event(Box<Envelope>),
    /// The observer lost events for good.
    Lost(String),
    /// The process ended.
    Ended,
}

/// The number of the observer as a speaker; instances have 0, 1, ..
pub(super) const OBSERVER: usize = usize::MAX;

/// The processes. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Fleet {
    workdir: Workdir,
    program: PathBuf,
    instances: Vec<Instance>,
    observer: Option<Child>,
    said: mpsc::Receiver<(usize, Said)>,
    say: mpsc::Sender<(usize, Said)>,
    readers: JoinSet<()>,
}

#[derive(Debug)]
struct Instance {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Fleet {
    /// Starts `count` instances.
    pub(super) fn start(workdir: &Workdir, count: usize) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::io("find our own program", &error))?;
        let (say, said) = mpsc::channel(UNSEEN);
        let mut fleet = Self {
            workdir: workdir.clone(),
            program,
            instances: vec![],
            observer: None,
            said,
            say,
            readers: JoinSet::new(),
        };
        for number in 0..count {
            let mut child = fleet.spawn(&["up", "--demo-load"], &format!("up-{number}.log"), Stdio::piped())?;
            fleet.listen(&mut child, number, instance_line);
            let stdin = child.stdin.take();
            fleet.instances.push(Instance { child, stdin });
        }
        Ok(fleet)
    }

    /// Starts the observer: it follows every event from the first one.
    pub(super) fn observe(&mut self) -> Result<(), Failure> {
        let mut child = self.spawn(&["ipc", "tail", "--since", "all"], "observer.log", Stdio::null())?;
        self.listen(&mut child, OBSERVER, observer_line);
        self.observer = Some(child);
        Ok(())
    }

    fn spawn(&self, args: &[&str], log: &str, stdin: Stdio) -> Result<Child, Failure> {
        let log = self.workdir.path().join(log);
        let stderr = File::create(&log).map_err(|error| Failure::io(format_args!("make {}", log.display()), &error))?;
        let mut command = Command::new(&self.program);
        command.arg("--json").arg("--workdir").arg(self.workdir.path()).args(args);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        // A group of its own: Ctrl-C is for the demo, which then ends the others.
        command.process_group(0);
        command.spawn().map_err(|error| Failure::io(format_args!("start {}", self.program.display()), &error))
    }

    fn listen(&mut self, child: &mut Child, speaker: usize, read: fn(&str) -> Option<Said>) {
        let (Some(stdout), say) = (child.stdout.take(), self.say.clone()) else { return };
        self.readers.spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            // A killed process may leave half a line: what it says is not acknowledged.
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(said) = read(&line)
                    && say.send((speaker, said)).await.is_err()
                {
                    return;
                }
            }
            drop(say.send((speaker, Said::Ended)).await);
        });
    }

    /// Returns the next thing that somebody says.
    pub(super) async fn next(&mut self) -> Option<(usize, Said)> {
        self.said.recv().await
    }

    /// Gives an order to all instances that still listen.
    pub(super) async fn order(&mut self, order: &str) {
        for stdin in self.instances.iter_mut().filter_map(|instance| instance.stdin.as_mut()) {
            // One that was killed hears nothing any more.
            drop(stdin.write_all(format!("{order}\n").as_bytes()).await);
        }
    }

    /// Kills one instance with SIGKILL: no handler runs, nothing is flushed.
    pub(super) fn kill(&mut self, number: usize) -> Result<(), Failure> {
        let instance = &mut self.instances[number];
        instance.stdin = None;
        instance.child.start_kill().map_err(|error| Failure::io("kill the primary", &error))
    }

    /// Ends all processes: instances in good order, the observer at once.
    pub(super) async fn end(mut self) {
        if let Some(observer) = &mut self.observer {
            drop(observer.kill().await);
        }
        for instance in &mut self.instances {
            instance.stdin = None;
        }
        // What they still say must be read, or they wait for ever.
        self.said.close();
        for instance in &mut self.instances {
            if tokio::time::timeout(LEAVE, instance.child.wait()).await.is_err() {
                drop(instance.child.kill().await);
            }
        }
        self.readers.shutdown().await;
    }

    /// Returns the last line of each log that says something, for a failure.
    pub(super) fn last_words(workdir: &Path) -> Vec<String> {
        let logs = (0..super::INSTANCES).map(|number| format!("up-{number}.log")).chain(["observer.log".to_owned()]);
        logs.filter_map(|log| {
            let text = std::fs::read_to_string(workdir.join(&log)).ok()?;
            Some(format!("{log}: {}", text.lines().rfind(|line| !line.starts_with('{'))?))
        })
        .collect()
    }
}

fn instance_line(line: &str) -> Option<Said> {
    let role = || serde_json::from_str(line).ok().map(Said::Role);
    serde_json::from_str(line).ok().map(Said::Load).or_else(role)
}

fn observer_line(line: &str) -> Option<Said> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Event(Box<Envelope>),
        Lagged { lagged: u64 },
        Resync { resync: serde_json::Value },
    }
    Some(match serde_json::from_str(line).ok()? {
        Line::Event(event) => Said::Event(event),
        Line::Lagged { lagged } => Said::Lost(format!("{lagged} ephemeral events")),
        Line::Resync { resync } => Said::Lost(resync.to_string()),
    })
}
