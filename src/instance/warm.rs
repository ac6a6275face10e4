//! What a secondary has ready for the case that it is elected: the database, open and set up, to which it writes nothing yet.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pando_dbproxy::{RecentStatements, Standby};
use tokio_util::task::TaskTracker;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// The same while somebody writes.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Prepares the database for writing, off the runtime, and keeps it so. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Warm {
    database: PathBuf,
    recent: RecentStatements,
    ready: Arc<Mutex<Ready>>,
}

#[derive(Debug)]
enum Ready {
    Not,
    Yes(Box<Standby>),
    /// Nothing is prepared any more.
    Taken,
}

impl Warm {
    /// `recent` tells what this instance writes.
    pub(super) fn new(database: PathBuf, recent: RecentStatements) -> Self {
        Self { database, recent, ready: Arc::new(Mutex::new(Ready::Not)) }
    }

    /// Looks whether what is ready still fits, and prepares it anew where not. Called while somebody leads: then there is a database.
    pub(super) fn look(&self, tasks: &TaskTracker) {
        let warm = self.clone();
        tasks.spawn_blocking(move || {
            // A look is being had, or one has panicked: then nothing is prepared, which is no reason not to lead.
            let Ok(mut ready) = warm.ready.try_lock() else { return };
            let former = match std::mem::replace(&mut *ready, Ready::Not) {
                Ready::Not => None,
                Ready::Yes(standby) => standby.kept_current(),
                Ready::Taken => return *ready = Ready::Taken,
            };
            let standby = former.or_else(|| {
                let prepared = Standby::prepare(&warm.database);
                prepared.inspect_err(|why| tracing::debug!(%why, "nothing is prepared for an election")).ok()
            });
            if let Some(standby) = standby {
                standby.warm(&warm.recent);
                *ready = Ready::Yes(Box::new(standby));
            }
        });
    }

    /// Returns how long to wait for the next look: what was written since the last one is read when this instance leads, before its first write.
    pub(super) fn pause(&self) -> Duration {
        let is_written = match self.ready.try_lock().as_deref() {
            Ok(Ready::Yes(standby)) => standby.is_written(),
            Ok(Ready::Not | Ready::Taken) | Err(_) => false,
        };
        if is_written { BUSY_PAUSE } else { PAUSE }
    }

    /// Waits for the look that is being had, and takes what is ready; there are no more looks. Blocks.
    pub(super) fn take(&self) -> Option<Standby> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *ready, Ready::Taken) {
            Ready::Yes(standby) => Some(*standby),
            Ready::Not | Ready::Taken => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use pando_dbproxy::{OpId, Work, WriteRequest, Writer, WriterOptions};
    use pando_ipc::Topic;
    use serde_json::json;

    use super::*;

    async fn look(warm: &Warm) {
        let tasks = TaskTracker::new();
        warm.look(&tasks);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn what_was_looked_for_is_taken_once_and_nothing_is_prepared_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("pando.db");
        let warm = Warm::new(database.clone(), RecentStatements::default());
        look(&warm).await;
        assert!(matches!(*warm.ready.lock().unwrap(), Ready::Not), "there is no database yet");
        let writer = Writer::open(&database, WriterOptions::new("inst-A", dir.path())).unwrap();
        for _ in 0..2 {
            look(&warm).await;
            assert!(matches!(*warm.ready.lock().unwrap(), Ready::Yes(_)));
        }
        assert!(warm.take().is_some());
        look(&warm).await;
        assert!(warm.take().is_none());
        writer.close().await;
    }

    #[tokio::test]
    async fn while_somebody_writes_looks_follow_one_another_sooner() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("pando.db");
        let warm = Warm::new(database.clone(), RecentStatements::default());
        let writer = Writer::open(&database, WriterOptions::new("inst-A", dir.path())).unwrap();
        look(&warm).await;
        look(&warm).await;
        assert_eq!(warm.pause(), PAUSE);
        let (session_id, project_id) = (String::new(), String::new());
        let work = Work::Publish { topic: Topic::known("app.note"), payload: json!(1).into(), session_id, project_id };
        let deadline = Instant::now() + Duration::from_secs(10);
        let request = WriteRequest::new(OpId::fresh(), "inst-A".to_owned(), deadline, work).unwrap();
        writer.submit(request).await.unwrap();
        look(&warm).await;
        assert_eq!(warm.pause(), BUSY_PAUSE);
        look(&warm).await;
        assert_eq!(warm.pause(), PAUSE);
        writer.close().await;
    }
}
