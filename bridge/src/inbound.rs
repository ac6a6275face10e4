//! From the primary to this process: what a follower receives goes to the hub.

use pando_ipc::client::{Followed, Follower};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;

/// Feeds the hub from a follower until `stop`, or until the follower's client was closed. May be dropped at any time.
///
/// The follower fills gaps from the journal; what retention took is told to subscribers as lost.
pub async fn inbound(follower: &mut Follower, hub: &Hub, stop: &CancellationToken) {
    while let Some(Some(followed)) = stop.run_until_cancelled(follower.recv()).await {
        match followed {
            Followed::Event(event) => hub.deliver(&event),
            Followed::Lagged(lost) => hub.lagged(lost),
            Followed::Resync(resync) => {
                tracing::warn!(from = resync.from, to = resync.to, reason = %resync.reason, "events are gone from the journal");
                hub.resync(resync.from, resync.to);
            }
        }
    }
}
