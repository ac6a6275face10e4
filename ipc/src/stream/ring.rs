//! What waits to be written to one peer: bounded in bytes, filled and written from any thread.
//!
//! Whoever has something to say writes it at once, as far as the socket takes it ([`Ring::flush`]); the peer's own task writes what is left
//! when the socket is full, and what many have queued ([`Ring::write_out`]). One at a time writes, in the order of the queue.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Output;

/// What a message costs beside its own bytes, so that many tiny ones are bounded too: its place in the queue, and what its
/// allocation is larger than it.
pub(crate) const OVERHEAD_BYTES: usize = 128;
/// Largest queue that is kept when it has run empty, in messages.
const MAX_IDLE_CAPACITY: usize = 1_024;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    Queued,
    /// There was no room: the ring is closed now and has dropped what it held.
    Full,
    /// The peer is gone or going.
    Closed,
}

/// What a [`Ring::flush`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing waits, or somebody else is writing.
    Done,
    /// The socket takes no more; the peer's task goes on when it does.
    Blocked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Takes nothing more; the writer ends once all is written.
    Finishing,
    Closed,
}

/// Messages in order, of which the first may be written in part.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    /// Bytes of the first message that are written already.
    done: usize,
}

impl Queue {
    /// Writes as much as the socket takes. Returns what the messages cost that are written, and whether the socket is full.
    fn write(&mut self, output: &Output, written: &AtomicU64) -> (usize, io::Result<Flush>) {
        let mut cost = 0;
        while !self.messages.is_empty() {
            match output.try_write(&self.messages, self.done) {
                Ok(0) => return (cost, Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    written.fetch_add(bytes as u64, Relaxed);
                    cost += self.advance(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (cost, Ok(Flush::Blocked)),
                Err(error) => return (cost, Err(error)),
            }
        }
        (cost, Ok(Flush::Done))
    }

    /// Removes what is written now. Returns what the messages cost that are written whole.
    fn advance(&mut self, bytes: usize) -> usize {
        self.done += bytes;
        let mut cost = 0;
        while let Some(first) = self.messages.front().filter(|first| first.len() <= self.done) {
            self.done -= first.len();
            cost += first.len() + OVERHEAD_BYTES;
            self.messages.pop_front();
        }
        cost
    }
}

#[derive(Debug)]
struct State {
    queue: Queue,
    phase: Phase,
    /// Somebody is writing what it took from the queue.
    is_writing: bool,
    /// Gone once the ring is closed, and with it our half of the connection.
    output: Option<Arc<Output>>,
}

#[derive(Debug)]
pub(crate) struct Ring {
    state: Mutex<State>,
    /// What is queued or being written, overhead included. Changed under the lock, looked at without.
    bytes: AtomicUsize,
    capacity: usize,
    /// Above this many bytes nothing more should be asked of us that makes more of them.
    pause: usize,
    /// Wakes the peer's task: there is something to write, or the phase has changed.
    filled: Notify,
    /// Wakes who waits for room or emptiness.
    eased: Notify,
    written: AtomicU64,
}

impl Ring {
    pub(crate) fn new(capacity: usize, pause: usize, output: Output) -> Self {
        let state =
            State { queue: Queue::default(), phase: Phase::Open, is_writing: false, output: Some(Arc::new(output)) };
        Self {
            state: Mutex::new(state),
            bytes: AtomicUsize::new(0),
            capacity,
            pause,
            filled: Notify::new(),
            eased: Notify::new(),
            written: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Never blocks. It is written by the next [`Ring::flush`], or by the peer's task after [`Ring::wake`].
    pub(crate) fn push(&self, message: Bytes) -> Push {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Push::Closed;
        }
        let cost = message.len() + OVERHEAD_BYTES;
        let bytes = self.bytes() + cost;
        if bytes > self.capacity {
            drop(state);
            self.close();
            return Push::Full;
        }
        self.bytes.store(bytes, Relaxed);
        state.queue.messages.push_back(message);
        Push::Queued
    }

    /// Lets the peer's task write what is queued.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Writes what is queued as far as the socket takes it. Never blocks.
    pub(crate) fn flush(&self) -> io::Result<Flush> {
        while let Some((output, mut queue)) = self.begin() {
            let (cost, flushed) = queue.write(&output, &self.written);
            self.end(queue, cost);
            if !matches!(flushed, Ok(Flush::Done)) {
                self.wake();
                return flushed;
            }
        }
        Ok(Flush::Done)
    }

    /// Takes what is queued, unless somebody else is writing.
    fn begin(&self) -> Option<(Arc<Output>, Queue)> {
        let mut state = self.lock();
        if state.is_writing || state.queue.messages.is_empty() {
            return None;
        }
        let output = state.output.clone()?;
        state.is_writing = true;
        Some((output, std::mem::take(&mut state.queue)))
    }

    /// Puts back what is not written; the messages that are cost so much.
    fn end(&self, mut rest: Queue, cost: usize) {
        let mut state = self.lock();
        state.is_writing = false;
        if state.phase == Phase::Closed {
            return;
        }
        if !rest.messages.is_empty() {
            rest.messages.append(&mut state.queue.messages);
            state.queue = rest;
        } else if state.queue.messages.is_empty() && rest.messages.capacity() <= MAX_IDLE_CAPACITY {
            state.queue = rest;
        }
        let before = self.bytes();
        let bytes = before.saturating_sub(cost);
        self.bytes.store(bytes, Relaxed);
        let eased = bytes == 0 || (before > self.pause && bytes <= self.pause);
        let is_ending = state.phase != Phase::Open;
        drop(state);
        if eased {
            self.eased.notify_waiters();
        }
        if is_ending {
            self.wake();
        }
    }

    /// Writes what comes until the ring is finished and empty, or closed. Fails with `TimedOut` when the peer reads nothing for so long.
    pub(crate) async fn write_out(&self, patience: Duration) -> io::Result<()> {
        while let Some(output) = self.wanted().await {
            if self.flush()? == Flush::Blocked {
                timeout(patience, output.writable()).await??;
            }
        }
        Ok(())
    }

    /// Waits until there is something to write; `None` when nothing will come any more.
    async fn wanted(&self) -> Option<Arc<Output>> {
        loop {
            {
                let state = self.lock();
                if state.phase == Phase::Closed {
                    return None;
                }
                if !state.is_writing {
                    match state.phase {
                        _ if !state.queue.messages.is_empty() => return state.output.clone(),
                        Phase::Open => {}
                        Phase::Finishing | Phase::Closed => return None,
                    }
                }
            }
            self.filled.notified().await;
        }
    }

    /// Returns the bytes that were written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Takes nothing more, and ends the writer once all is written.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Finishing;
        }
        drop(state);
        self.filled.notify_one();
        self.eased.notify_waiters();
    }

    /// Takes nothing more, forgets what is queued, and lets go of our half of the connection.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        state.queue = Queue::default();
        self.bytes.store(0, Relaxed);
        state.output = None;
        drop(state);
        self.filled.notify_one();
        self.eased.notify_waiters();
    }

    /// Tells whether more is queued than should be.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes() > self.pause
    }

    /// Returns the bytes that are not written yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Waits until the ring is filled no further than to its pause; tells whether that took waiting.
    pub(crate) async fn room(&self) -> bool {
        self.is_over() && self.at_most(self.pause).await
    }

    /// Waits until all is written, or the ring is closed.
    pub(crate) async fn empty(&self) {
        self.at_most(0).await;
    }

    /// Waits until the ring is finished and all is written, or it is closed.
    pub(crate) async fn ended(&self) {
        self.until(|phase, bytes| phase != Phase::Open && bytes == 0).await;
    }

    async fn at_most(&self, bytes: usize) -> bool {
        self.until(|_, queued| queued <= bytes).await
    }

    /// Waits until that holds; tells whether it had to wait.
    async fn until(&self, holds: impl Fn(Phase, usize) -> bool) -> bool {
        let mut waited = false;
        loop {
            let mut eased = pin!(self.eased.notified());
            eased.as_mut().enable();
            let phase = self.lock().phase;
            if holds(phase, self.bytes()) {
                return waited;
            }
            eased.await;
            waited = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::super::split;
    use super::*;

    /// A ring, and the peer that it writes to.
    fn ring(capacity: usize, pause: usize) -> (Ring, UnixStream) {
        let (own, peer) = UnixStream::pair().unwrap();
        (Ring::new(capacity, pause, split(own.into_std().unwrap()).unwrap().1), peer)
    }

    fn message(size: usize) -> Bytes {
        Bytes::from(vec![7; size])
    }

    /// Writes until the socket takes no more; returns the bytes that still wait.
    async fn fill(ring: &Ring) -> usize {
        loop {
            assert_eq!(ring.push(message(10_000)), Push::Queued);
            // The first write of a socket may find that the runtime has not heard of it yet.
            if ring.flush().unwrap() == Flush::Blocked && ring.written() > 0 {
                return ring.bytes();
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_full_ring_closes_and_holds_nothing() {
        let (ring, mut peer) = ring(2 * (100 + OVERHEAD_BYTES), 0);
        assert_eq!(ring.push(message(100)), Push::Queued);
        assert_eq!(ring.push(message(100)), Push::Queued);
        assert_eq!(ring.push(message(0)), Push::Full);
        assert_eq!(ring.bytes(), 0);
        assert_eq!(ring.push(message(0)), Push::Closed);
        assert_eq!(ring.flush().unwrap(), Flush::Done);
        ring.write_out(Duration::ZERO).await.unwrap();
        assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0, "our half is closed");
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_written_by_the_task_in_order() {
        let (ring, mut peer) = ring(64 << 20, 32 << 20);
        let left = fill(&ring).await;
        assert!(left > 0 && ring.is_over() == (left > 32 << 20));
        ring.push(Bytes::from_static(b"last"));
        ring.finish();
        let reading = async {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            all
        };
        let writing = async {
            ring.write_out(Duration::from_secs(20)).await.unwrap();
            ring.close();
        };
        let (all, ()) = tokio::join!(reading, writing);
        assert_eq!(all.len() as u64, ring.written());
        assert!(all.ends_with(b"last") && all[..all.len() - 4].iter().all(|byte| *byte == 7));
        assert_eq!((all.len() - 4) % 10_000, 0);
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_given_up() {
        let (ring, _peer) = ring(64 << 20, 32 << 20);
        fill(&ring).await;
        let ended = ring.write_out(Duration::from_millis(1)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn what_is_being_written_still_counts_and_nobody_else_writes() {
        let (ring, _peer) = ring(1_000, 500);
        ring.push(message(600));
        let (_output, taken) = ring.begin().unwrap();
        assert_eq!(ring.bytes(), 600 + OVERHEAD_BYTES);
        assert_eq!(ring.push(message(10)), Push::Queued);
        assert_eq!((ring.flush().unwrap(), ring.written()), (Flush::Done, 0));
        ring.end(taken, 0);
        assert_eq!(ring.begin().unwrap().1.messages.len(), 2);
        assert_eq!(ring.push(message(600)), Push::Full);
    }

    #[tokio::test]
    async fn a_finished_ring_gives_out_what_it_has_and_ends() {
        let (ring, mut peer) = ring(1_000, 500);
        ring.push(message(10));
        ring.finish();
        assert_eq!(ring.push(message(10)), Push::Closed);
        ring.write_out(Duration::from_secs(20)).await.unwrap();
        ring.ended().await;
        assert_eq!(peer.read(&mut [0; 20]).await.unwrap(), 10);
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let (ring, _peer) = ring(1_000, 500);
        ring.push(message(600));
        let writer = async {
            ring.finish();
            ring.write_out(Duration::from_secs(20)).await.unwrap();
        };
        assert!(ring.is_over());
        tokio::join!(ring.room(), ring.empty(), writer);
        assert_eq!(ring.bytes(), 0);
    }
}
