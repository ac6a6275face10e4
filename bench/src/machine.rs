//! What was measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::{Context, Libzmq};
use crate::servers;

/// Returns the machine and the versions, as they stand in every report.
pub(crate) fn describe(context: &Context) -> Value {
    let cpu = line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = line("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".to_owned());
    json!({
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": memory,
        "kernel": kernel.trim(),
        "file_system": file_system(&context.dir).unwrap_or_else(|| "unknown".to_owned()),
        "pando": env!("CARGO_PKG_VERSION"),
        "sqlite": rusqlite::version(),
        "libzmq": context.libzmq.as_ref().and_then(libzmq).unwrap_or_else(|| "none".to_owned()),
        "servers": servers::versions(context),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
    })
}

/// Asks libzmq for its version.
fn libzmq(peer: &Libzmq) -> Option<String> {
    let output = Command::new(&peer.program).arg(&peer.library).arg("version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns the value behind the first line that begins with `key`.
fn line(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let found = text.lines().find(|line| line.starts_with(key))?;
    Some(found.split_once(':')?.1.trim().to_owned())
}

/// Returns the type of the file system that holds `dir`: of all mounts above it the longest.
fn file_system(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind) = (fields.next()?, fields.next()?);
        dir.starts_with(mount).then(|| (mount.len(), kind.to_owned()))
    });
    above.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}
