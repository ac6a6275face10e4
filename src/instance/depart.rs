//! The last thing that an instance does: leave nothing behind that nobody needs.

use std::time::Duration;

use pando_dbproxy::tidy;
use pando_ipc::lock;

use super::Shared;

/// Pause before each attempt: whoever waits for the lock has it by then, and others that leave have closed the database.
const PAUSE: Duration = Duration::from_millis(5);
/// How often it is tried, while others leave at the same time or read the file.
const ATTEMPTS: usize = 10;

/// Removes the database's WAL when this was the last instance. Whoever leads removes it when its time comes.
pub(super) async fn clean_up(shared: &Shared) {
    shared.readers.close_idle();
    let database = shared.workdir.database_path();
    let wal = database.with_extension("db-wal");
    for _ in 0..ATTEMPTS {
        if !wal.exists() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        let Ok(Some(lease)) = lock::try_lock(&shared.workdir) else { return };
        let database = database.clone();
        let tidied = tokio::task::spawn_blocking(move || {
            let tidied = tidy(&database);
            drop(lease);
            tidied
        });
        if let Ok(Err(error)) = tidied.await {
            tracing::debug!(%error, "the WAL stays");
        }
    }
}
