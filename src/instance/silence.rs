//! What a secondary does about a primary that says nothing: tell its own application and, when told to, end it.

use std::sync::Arc;
use std::time::Duration;

use pando_ipc::client::{Client, Silence};
use pando_ipc::{Envelope, Holder, Topic, topic};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// Tells the instance's own hub when the primary falls silent and when it speaks again, and evicts it when the time for that has come.
pub(super) async fn watch(shared: Arc<Shared>, client: Client, stop: CancellationToken) {
    let silence = client.silence();
    drop(client);
    stop.run_until_cancelled(attend(&shared, silence)).await;
}

async fn attend(shared: &Shared, mut silence: watch::Receiver<Option<Silence>>) {
    let mut told: Option<Holder> = None;
    let mut evicted: Option<Holder> = None;
    while silence.changed().await.is_ok() {
        let Some(Silence { holder, lasted }) = silence.borrow_and_update().clone() else {
            if let Some(holder) = told.take() {
                tracing::warn!(%holder, "the primary is no longer silent, or another one leads");
                tell(shared, topic::RESPONSIVE, &holder, Duration::ZERO);
            }
            continue;
        };
        if told.as_ref().is_none_or(|told| told.info != holder.info) {
            tracing::warn!("the primary has said nothing for {lasted:?} ({holder:#})");
            tell(shared, topic::UNRESPONSIVE, &holder, lasted);
            told = Some(holder.clone());
        }
        let is_due = shared.options.evict_after.is_some_and(|after| lasted >= after);
        if is_due && evicted.as_ref().is_none_or(|evicted| evicted.info != holder.info) {
            match holder.evict().await {
                Ok(signal) => tracing::warn!(?signal, "evicted the silent primary ({holder})"),
                Err(error) => tracing::error!(%error, "could not evict the silent primary ({holder})"),
            }
            evicted = Some(holder);
        }
    }
}

fn tell(shared: &Shared, topic: &'static str, holder: &Holder, silent: Duration) {
    let payload = json!({
        "instance_id": holder.info.instance_id,
        "epoch": holder.info.epoch,
        "pid": holder.info.pid,
        "executable": holder.executable,
        "state": holder.state,
        "silent_ms": u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
    });
    shared.hub.deliver(&Arc::new(Envelope::new(&*shared.id, Topic::known(topic), payload)));
}
