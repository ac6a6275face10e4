//! What a secondary has ready for the case that it is elected: the database, open and set up, to which it writes nothing yet.

use std::path::PathBuf;

use pando_dbproxy::Standby;
use tokio::task::JoinHandle;

/// Prepares the database for writing, off the runtime, and keeps it so.
#[derive(Debug)]
pub(super) struct Warm {
    database: PathBuf,
    /// Looks whether what is ready still fits, and prepares it anew where not.
    look: Option<JoinHandle<Option<Standby>>>,
    ready: Option<Standby>,
}

impl Warm {
    pub(super) fn new(database: PathBuf) -> Self {
        Self { database, look: None, ready: None }
    }

    /// Has a look, unless one is being had. Called while somebody leads: then there is a database.
    pub(super) async fn look(&mut self) {
        if self.look.as_ref().is_some_and(|look| !look.is_finished()) {
            return;
        }
        self.settle().await;
        let (ready, database) = (self.ready.take(), self.database.clone());
        self.look = Some(tokio::task::spawn_blocking(move || {
            ready.and_then(Standby::kept_current).or_else(|| {
                let prepared = Standby::prepare(&database);
                prepared.inspect_err(|why| tracing::debug!(%why, "nothing is prepared for an election")).ok()
            })
        }));
    }

    /// Waits for the look that is being had, and takes what is ready.
    pub(super) async fn take(mut self) -> Option<Standby> {
        self.settle().await;
        self.ready
    }

    async fn settle(&mut self) {
        if let Some(look) = self.look.take() {
            // A panic there is no reason not to lead.
            self.ready = look.await.unwrap_or_default();
        }
    }
}
