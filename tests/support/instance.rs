//! `pando up --json` as a child process.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::process::Line;
use super::{Process, Sandbox, binary};

/// How long an instance may take to find its first role.
const FIRST_ROLE: Duration = Duration::from_secs(10);

/// One line of `pando up --json`: a change of role.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct RoleLine {
    pub(crate) role: String,
    pub(crate) instance_id: String,
    pub(crate) epoch: Option<u64>,
    pub(crate) pid: u32,
    pub(crate) ports: Option<Ports>,
    /// When it happened, as the instance says: RFC 3339.
    #[serde(rename = "at")]
    pub(crate) told_at: pando_ipc::Timestamp,
    /// When we read it.
    #[serde(skip, default = "Instant::now")]
    pub(crate) read_at: Instant,
}

/// The ports in a role line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Ports {
    #[serde(rename = "pub")]
    pub(crate) publish: u16,
    pub(crate) rpc: u16,
}

impl RoleLine {
    /// Reads a role line; other lines are `None`.
    pub(crate) fn read(line: &Line) -> Option<Self> {
        serde_json::from_str(&line.text).ok().map(|role: Self| Self { read_at: line.at, ..role })
    }
}

/// A `pando up --json` that runs in a sandbox.
#[derive(Debug)]
pub(crate) struct PandoProcess(Process);

impl PandoProcess {
    /// Starts an instance with more arguments.
    pub(crate) fn start(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut command = binary(sandbox.path());
        command.args(["--json", "up"]).args(args);
        Self(Process::spawn(sandbox, "up", command))
    }

    /// Starts an instance and waits until it is the primary.
    #[track_caller]
    pub(crate) fn primary(sandbox: &Sandbox) -> (Self, RoleLine) {
        let mut instance = Self::start(sandbox, &[]);
        let role = instance.becomes("primary");
        (instance, role)
    }

    /// Waits until it has this role.
    #[track_caller]
    pub(crate) fn becomes(&mut self, role: &str) -> RoleLine {
        self.0
            .wait_for(&format!("role {role}"), FIRST_ROLE, |line| RoleLine::read(line).filter(|line| line.role == role))
    }
}

impl Deref for PandoProcess {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for PandoProcess {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}
