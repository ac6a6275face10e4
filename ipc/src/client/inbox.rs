//! The bounded queue between the event stream and one subscriber.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::envelope::Envelope;

/// Most events that wait for one subscriber. What comes while it is full is dropped for that subscriber and told as [`Delivery::Lagged`].
pub const INBOX_CAPACITY: usize = 4_096;

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// An event.
    Event(Arc<Envelope>),
    /// So many events were dropped here, because this subscriber did not keep up.
    Lagged(u64),
    /// The link was lost and is live again: events may be missing before here, none after.
    Relinked {
        /// Term of the primary that is followed now.
        epoch: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Delivery>,
    /// Events dropped since the last one that found room.
    lagged: u64,
    closed: bool,
}

/// One subscriber's queue.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Notify,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, or counts it as lost when there is no room.
    pub(super) fn push(&self, event: Arc<Envelope>) {
        let mut state = self.state();
        if state.queue.len() >= INBOX_CAPACITY {
            state.lagged += 1;
            return;
        }
        state.tell_lag();
        state.queue.push_back(Delivery::Event(event));
        drop(state);
        self.changed.notify_one();
    }

    /// Tells that the link is live again. It always finds room; several in a row become one.
    pub(super) fn relinked(&self, epoch: u64) {
        let mut state = self.state();
        if let Some(Delivery::Relinked { .. }) = state.queue.back() {
            state.queue.pop_back();
            if let Some(Delivery::Lagged(count)) = state.queue.back() {
                state.lagged += *count;
                state.queue.pop_back();
            }
        }
        state.tell_lag();
        state.queue.push_back(Delivery::Relinked { epoch });
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the stream behind what is queued.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Waits for the next delivery; `None` once closed and empty. Safe to drop and call again; for one receiver.
    pub(super) async fn next(&self) -> Option<Delivery> {
        loop {
            {
                let mut state = self.state();
                if state.queue.is_empty() {
                    state.tell_lag();
                }
                match state.queue.pop_front() {
                    None if !state.closed => {}
                    next => return next,
                }
            }
            self.changed.notified().await;
        }
    }
}

impl State {
    fn tell_lag(&mut self) {
        if self.lagged > 0 {
            self.queue.push_back(Delivery::Lagged(std::mem::take(&mut self.lagged)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;
    use serde_json::json;

    fn event(n: usize) -> Arc<Envelope> {
        Arc::new(Envelope::new("i", Topic::known("t"), json!(n)))
    }

    /// Takes everything that waits, written short.
    async fn drain(inbox: &Inbox) -> Vec<String> {
        inbox.close();
        let mut seen = Vec::new();
        while let Some(delivery) = inbox.next().await {
            seen.push(match delivery {
                Delivery::Event(event) => event.payload.to_string(),
                Delivery::Lagged(count) => format!("lagged {count}"),
                Delivery::Relinked { epoch } => format!("relinked {epoch}"),
            });
        }
        seen
    }

    #[tokio::test]
    async fn a_loss_is_told_in_its_place() {
        let inbox = Inbox::default();
        for n in 0..INBOX_CAPACITY + 3 {
            inbox.push(event(n));
        }
        assert!(matches!(inbox.next().await, Some(Delivery::Event(first)) if first.payload == json!(0)));
        inbox.push(event(9_999));
        let seen = drain(&inbox).await;
        assert_eq!(seen[INBOX_CAPACITY - 2..], ["4095", "lagged 3", "9999"]);
    }

    #[tokio::test]
    async fn a_loss_at_the_end_is_told_too() {
        let inbox = Inbox::default();
        for n in 0..=INBOX_CAPACITY {
            inbox.push(event(n));
        }
        assert_eq!(drain(&inbox).await.last().unwrap(), "lagged 1");
    }

    #[tokio::test]
    async fn links_that_come_and_go_take_no_room() {
        let inbox = Inbox::default();
        for n in 0..INBOX_CAPACITY {
            inbox.push(event(n));
        }
        for epoch in 1..100 {
            inbox.push(event(0));
            inbox.relinked(epoch);
        }
        let seen = drain(&inbox).await;
        assert_eq!(seen[INBOX_CAPACITY..], ["lagged 99", "relinked 99"]);
    }
}
