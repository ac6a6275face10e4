//! What waits to be written to one peer: bounded in bytes, filled from any thread, emptied by the peer's writer.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// What a message costs beside its own bytes, so that many tiny ones are bounded too.
pub(super) const OVERHEAD_BYTES: usize = 64;
/// Largest queue that is kept when it has run empty, in messages.
const MAX_IDLE_CAPACITY: usize = 1_024;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Push {
    Queued,
    /// There was no room: the ring is closed now and has dropped what it held.
    Full,
    /// The peer is gone or going.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Takes nothing more; the writer ends once all is written.
    Finishing,
    Closed,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Bytes>,
    /// What is queued or taken by the writer but not written yet, overhead included.
    bytes: usize,
    phase: Phase,
}

#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    capacity: usize,
    /// Above this many bytes nothing more should be asked of us that makes more of them.
    pause: usize,
    /// Wakes the writer: the queue is no longer empty, or the phase has changed.
    filled: Notify,
    /// Wakes who waits for room or emptiness.
    eased: Notify,
}

impl Ring {
    pub(super) fn new(capacity: usize, pause: usize) -> Self {
        let state = State { queue: VecDeque::new(), bytes: 0, phase: Phase::Open };
        Self { state: Mutex::new(state), capacity, pause, filled: Notify::new(), eased: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Never blocks.
    pub(super) fn push(&self, message: Bytes) -> Push {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Push::Closed;
        }
        let cost = message.len() + OVERHEAD_BYTES;
        if state.bytes + cost > self.capacity {
            drop(state);
            self.close();
            return Push::Full;
        }
        state.bytes += cost;
        let was_empty = state.queue.is_empty();
        state.queue.push_back(message);
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        Push::Queued
    }

    /// Waits for messages and moves all of them into `batch`, which is empty. `false` when none will come any more.
    pub(super) async fn take(&self, batch: &mut VecDeque<Bytes>) -> bool {
        loop {
            {
                let mut state = self.lock();
                if !state.queue.is_empty() {
                    if batch.capacity() > MAX_IDLE_CAPACITY {
                        *batch = VecDeque::new();
                    }
                    std::mem::swap(&mut state.queue, batch);
                    return true;
                }
                if state.phase != Phase::Open {
                    return false;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Notes that whole messages of a batch, costing so much, are written.
    pub(super) fn written(&self, cost: usize) {
        let mut state = self.lock();
        let was_over = state.bytes > self.pause;
        state.bytes = state.bytes.saturating_sub(cost);
        let eased = state.bytes == 0 || (was_over && state.bytes <= self.pause);
        drop(state);
        if eased {
            self.eased.notify_waiters();
        }
    }

    /// Takes nothing more, and ends the writer once all is written.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Finishing;
        }
        drop(state);
        self.filled.notify_one();
        self.eased.notify_waiters();
    }

    /// Takes nothing more and forgets what is queued.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        state.queue = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.filled.notify_one();
        self.eased.notify_waiters();
    }

    /// Returns the bytes that are not written yet.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Waits until the ring is filled no further than to its pause; tells whether that took waiting.
    pub(super) async fn room(&self) -> bool {
        self.at_most(self.pause).await
    }

    /// Waits until all is written, or the ring is closed.
    pub(super) async fn empty(&self) {
        self.at_most(0).await;
    }

    /// Waits until the ring is finished and all is written, or it is closed.
    pub(super) async fn ended(&self) {
        self.until(|state| state.phase != Phase::Open && state.bytes == 0).await;
    }

    async fn at_most(&self, bytes: usize) -> bool {
        self.until(|state| state.bytes <= bytes).await
    }

    /// Waits until that holds; tells whether it had to wait.
    async fn until(&self, holds: impl Fn(&State) -> bool) -> bool {
        let mut waited = false;
        loop {
            let mut eased = pin!(self.eased.notified());
            eased.as_mut().enable();
            if holds(&self.lock()) {
                return waited;
            }
            eased.await;
            waited = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    #[tokio::test]
    async fn a_full_ring_closes_and_holds_nothing() {
        let ring = Ring::new(2 * (100 + OVERHEAD_BYTES), 0);
        assert_eq!(ring.push(message(100)), Push::Queued);
        assert_eq!(ring.push(message(100)), Push::Queued);
        assert_eq!(ring.push(message(0)), Push::Full);
        assert_eq!(ring.bytes(), 0);
        assert_eq!(ring.push(message(0)), Push::Closed);
        assert!(!ring.take(&mut VecDeque::new()).await);
    }

    #[tokio::test]
    async fn what_the_writer_holds_still_counts() {
        let ring = Ring::new(1_000, 500);
        ring.push(message(600));
        let mut batch = VecDeque::new();
        assert!(ring.take(&mut batch).await);
        assert_eq!(ring.bytes(), 600 + OVERHEAD_BYTES);
        assert_eq!(ring.push(message(600)), Push::Full);
    }

    #[tokio::test]
    async fn a_finished_ring_gives_out_what_it_has_and_ends() {
        let ring = Ring::new(1_000, 500);
        ring.push(message(10));
        ring.finish();
        assert_eq!(ring.push(message(10)), Push::Closed);
        let mut batch = VecDeque::new();
        assert!(ring.take(&mut batch).await);
        ring.written(10 + OVERHEAD_BYTES);
        ring.empty().await;
        batch.clear();
        assert!(!ring.take(&mut batch).await);
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let ring = Ring::new(1_000, 500);
        ring.push(message(600));
        let (mut batch, cost) = (VecDeque::new(), 600 + OVERHEAD_BYTES);
        let writer = async {
            ring.take(&mut batch).await;
            tokio::task::yield_now().await;
            ring.written(cost);
        };
        tokio::join!(ring.room(), ring.empty(), writer);
        assert_eq!(ring.bytes(), 0);
    }
}
