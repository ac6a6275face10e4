//! Somebody beside the instances who follows what happens, from the first event on.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::support::{Process, Sandbox, binary};

/// A `pando ipc tail` whose output is kept.
#[derive(Debug)]
pub(crate) struct Observer {
    path: PathBuf,
    process: Process,
}

impl Observer {
    /// Starts one that prints into the file at `path`.
    pub(crate) fn start(sandbox: &Sandbox, path: PathBuf) -> Self {
        let mut command = binary(sandbox.path());
        command.args(["--json", "ipc", "tail", "--since", "all"]);
        let process = Process::spawn_into(sandbox, "tail", command, File::create(&path).unwrap());
        Self { path, process }
    }

    /// Tells whether it has printed anything.
    pub(crate) fn has_begun(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|meta| meta.len() > 0)
    }

    /// Returns the number of the last durable event that it has told.
    pub(crate) fn last_seen(&self) -> Option<u64> {
        #[derive(serde::Deserialize)]
        struct Told {
            seq: Option<u64>,
        }
        let told = fs::read_to_string(&self.path).unwrap();
        // The last line may be written in part.
        told.lines().rev().find_map(|line| serde_json::from_str::<Told>(line).ok()?.seq)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }
}
