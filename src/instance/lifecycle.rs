//! What this workdir's instances were, and when: a file that outlives all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use pando_ipc::process::ProcessId;
use pando_ipc::{Timestamp, Workdir};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Role, Shared};

/// Size at which the file begins anew; the one before is kept as `lifecycle.log.1`.
const MAX_BYTES: u64 = 256 << 10;
/// The file in `.pando`: one JSON object per line.
pub(super) const FILE: &str = "lifecycle.log";

/// Writes down what an instance is and why it cannot lead, until it leaves. What follows each other at once may be told as one.
pub(super) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let (mut role, mut failure) = (shared.role.subscribe(), shared.failure.subscribe());
    let mut told = (Role::Seeking, None);
    let mut is_here = false;
    loop {
        let changed = async {
            tokio::select! {
                changed = role.changed() => changed,
                changed = failure.changed() => changed,
            }
        };
        let Some(Ok(())) = stop.run_until_cancelled(changed).await else { break };
        let now = (role.borrow_and_update().clone(), failure.borrow_and_update().clone());
        if now == told {
            continue;
        }
        if !std::mem::replace(&mut is_here, true) {
            note(&shared, "joined", json!({}));
        }
        if now.0 != told.0 {
            note_role(&shared, &now.0);
        }
        if let Some(why) = now.1.as_ref().filter(|_| now.1 != told.1) {
            // Named by its start, too, so that nobody takes another process of that pid for it.
            note(&shared, "failed", json!({"why": why, "process": ProcessId::of(std::process::id())}));
        }
        told = now;
    }
    // Who never had a role, nor tried for one again, was never here: its command says why.
    if is_here {
        note(&shared, "left", json!({}));
    }
}

fn note_role(shared: &Shared, role: &Role) {
    match role {
        Role::Seeking => note(shared, "seeking", json!({})),
        Role::Secondary { primary, epoch } => note(shared, "secondary", json!({"epoch": epoch, "primary": primary})),
        Role::Primary { epoch, .. } => note(shared, "primary", json!({"epoch": epoch})),
    }
}

fn note(shared: &Shared, what: &str, more: Value) {
    let mut line = json!({"at": Timestamp::now(), "instance_id": shared.id, "pid": std::process::id(), "what": what});
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
        line.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    }
    if let Err(error) = append(&shared.workdir, &line, MAX_BYTES) {
        tracing::warn!(%error, "the lifecycle log cannot be written");
    }
}

fn append(workdir: &Workdir, line: &Value, max_bytes: u64) -> io::Result<()> {
    let path = workdir.pando_dir().join(FILE);
    loop {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        // Several instances write here; whoever has the lock may begin the file anew.
        file.lock()?;
        if !is_at(&path, &file) {
            continue;
        }
        if file.metadata()?.len() >= max_bytes {
            fs::rename(&path, path.with_extension("log.1"))?;
            continue;
        }
        return file.write_all(format!("{line}\n").as_bytes());
    }
}

fn is_at(path: &Path, file: &File) -> bool {
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    fs::metadata(path).map(id).ok() == file.metadata().map(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_begins_anew_and_the_one_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(dir.path()).unwrap();
        workdir.prepare().unwrap();
        (0..30).for_each(|n| append(&workdir, &json!({"n": n, "filler": "x".repeat(90)}), 1_000).unwrap());
        let lines = |name: &str| fs::read_to_string(workdir.pando_dir().join(name)).unwrap();
        let (now, before) = (lines(FILE), lines("lifecycle.log.1"));
        assert!(now.lines().last().unwrap().contains("\"n\":29"));
        let last_before: Value = serde_json::from_str(before.lines().last().unwrap()).unwrap();
        let first_now: Value = serde_json::from_str(now.lines().next().unwrap()).unwrap();
        assert_eq!(first_now["n"].as_u64(), last_before["n"].as_u64().map(|n| n + 1), "nothing is lost in between");
        assert_eq!(fs::metadata(workdir.pando_dir().join(FILE)).unwrap().mode() & 0o777, 0o600);
    }
}
