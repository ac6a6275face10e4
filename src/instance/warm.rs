//! What a secondary has ready for the case that it is elected: the database, open and set up, to which it writes nothing yet.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pando_dbproxy::{RecentStatements, Standby};
use tokio_util::task::TaskTracker;

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
    use pando_dbproxy::{Writer, WriterOptions};

    use super::*;

    #[tokio::test]
    async fn what_was_looked_for_is_taken_once_and_nothing_is_prepared_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("pando.db");
        let warm = Warm::new(database.clone(), RecentStatements::default());
        let look = async || {
            let tasks = TaskTracker::new();
            warm.look(&tasks);
            tasks.close();
            tasks.wait().await;
        };
        look().await;
        assert!(matches!(*warm.ready.lock().unwrap(), Ready::Not), "there is no database yet");
        let writer = Writer::open(&database, WriterOptions::new("inst-A", dir.path())).unwrap();
        for _ in 0..2 {
            look().await;
            assert!(matches!(*warm.ready.lock().unwrap(), Ready::Yes(_)));
        }
        assert!(warm.take().is_some());
        look().await;
        assert!(warm.take().is_none());
        writer.close().await;
    }
}
