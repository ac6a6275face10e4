//! Accepts connections on one listener and hands each to a task of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::FutureExt;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::doors::{Listener, Role, Stream};
use super::peer::{self, Handshake};
use super::shared::Shared;
use super::stats::{Offence, Refusal};

/// First pause after a failed accept; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause after a failed accept.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Accepts on one listener until the bus stops accepting.
#[derive(Debug)]
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    listener: Listener,
    role: Role,
    /// A permit for each handshake.
    slots: Arc<Semaphore>,
    /// Handshakes, oldest first; finished ones may still stand here.
    handshakes: VecDeque<(Instant, CancellationToken)>,
    /// Given up when descriptors run out, so that the head of the backlog can be accepted and closed.
    reserve: Option<File>,
    pause: Duration,
}

impl Acceptor {
    pub(super) fn new(shared: Arc<Shared>, role: Role, listener: Listener) -> Self {
        let slots = Arc::new(Semaphore::new(shared.limits.max_handshakes));
        let handshakes = VecDeque::new();
        Self { shared, listener, role, slots, handshakes, reserve: spare_descriptor(), pause: FIRST_PAUSE }
    }

    pub(super) async fn run(mut self) {
        let accepting = self.shared.accepting.clone();
        accepting.run_until_cancelled(self.accept_all()).await;
    }

    async fn accept_all(&mut self) {
        loop {
            let Some(slot) = self.slot().await else { return };
            match self.listener.accept().await {
                Ok(stream) => {
                    self.pause = FIRST_PAUSE;
                    self.admit(stream, slot);
                }
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    /// Waits for the place of a handshake. The oldest one gives way once it had its grace.
    async fn slot(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            let free = Arc::clone(&self.slots).acquire_owned();
            let Some((since, _)) = self.handshakes.front() else { return free.await.ok() };
            if let Ok(slot) = timeout_at(*since + self.shared.limits.handshake_grace, free).await {
                return slot.ok();
            }
            if let Some((_, over)) = self.handshakes.pop_front() {
                over.cancel();
            }
        }
    }

    fn admit(&mut self, stream: Stream, slot: OwnedSemaphorePermit) {
        self.shared.counters.accepted.fetch_add(1, Relaxed);
        let Ok(place) = Arc::clone(&self.shared.places).try_acquire_owned() else {
            self.shared.counters.refuse(Refusal::Connections, || Offence::at(stream.door()));
            return;
        };
        let (now, over) = (Instant::now(), self.shared.accepting.child_token());
        self.handshakes.retain(|(_, over)| !over.is_cancelled());
        self.handshakes.push_back((now, over.clone()));
        let handshake = Handshake::new(now + self.shared.limits.handshake_timeout, over, slot);
        let shared = Arc::clone(&self.shared);
        self.shared.connections.spawn(peer::serve(shared, stream, self.role, handshake, place));
    }

    /// Never spins: a failing accept fails again at once, for example while no descriptor is left.
    async fn back_off(&mut self, error: &io::Error) {
        tracing::warn!(%error, role = ?self.role, "cannot accept a connection");
        if matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE)) {
            self.give_way();
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Frees what descriptors it can: those of handshakes that had their grace, and the head of the backlog, which
    /// learns now that there is no room instead of hanging.
    fn give_way(&mut self) {
        let (now, grace) = (Instant::now(), self.shared.limits.handshake_grace);
        let overdue = self.handshakes.iter().take_while(|(since, _)| *since + grace <= now).count();
        for (_, over) in self.handshakes.drain(..overdue) {
            over.cancel();
        }
        if self.reserve.take().is_some()
            && let Some(Ok(refused)) = self.listener.accept().now_or_never()
        {
            self.shared.counters.refuse(Refusal::Descriptors, || Offence::at(refused.door()));
        }
        self.reserve = spare_descriptor();
    }
}

fn spare_descriptor() -> Option<File> {
    File::open("/dev/null").ok()
}
