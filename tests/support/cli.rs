//! One command, run to its end.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::process::Reaped;
use super::{Process, Sandbox, binary, eventually, in_workdir};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of a command. It displays as a transcript for snapshots.
#[derive(Debug)]
pub(crate) struct Outcome {
    command: String,
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Returns its stdout as JSON; it must have succeeded.
    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.code, Some(0), "{self}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        write!(f, "{}", self.stdout)?;
        write!(f, "{}", self.stderr)?;
        match self.code {
            Some(code) => write!(f, "exit {code}"),
            None => f.write_str("ended by a signal"),
        }
    }
}

/// Runs `pando` in the sandbox's workdir, with nothing on stdin.
#[track_caller]
pub(crate) fn pando(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    run(sandbox, binary(sandbox.path()), args)
}

/// The same where file modes bind us: root gives up the capability to pass them by.
#[track_caller]
pub(crate) fn pando_bound_by_modes(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return pando(sandbox, args);
    }
    let mut command = in_workdir(Command::new("setpriv"), sandbox.path());
    command.args(["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_pando")]);
    run(sandbox, command, args)
}

/// The same where the workdir can only be read: it is mounted so, for this process alone.
#[track_caller]
pub(crate) fn pando_read_only(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@""#;
    let mut command = in_workdir(Command::new("unshare"), sandbox.path());
    command.args(["-rm", "sh", "-c", script]).arg(sandbox.path()).arg(env!("CARGO_BIN_EXE_pando"));
    run(sandbox, command, args)
}

/// Tells whether this system lets us mount something for one process alone; if not, why.
pub(crate) fn may_mount(at: &Path) -> Result<(), String> {
    let tried = Command::new("unshare").args(["-rm", "mount", "--bind"]).args([at, at]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[track_caller]
fn run(sandbox: &Sandbox, mut command: Command, args: &[&str]) -> Outcome {
    let (stdout, stderr) = (sandbox.new_log("stdout"), sandbox.new_log("cli"));
    command.args(args).stdin(Stdio::null());
    command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
    let mut child = Reaped::spawn(&mut command);
    let shown = format!("pando {}", args.join(" "));
    let status = eventually(&format!("the end of '{shown}'"), PATIENCE, || child.try_wait().unwrap());
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Outcome { command: shown, code: status.code(), stdout: read(stdout), stderr: read(stderr) }
}

/// Starts `pando ipc tail`, which prints one JSON line for each event.
pub(crate) fn tail(sandbox: &Sandbox, args: &[&str]) -> Process {
    let mut command = binary(sandbox.path());
    command.args(["--json", "ipc", "tail"]).args(args);
    Process::spawn(sandbox, "tail", command)
}
