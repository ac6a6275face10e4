//! Checks of the machine: file system, room, descriptors, clock.

use std::fs;

use chrono::{TimeDelta, Utc};
use pando_dbproxy::file_system::FileSystem;
use rustix::process::{Resource, getrlimit};

use super::Finding;
use super::room::Room;
use crate::cli::output;
use crate::cli::status::place;

/// Less free room than this is worth a warning, in bytes; without any, writes are refused.
const LITTLE_BYTES: u64 = 256 << 20;
const NO_BYTES: u64 = 1 << 20;
/// Fewer descriptors than this are too few for a primary: sockets, database, and a peer on each connection.
const FEW_DESCRIPTORS: u64 = 256;
/// How far ahead of the clock a time may be.
const AHEAD: TimeDelta = TimeDelta::seconds(5);

/// Locks and the database's shared memory need a local file system.
pub(super) fn filesystem(room: &Room) -> Finding {
    match FileSystem::of(&place(&room.workdir)) {
        Err(error) => Finding::skipped(format!("the system does not tell: {error}")),
        Ok(FileSystem { name, objection }) => judge(objection, &name).with("name", name),
    }
}

fn judge(objection: Option<&str>, name: &str) -> Finding {
    match objection {
        Some(why) => Finding::fault(
            format!("no primary can lead on {name}: {why}"),
            "work in a directory on a disk of this machine",
        ),
        None => Finding::ok(format!("{name}, local")),
    }
}

/// Writes need room.
pub(super) fn space(room: &Room) -> Finding {
    let path = place(&room.workdir);
    let stat = match rustix::fs::statvfs(&path) {
        Ok(stat) => stat,
        Err(error) => return Finding::skipped(format!("the system does not tell: {error}")),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    weigh(free, &path.display().to_string()).with("free_bytes", free)
}

fn weigh(free: u64, path: &str) -> Finding {
    let (summary, next) = (format!("{} are free", output::bytes(free)), format!("make room: 'df -h {path}'"));
    match free {
        ..NO_BYTES => Finding::fault(summary, next),
        NO_BYTES..LITTLE_BYTES => Finding::warning(summary, next),
        _ => Finding::ok(summary),
    }
}

/// A process needs descriptors for its connections.
pub(super) fn descriptors(room: &Room) -> Finding {
    let holder = room.primary().and_then(|info| info["pid"].as_u64());
    let (limit, used, whose) = match holder {
        Some(pid) => (limit_of(pid), fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count), "the primary"),
        None => (getrlimit(Resource::Nofile).current, None, "a process"),
    };
    let limit = limit.unwrap_or(u64::MAX);
    let used = used.unwrap_or_default() as u64;
    let next = "raise it where instances are started: 'ulimit -n 4096'";
    let finding = if limit < FEW_DESCRIPTORS {
        Finding::warning(format!("{whose} may have {limit} descriptors, which are few"), next)
    } else if used * 10 > limit * 8 {
        Finding::warning(format!("{whose} has {used} of {limit} descriptors open"), next)
    } else {
        Finding::ok(format!("{whose} may have {limit} descriptors"))
    };
    finding.with("limit", limit).with("used", used)
}

fn limit_of(pid: u64) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Times that lie ahead were written by a clock that went backwards since, or is wrong now.
pub(super) fn clock(room: &Room) -> Finding {
    let lock = room.info.as_ref().map(|info| ("the lock file", info.started_at));
    let event = room.last_event.as_ref().map(|event| ("the last event", event.timestamp));
    let ahead = [lock, event].into_iter().flatten().find(|(_, time)| time.as_datetime() - Utc::now() > AHEAD);
    match ahead {
        Some((what, time)) => Finding::warning(
            format!("{what} is from {time}, which is still to come"),
            "set the clock: 'timedatectl'; times in events and '--since 5m' are wrong until then",
        )
        .with("time", time.to_string()),
        None => Finding::ok("no time lies ahead"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_file_system_of_another_machine_is_a_fault() {
        assert_eq!(judge(Some("other machines see it"), "nfs").status, Status::Fault);
        assert_eq!(judge(None, "ext4").status, Status::Ok);
    }

    #[test]
    fn little_room_is_a_warning_and_none_a_fault() {
        let status = |free| weigh(free, "/w").status;
        assert_eq!([status(0), status(10 << 20), status(1 << 40)], [Status::Fault, Status::Warning, Status::Ok]);
    }
}
