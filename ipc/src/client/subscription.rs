//! A stream of events for one subscriber.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Client;
use super::inbox::{Delivery, Inbox};
use crate::topic::Pattern;

/// The events that match a pattern, from the moment it was made; it mends itself when the primary changes.
///
/// It counts as a handle of its client. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    number: u64,
    inbox: Arc<Inbox>,
    ready: Option<oneshot::Receiver<()>>,
}

impl Subscription {
    pub(super) fn new(client: Client, patterns: Vec<Pattern>) -> Self {
        let inbox = Arc::<Inbox>::default();
        let (number, ready) = client.core.feeds().add(patterns, &inbox);
        client.core.wishes.notify_one();
        client.core.work.notify_one();
        Self { client, number, inbox, ready: Some(ready) }
    }

    /// Waits until it is live for the first time; false when the client is closed. Safe to drop and call again.
    pub(super) async fn live(&mut self) -> bool {
        let Some(ready) = &mut self.ready else { return true };
        let live = ready.await.is_ok();
        if live {
            self.ready = None;
        }
        live
    }

    /// Waits for the next delivery; `None` once the client is closed. Safe to drop and call again.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.inbox.next().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.client.core.feeds().remove(self.number);
        self.client.core.wishes.notify_one();
    }
}
