//! What the tests need: places, processes, peers, and patience with a deadline.

mod cli;
mod instance;
mod process;
mod python;
mod raw;
mod sandbox;
mod wait;

pub(crate) use cli::{Outcome, may_mount, pando, pando_bound_by_modes, pando_read_only, tail};
pub(crate) use instance::{PandoProcess, RoleLine};
pub(crate) use process::Process;
pub(crate) use python::python;
pub(crate) use raw::{RawPeer, bytes_of};
pub(crate) use sandbox::Sandbox;
pub(crate) use wait::{eventually, heavy, pass};

use std::path::Path;
use std::process::Command;

/// Returns the binary under test in `workdir`.
pub(crate) fn binary(workdir: &Path) -> Command {
    in_workdir(Command::new(env!("CARGO_BIN_EXE_pando")), workdir)
}

/// Gives a command an environment in which no setting of the developer shows.
fn in_workdir(mut command: Command, workdir: &Path) -> Command {
    command.current_dir(workdir).env("HOME", "/nonexistent").env("COLUMNS", "120");
    for name in ["PANDO_LOG", "NO_COLOR", "CLICOLOR_FORCE", "RUST_LOG", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command
}
