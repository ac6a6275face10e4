//! Peers in Python: other people's programs, with libzmq below.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Process, Sandbox};

/// Starts `tests/peers/<script>` with the workdir and more arguments.
pub(crate) fn python(sandbox: &Sandbox, script: &str, args: &[&str]) -> Process {
    let mut command = Command::new(interpreter());
    // -B: no byte code beside the sources.
    command.arg("-B").arg(root().join("tests/peers").join(script)).arg(sandbox.path()).args(args);
    Process::spawn(sandbox, script, command)
}

/// Returns the interpreter that has pyzmq: scripts/test makes it and names it.
fn interpreter() -> PathBuf {
    let named = std::env::var_os("PANDO_TEST_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| root().join("target/venv/bin/python"));
    assert!(python.exists(), "there is no {} with pyzmq: run scripts/test, which makes it", python.display());
    python
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
