//! Checks of the lock and of whoever holds it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use chrono::{DateTime, TimeDelta, Utc};
use pando_ipc::client::{CallError, Cause};
use pando_ipc::process::ProcessState;
use pando_ipc::{PROTOCOL, ports_for_path};
use serde_json::Value;

use super::Finding;
use super::room::Room;
use crate::cli::standing::Standing;

/// So many changes of the primary within [`LATELY`] are too many.
const MANY_TERMS: usize = 5;
const LATELY: TimeDelta = TimeDelta::minutes(10);

/// Only the owner may enter.
pub(super) fn permissions(room: &Room) -> Finding {
    let dir = room.workdir.pando_dir();
    let own = rustix::process::geteuid().as_raw();
    let mut open = Vec::new();
    for (path, allowed) in [
        (dir.clone(), 0o700),
        (room.workdir.lock_path(), 0o600),
        (room.workdir.database_path(), 0o600),
        (dir.join("run"), 0o700),
    ] {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let shown = path.display();
        if meta.uid() != own {
            return Finding::fault(
                format!("{shown} belongs to uid {}, we are uid {own}", meta.uid()),
                format!("run as its owner, or make it yours: 'sudo chown -R $USER {}'", dir.display()),
            );
        }
        if meta.mode() & 0o777 & !allowed != 0 {
            open.push(format!("{shown} ({:o})", meta.mode() & 0o777));
        }
    }
    if !dir.exists() {
        return Finding::skipped("there is no .pando yet; the first instance makes it");
    }
    if open.is_empty() {
        return Finding::ok("only we may enter");
    }
    Finding::warning(
        format!("others may look into {}", open.join(", ")),
        format!("close it: 'chmod -R go-rwx {}'", dir.display()),
    )
    .with("open", open)
}

/// The lock is one ordinary file.
pub(super) fn file(room: &Room) -> Finding {
    let path = room.workdir.lock_path();
    match fs::symlink_metadata(&path) {
        Err(_) => Finding::skipped("there is no lock file yet; the first instance makes it"),
        Ok(meta) if !meta.is_file() => Finding::fault(
            format!("{} is no ordinary file", path.display()),
            format!("end all instances, then remove it: 'rm -r {}'", path.display()),
        ),
        Ok(meta) if meta.nlink() > 1 => Finding::fault(
            format!("{} has {} names: two directories would share one lock", path.display(), meta.nlink()),
            "remove the other names: 'find -samefile'",
        ),
        Ok(meta) => Finding::ok("one ordinary file").with("inode", meta.ino()),
    }
}

/// Whoever believes to lead holds the file that is at the path.
pub(super) fn inode(room: &Room) -> Finding {
    let path = room.workdir.lock_path();
    let gone = format!("{} (deleted)", path.display());
    let holders: Vec<u32> = processes().filter(|pid| opened(*pid).any(|file| file == gone)).collect();
    if holders.is_empty() {
        return Finding::ok("nobody holds a lock file that was removed");
    }
    let pids: Vec<String> = holders.iter().map(u32::to_string).collect();
    Finding::fault(
        format!(
            "pid {} holds a lock file that was removed or replaced; whoever comes now does not see it",
            pids.join(", ")
        ),
        format!("an instance of ours steps down by itself within a second; else end it: 'kill {}'", pids.join(" ")),
    )
    .with("pids", holders)
}

/// Whoever holds the lock answers as the one it names.
pub(super) fn answers(room: &Room) -> Finding {
    let holder = match &room.standing {
        Err(error) => {
            return Finding::fault(
                error.to_string(),
                format!("look at it: 'ls -l {}'", room.workdir.lock_path().display()),
            );
        }
        Ok(Standing::Free(_)) => {
            return match &room.stuck {
                Some(stuck) => Finding::fault(format!("nobody leads: {stuck}"), stuck.next_step()),
                None => Finding::skipped("nobody leads; start one with 'pando up'"),
            };
        }
        Ok(Standing::Held(holder)) => holder,
    };
    let cause = match &room.answer {
        Some(Ok(info)) => {
            return Finding::ok(format!("{} answers", info["instance_id"].as_str().unwrap_or_default()))
                .with("pid", info["pid"].clone());
        }
        Some(Err(CallError::NotSent(cause) | CallError::Unknown(cause))) => cause,
        Some(Err(CallError::Refused(fault))) => {
            return Finding::warning(fault.to_string(), "run as the user who owns the workdir");
        }
        None => return Finding::skipped("it was not asked"),
    };
    let Some(holder) = holder else {
        return Finding::fault(
            "the lock is held by somebody who does not say who it is",
            format!("find the holder: 'fuser -v {}'", room.workdir.lock_path().display()),
        );
    };
    let halted = holder.state.is_some_and(ProcessState::is_halted);
    let what = if halted { "is stopped" } else { "does not answer" };
    let next = match cause {
        Cause::Version { .. } => {
            "end the older one with its own 'pando down', then start it again from the newer release"
        }
        _ => "end it, and the next instance takes over: 'pando ipc evict'",
    };
    let why = match cause {
        // It names the holder, too.
        Cause::Unresponsive { silent, .. } => format!("silent for {silent:?}"),
        cause => cause.to_string(),
    };
    Finding::fault(format!("the primary {what} ({holder:#}): {why}"), next).with("pid", holder.info.pid)
}

/// Both sides speak the same version.
pub(super) fn version(room: &Room) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let Some(info) = &room.info else { return Finding::skipped("there is no primary to compare with") };
    let theirs = info.version.clone().unwrap_or_else(|| "unknown".to_owned());
    let protocol = info.protocol.unwrap_or(PROTOCOL);
    let next = "bring all to one release: 'pando down', then start them again";
    let finding = if protocol != PROTOCOL {
        Finding::fault(format!("{} speaks protocol {protocol}, we speak {PROTOCOL}", info.instance_id), next)
    } else if theirs != own {
        Finding::warning(format!("{} is release {theirs}, this is {own}", info.instance_id), next)
    } else {
        Finding::ok(format!("release {own}, protocol {PROTOCOL}"))
    };
    finding.with("release", theirs).with("protocol", protocol)
}

/// The ports that the path hashes to are free, or the primary's own.
pub(super) fn ports(room: &Room) -> Finding {
    let wanted = ports_for_path(room.workdir.path());
    let led = matches!(room.standing, Ok(Standing::Held(_)));
    let advertised = room.info.as_ref().filter(|_| led).map(|info| info.pub_port);
    let finding = match advertised {
        Some(0) => return Finding::ok("the TCP door is closed"),
        Some(port) if port == wanted.publish => {
            return Finding::ok(format!("{port} and {}, as the path says", port + 1));
        }
        Some(port) => Finding::warning(
            format!("the primary is at {port}: {} and {} were taken", wanted.publish, wanted.rpc),
            "nothing to do for clients that read the lock file; others need the port freed before the next takeover",
        ),
        None => {
            let is_taken = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err();
            let taken: Vec<u16> = [wanted.publish, wanted.rpc].into_iter().filter(|port| is_taken(*port)).collect();
            if taken.is_empty() {
                return Finding::ok(format!("{} and {} are free", wanted.publish, wanted.rpc));
            }
            Finding::warning(
                format!("somebody else sits on {taken:?}; the next primary will take others"),
                format!("see who: 'ss -ltnp sport = :{}'", taken[0]),
            )
            .with("taken", taken)
        }
    };
    finding.with("pub", wanted.publish).with("rpc", wanted.rpc)
}

/// Sockets of former terms are gone.
pub(super) fn sockets(room: &Room) -> Finding {
    let dir = room.workdir.pando_dir().join("run");
    let Ok(entries) = fs::read_dir(&dir) else { return Finding::skipped("there are no sockets here") };
    let is_dead = |path: &std::path::PathBuf| {
        UnixStream::connect(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let stale: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_dead)
        .map(|path| path.display().to_string())
        .collect();
    match stale.len() {
        0 => Finding::ok("every socket has its listener"),
        1..=4 => Finding::ok(format!("{} left by a primary that was killed; the next one clears them", stale.len())),
        count => Finding::warning(
            format!("{count} sockets have nobody behind them"),
            format!("remove them: 'rm {}/*' while nobody leads", dir.display()),
        ),
    }
    .with("stale", stale)
}

/// The primary does not change all the time.
pub(super) fn steady(room: &Room) -> Finding {
    let is_late = |line: &&Value| {
        let at = line["at"].as_str().and_then(|at| DateTime::parse_from_rfc3339(at).ok());
        line["what"] == "primary" && at.is_some_and(|at| Utc::now() - at.to_utc() < LATELY)
    };
    let terms = room.lifecycle.iter().filter(is_late).count();
    if terms > MANY_TERMS {
        let next = "read why in .pando/lifecycle.log and .pando/up.log";
        return Finding::warning(format!("{terms} instances became primary in ten minutes"), next).with("terms", terms);
    }
    Finding::ok(format!("{terms} became primary in the last ten minutes")).with("terms", terms)
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns the paths of what a process has open, as far as we may see.
fn opened(pid: u32) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_str()?.to_owned()))
}
