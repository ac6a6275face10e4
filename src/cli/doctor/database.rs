//! Checks of the database and its journal.

use std::fs;
use std::os::unix::fs::MetadataExt;

use pando_dbproxy::{PINNED_BYTES, ReadError, Retention, StoreError, log_readers};
use pando_ipc::process::executable_of;
use serde_json::json;

use super::Finding;
use super::room::Room;
use crate::cli::failure::Failure;
use crate::cli::output;

/// The first release of SQLite that does not corrupt a log with two writers.
const SOUND_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// The settings can be read: with others nobody can lead.
pub(super) fn settings(room: &Room) -> Finding {
    let path = room.workdir.database_path().with_file_name(pando_dbproxy::settings::FILE);
    match &room.settings {
        Ok(_) if !path.exists() => Finding::skipped("nothing is set; all is as usual"),
        Ok(settings) => Finding::ok(format!("durability {}", output::cell(&json!(settings.durability)))),
        Err(error) => refused(error),
    }
}

/// The fault of what keeps a primary from opening the database, with the step that the primary would name.
fn refused(error: &StoreError) -> Finding {
    let Failure { message, hints, .. } = Failure::store(error);
    Finding::fault(message, hints.join("; "))
}

/// The database is one ordinary file: an alias would have a log of its own.
pub(super) fn file(room: &Room) -> Finding {
    let path = room.workdir.database_path();
    match fs::symlink_metadata(&path) {
        Err(_) => Finding::skipped("there is no database yet; the first primary makes it"),
        Ok(meta) if !meta.is_file() => {
            Finding::fault(format!("{} is no ordinary file", path.display()), "put the database itself there")
        }
        Ok(meta) if meta.nlink() > 1 => Finding::fault(
            format!("{} has {} names: each would have a log of its own", path.display(), meta.nlink()),
            "remove the other names: 'find -samefile'",
        ),
        Ok(meta) => Finding::ok(format!("one file of {}", output::bytes(meta.len()))).with("bytes", meta.len()),
    }
}

/// It can be read, and its schema is one that a primary of this release can work with.
pub(super) fn opens(room: &Room) -> Finding {
    let later = match &room.schema {
        Err(error @ (StoreError::NewerSchema { .. } | StoreError::MigrationDiffers { .. })) => return refused(error),
        Err(StoreError::OlderSchema { needed, .. }) => {
            format!("; a primary of this release brings it to schema {needed}")
        }
        // What else is wrong keeps the counts from being read, too.
        Ok(()) | Err(_) => String::new(),
    };
    match &room.stats {
        None => Finding::skipped("there is no database yet"),
        Some(Ok(stats)) => Finding::ok(format!("epoch {}, schema {}{later}", stats.epoch, stats.schema_version)),
        Some(Err(ReadError::NotReady { why, .. })) => Finding::fault(
            format!("it is no database of ours: {why}"),
            "move it away, and the next primary makes one: 'pando up'",
        ),
        Some(Err(error)) => Finding::fault(
            format!("it cannot be read: {error}"),
            "check it: 'pando db check'; bring back a copy: 'pando db restore FILE'",
        ),
    }
}

/// The library is one that is safe with this kind of log.
pub(super) fn sqlite(room: &Room) -> Finding {
    let Some(stats) = room.stats() else { return Finding::skipped("there is no database to ask") };
    let summary = format!("SQLite {}", stats.sqlite_version);
    if is_sound(&stats.sqlite_version) {
        return Finding::ok(summary);
    }
    Finding::fault(format!("{summary} can corrupt a log with two writers"), "build with the bundled one")
}

fn is_sound(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next()) >= SOUND_SQLITE
}

/// The log is small; when it is not, somebody reads from it.
pub(super) fn wal(room: &Room) -> Finding {
    let Some(stats) = room.stats() else { return Finding::skipped("there is no database yet") };
    let size = format!("the log has {}", output::bytes(stats.wal_bytes));
    if stats.wal_bytes < PINNED_BYTES {
        return Finding::ok(size).with("bytes", stats.wal_bytes);
    }
    let own = std::process::id();
    let readers: Vec<u32> = log_readers(&room.workdir.database_path()).into_iter().filter(|pid| *pid != own).collect();
    let finding = if readers.is_empty() {
        Finding::warning(size, "the next primary, or the next quiet moment, shrinks it: 'pando up'")
    } else {
        let named =
            |pid: &u32| executable_of(*pid).map_or_else(|| pid.to_string(), |it| format!("{pid} ({})", it.display()));
        let names: Vec<String> = readers.iter().map(named).collect();
        Finding::warning(
            format!("{size}; a long read of pid {} keeps it from shrinking", names.join(", ")),
            "end that read, or its process",
        )
    };
    finding.with("bytes", stats.wal_bytes).with("readers", readers)
}

/// What the journal keeps.
pub(super) fn retention(room: &Room) -> Finding {
    let Some(stats) = room.stats() else { return Finding::skipped("there is no journal yet") };
    let kept = if stats.head == 0 { 0 } else { stats.head + 1 - stats.oldest_event };
    // Settings that cannot be read are a fault of their own.
    let limit = room.settings.as_ref().map_or_else(|_| Retention::default(), |it| it.journal).max_events;
    Finding::ok(format!("{kept} of at most {limit} events, seq {} to {}", stats.oldest_event, stats.head))
        .with("events", kept)
        .with("oldest", stats.oldest_event)
        .with("head", stats.head)
}

/// No named consumer has lost events to retention.
pub(super) fn cursors(room: &Room) -> Finding {
    let cursors = match &room.cursors {
        Ok(cursors) if cursors.is_empty() => return Finding::skipped("there are no cursors"),
        Ok(cursors) => cursors,
        Err(error) => return Finding::fault(error.to_string(), "remove the file it names; the cursor begins anew"),
    };
    let Some(stats) = room.stats() else { return Finding::skipped("there is no journal yet") };
    let is_lost = |cursor: &&pando_ipc::cursor::Cursor| {
        cursor.bookmark.database != stats.database || cursor.bookmark.seq + 1 < stats.oldest_event
    };
    let lost: Vec<String> = cursors.iter().filter(is_lost).map(|cursor| cursor.name.clone()).collect();
    if lost.is_empty() {
        return Finding::ok(format!("{} cursors, all within the journal", cursors.len()));
    }
    Finding::warning(
        format!("{} points to events that are gone", lost.join(", ")),
        "its consumer is told so by 'resync'; forget one that nobody uses: 'pando ipc cursors --remove NAME'",
    )
    .with("cursors", lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(is_sound("3.51.3") && is_sound("3.54.1") && is_sound("4.0.0"));
        assert!(!is_sound("3.51.2") && !is_sound("3.9.99") && !is_sound(""));
    }
}
