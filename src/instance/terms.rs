//! The loop over terms: all of failover.

use std::sync::Arc;
use std::time::Duration;

use pando_ipc::acquire_lock;
use pando_ipc::lock::{self, Claim, Lease};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::lead::Opened;
use super::{JoinError, Role, Shared, depart, follow, lead};

/// Pause after a term that could not begin, so that a broken disk is not hammered and a healthy instance may win.
const FAILED_TERM_PAUSE: Duration = Duration::from_secs(1);

/// How a term ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The instance leaves.
    Stopped,
    /// The primary went, and the lock is ours.
    Elected(Box<Opened>),
    /// The role was handed to another instance.
    HandedOver,
    /// The lock or the database is no longer ours; somebody else leads.
    Deposed,
}

/// Leads or follows, term after term, until `stop`. When the very first term cannot begin, says why and ends.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken, failed: oneshot::Sender<JoinError>) {
    let mut failed = Some(failed);
    let mut claim = first_claim(&shared).await;
    loop {
        let ended = match claim {
            Ok(Some(opened)) => lead::lead(&shared, *opened, &stop, &mut failed).await,
            Ok(None) => follow::follow(&shared, &stop, &mut failed).await,
            Err(error) => Err(error),
        };
        shared.take_role(Role::Seeking);
        claim = match ended {
            Ok(Ended::Stopped) => break,
            Ok(Ended::Elected(opened)) => Ok(Some(opened)),
            // Whoever else waits for the lock comes first; where nobody does, following ends at once.
            Ok(Ended::Deposed | Ended::HandedOver) => Ok(None),
            Err(error) => {
                if let Some(failed) = failed.take().filter(|failed| !failed.is_closed()) {
                    drop(failed.send(error));
                    break;
                }
                // Again and again for the same reason, such as a workdir that was moved away, is said once.
                let why = error.to_string();
                if shared.note_failure(&why) {
                    tracing::error!(error = why, "the term could not begin; trying again every {FAILED_TERM_PAUSE:?}");
                }
                if stop.run_until_cancelled(tokio::time::sleep(FAILED_TERM_PAUSE)).await.is_none() {
                    break;
                }
                claim_once(&shared).await
            }
        };
    }
    depart::clean_up(&shared).await;
    shared.hub.close();
    shared.stop_requested.cancel();
}

/// Races once for the lock; one that is meant for another instance is left to it.
async fn claim_once(shared: &Arc<Shared>) -> Result<Option<Box<Opened>>, JoinError> {
    match lock::try_lock(&shared.workdir)?.filter(|lease| lease.meant_for_another(&shared.id).is_none()) {
        Some(lease) => open(shared, lease).await.map(Some),
        None => Ok(None),
    }
}

/// Races for the lock the first time; where the primary's role was demanded, a lost race is an error that says who has it.
async fn first_claim(shared: &Arc<Shared>) -> Result<Option<Box<Opened>>, JoinError> {
    if !shared.options.require_primary {
        return claim_once(shared).await;
    }
    match acquire_lock(&shared.workdir, shared.options.dial_timeout).await? {
        Claim::Won(lease) => open(shared, lease).await.map(Some),
        Claim::Lost(info) => Err(JoinError::PrimaryExists(Box::new(info))),
    }
}

/// Opens the database off the runtime, with nothing prepared.
async fn open(shared: &Arc<Shared>, lease: Lease) -> Result<Box<Opened>, JoinError> {
    let own = Arc::clone(shared);
    match tokio::task::spawn_blocking(move || lead::open(&own, lease, None)).await {
        Ok(opened) => opened.map(Box::new),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
