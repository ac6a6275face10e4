//! What the tasks of one bus share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{BufMut, Bytes};
use serde_json::json;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls::Running;
use super::doors::{Identity, Role};
use super::limits::Limits;
use super::owner;
use super::stats::{BusStats, Counters, Offence, PeerStats, Refusal};
use super::transitions::Transitions;
use crate::access::capability_of;
use crate::envelope::Timestamp;
use crate::fault::Fault;
use crate::hello::GOODBYE;
use crate::methods::{Caller, Flush, Methods};
use crate::stream::{Output, Push, Ring};
use crate::topic::MAX_TOPIC_BYTES;
use crate::zmtp::{Prefixes, Remote, Subscriptions, ZmtpError, encode_delimited};

/// Departures that a receiver may lag behind; the oldest are lost to it beyond that.
const DEPARTURES: usize = 1_024;

/// Locks, whatever happened to an earlier holder: no state here is left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection that has finished its handshake.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) caller: Caller,
    pub(super) role: Role,
    pub(super) ring: Ring,
    pub(super) bytes_in: AtomicU64,
    /// Calls that were refused.
    pub(super) refusals: AtomicU64,
    /// Ends the reader and the writer, and so closes both halves.
    pub(super) gone: CancellationToken,
    /// A permit for each call in flight.
    pub(super) calls: Arc<Semaphore>,
    /// Where its calls are executed; as much room as there are permits.
    pub(super) started: mpsc::Sender<Running>,
    subscriptions: Mutex<Subscriptions>,
    /// The last event that it was sent: with many prefixes it gets one frame all the same.
    last_event: AtomicU64,
    remote: Remote,
    inode: Option<u32>,
    since: Timestamp,
    /// Messages read from it.
    pub(super) read: AtomicU64,
    /// Whether it said hello: then it is told goodbye.
    pub(super) has_said_hello: AtomicBool,
}

impl Peer {
    /// Ends the connection: its socket cannot be written to.
    pub(super) fn unwritable(&self, error: &io::Error) {
        tracing::debug!(peer = self.caller.peer, %error, "peer cannot be written to");
        self.gone.cancel();
    }
}

impl Flush for Peer {
    /// Writes what is queued as far as the socket takes it: nobody has to be woken for that.
    fn flush(&self) {
        if let Err(error) = self.ring.flush() {
            self.unwritable(&error);
        }
    }
}

#[derive(Debug, Default)]
struct Registry {
    subscribers: Vec<Arc<Peer>>,
    callers: Vec<Arc<Peer>>,
    /// Who wants what begins with a prefix: an event costs nothing for those who do not want it.
    audience: Prefixes<Vec<Arc<Peer>>>,
    /// Events published so far.
    events: u64,
}

impl Registry {
    fn remove_from_audience(&mut self, prefix: &[u8], peer: &Peer) {
        let Some(peers) = self.audience.get_mut(prefix) else { return };
        peers.retain(|other| other.caller.peer != peer.caller.peer);
        if peers.is_empty() {
            self.audience.remove(prefix);
        }
    }

    fn of(&mut self, role: Role) -> &mut Vec<Arc<Peer>> {
        match role {
            Role::Pub => &mut self.subscribers,
            Role::Router => &mut self.callers,
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) methods: Methods,
    pub(super) counters: Counters,
    pub(super) transitions: Transitions,
    pub(super) departures: broadcast::Sender<u64>,
    /// A permit for each connection.
    pub(super) places: Arc<Semaphore>,
    /// A permit for each call in flight beyond those that each peer may always have.
    pub(super) calls_in_flight: Arc<Semaphore>,
    /// Ends the acceptors and the handshakes.
    pub(super) accepting: CancellationToken,
    /// What every further call is answered with, once the bus is about to close.
    pub(super) refusal: OnceLock<Fault>,
    /// Ends the reading of requests: each reader then takes leave of its peer.
    pub(super) closing: CancellationToken,
    /// Ends everything.
    pub(super) kill: CancellationToken,
    /// Acceptors, readers and writers.
    pub(super) connections: TaskTracker,
    /// Calls in flight.
    pub(super) calls: TaskTracker,
    registry: Mutex<Registry>,
}

impl Shared {
    pub(super) fn new(limits: Limits, methods: Methods) -> Self {
        Self {
            methods,
            counters: Counters::default(),
            transitions: Transitions::default(),
            departures: broadcast::Sender::new(DEPARTURES),
            places: Arc::new(Semaphore::new(limits.max_connections)),
            calls_in_flight: Arc::new(Semaphore::new(limits.max_calls)),
            accepting: CancellationToken::new(),
            refusal: OnceLock::new(),
            closing: CancellationToken::new(),
            kill: CancellationToken::new(),
            connections: TaskTracker::new(),
            calls: TaskTracker::new(),
            registry: Mutex::default(),
            limits,
        }
    }

    /// Adds a peer that has finished its handshake; its calls come out of the receiver.
    pub(super) fn join(
        &self,
        Identity { caller, inode }: Identity,
        role: Role,
        remote: Remote,
        output: Output,
    ) -> (Arc<Peer>, mpsc::Receiver<Running>) {
        let limits = &self.limits;
        let ring = match role {
            Role::Pub => Ring::new(limits.event_ring_bytes, limits.event_ring_bytes / 2, output),
            Role::Router => Ring::new(limits.reply_ring_bytes, limits.reply_pause_bytes, output),
        };
        let (started, starting) = mpsc::channel(limits.max_calls_per_peer);
        let peer = Arc::new(Peer {
            started,
            caller,
            role,
            ring,
            gone: self.kill.child_token(),
            calls: Arc::new(Semaphore::new(self.limits.max_calls_per_peer)),
            subscriptions: Mutex::default(),
            last_event: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            remote,
            inode,
            since: Timestamp::now(),
            read: AtomicU64::new(0),
            has_said_hello: AtomicBool::new(false),
        });
        self.note(&peer, "connected");
        lock(&self.registry).of(role).push(Arc::clone(&peer));
        (peer, starting)
    }

    fn note(&self, peer: &Peer, what: &'static str) {
        self.transitions.note(&peer.caller, peer.role.name(), what);
    }

    /// Takes a peer out whose connection has ended.
    pub(super) fn part(&self, peer: &Peer) {
        self.note(peer, "closed");
        peer.gone.cancel();
        peer.ring.close();
        let number = peer.caller.peer;
        {
            let mut registry = lock(&self.registry);
            registry.of(peer.role).retain(|other| other.caller.peer != number);
            for prefix in lock(&peer.subscriptions).iter() {
                registry.remove_from_audience(prefix, peer);
            }
        }
        if peer.role == Role::Router && self.departures.send(number).is_err() {
            tracing::trace!(peer = number, "nobody watches departures");
        }
    }

    pub(super) fn subscribe(&self, peer: &Arc<Peer>, prefix: &[u8]) -> Result<(), ZmtpError> {
        let mut registry = lock(&self.registry);
        if lock(&peer.subscriptions).add(prefix, &self.limits.wire)? {
            match registry.audience.get_mut(prefix) {
                Some(peers) => peers.push(Arc::clone(peer)),
                None => registry.audience.insert(prefix, vec![Arc::clone(peer)]),
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&self, peer: &Peer, prefix: &[u8]) {
        let mut registry = lock(&self.registry);
        if lock(&peer.subscriptions).remove(prefix) {
            registry.remove_from_audience(prefix, peer);
        }
    }

    /// Tells whether anybody may want an event of this topic: if not, it need not even be encoded.
    pub(super) fn has_audience(&self, topic: &str) -> bool {
        // A frame begins with its topic and a NUL.
        let mut start = [0; MAX_TOPIC_BYTES + 1];
        let Some(name) = start.get_mut(..topic.len()) else { return true };
        name.copy_from_slice(topic.as_bytes());
        start.get(..=topic.len()).is_none_or(|start| lock(&self.registry).audience.touches(start))
    }

    /// Queues a frame for every subscriber of it. `message` makes its message, once a first one is found. One lock is held meanwhile, so that all
    /// subscribers see all frames in one order.
    pub(super) fn publish(&self, frame: &[u8], message: impl Fn() -> Bytes) {
        self.counters.published.fetch_add(1, Relaxed);
        if frame.len() > self.limits.max_outgoing_bytes {
            let detail = format!("an event of {} bytes; the limit is {}", frame.len(), self.limits.max_outgoing_bytes);
            self.counters.refuse(Refusal::EventTooLarge, || Offence { detail, ..Offence::default() });
            return;
        }
        let mut registry = lock(&self.registry);
        registry.events += 1;
        let event = registry.events;
        let mut encoded: Option<Bytes> = None;
        for peer in registry.audience.matching(frame).flatten() {
            if peer.last_event.swap(event, Relaxed) != event {
                self.send(peer, encoded.get_or_insert_with(&message).clone());
            }
        }
    }

    /// Sends a message to a peer by its own task.
    pub(super) fn send(&self, peer: &Peer, message: Bytes) {
        self.queue(peer, message);
        peer.ring.wake();
    }

    /// Queues a message for a peer, until the next flush; one whose ring is full is cut off.
    pub(super) fn queue(&self, peer: &Peer, message: Bytes) {
        match peer.ring.push(message) {
            Push::Queued | Push::Closed => {}
            Push::Full => self.cut_off(peer, "cut off: its queue is full"),
        }
    }

    /// Ends the connection of a peer that does not read what is sent to it.
    pub(super) fn cut_off(&self, peer: &Peer, detail: &str) {
        let why = if peer.role == Role::Pub { Refusal::SlowSubscriber } else { Refusal::SlowCaller };
        self.note(peer, why.name());
        self.refuse(peer, why, || detail.to_owned());
        peer.gone.cancel();
    }

    /// Counts a refusal that met a connected peer.
    pub(super) fn refuse(&self, peer: &Peer, why: Refusal, detail: impl FnOnce() -> String) {
        peer.refusals.fetch_add(1, Relaxed);
        self.counters.refuse(why, || Offence::of(&peer.caller, detail()));
    }

    pub(super) fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers_that(|_| true)
    }

    fn peers_that(&self, matter: impl Fn(&Peer) -> bool) -> Vec<Arc<Peer>> {
        let registry = lock(&self.registry);
        registry.subscribers.iter().chain(&registry.callers).filter(|peer| matter(peer)).cloned().collect()
    }

    /// Says the last word to a peer from which nothing more is read, and lets its writer end.
    pub(super) fn take_leave(&self, peer: &Peer) {
        if peer.has_said_hello.load(Relaxed) {
            let goodbye = json!({"jsonrpc": "2.0", "method": GOODBYE, "params": {"read": peer.read.load(Relaxed)}});
            self.send(peer, encode_delimited(|out| out.put_slice(goodbye.to_string().as_bytes())));
        }
        peer.ring.finish();
    }

    /// Waits until every ring is empty.
    pub(super) async fn flushed(&self) {
        for peer in self.peers_that(|peer| peer.ring.bytes() > 0) {
            peer.ring.empty().await;
        }
    }

    /// Waits until everyone has been told the last word, and all of it is written.
    pub(super) async fn left(&self) {
        for peer in self.peers() {
            peer.ring.ended().await;
        }
    }

    /// Returns how many subscribers would get this frame.
    #[cfg(test)]
    pub(super) fn audience(&self, frame: &[u8]) -> usize {
        let registry = lock(&self.registry);
        let peers = registry.audience.matching(frame).flatten().map(|peer| peer.caller.peer);
        peers.collect::<std::collections::HashSet<_>>().len()
    }

    pub(super) fn stats(&self) -> BusStats {
        let (callers, subscribers, queued_bytes) = {
            let registry = lock(&self.registry);
            let queued = registry.subscribers.iter().chain(&registry.callers).map(|peer| peer.ring.bytes()).sum();
            (registry.callers.len(), registry.subscribers.len(), queued)
        };
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        BusStats {
            callers,
            subscribers,
            calls_in_flight: self.calls.len(),
            queued_bytes,
            accepted: count(&self.counters.accepted),
            calls: count(&self.counters.calls),
            published: count(&self.counters.published),
            refusals: self.counters.refusals(),
        }
    }

    /// Looks at every connection. Reads the descriptors of our processes when a door does not name them.
    pub(super) fn look(&self) -> Vec<PeerStats> {
        let peers = self.peers();
        let unnamed: Vec<u32> = peers.iter().filter_map(|peer| peer.inode).collect();
        let holders = owner::holders(&unnamed);
        let look = |peer: &Arc<Peer>| PeerStats {
            peer: peer.caller.peer,
            socket: peer.role.name(),
            door: peer.caller.door,
            uid: peer.caller.uid,
            pid: peer.caller.pid.or_else(|| holders.get(&peer.inode?).copied()),
            instance_id: peer.caller.hello().map(|hello| hello.instance_id.clone()),
            may: capability_of(&peer.caller),
            socket_type: peer.remote.socket_type.clone(),
            identity: String::from_utf8_lossy(&peer.remote.identity).into_owned(),
            since: peer.since,
            bytes_in: peer.bytes_in.load(Relaxed),
            bytes_out: peer.ring.written(),
            queued_bytes: peer.ring.bytes(),
            subscriptions: lock(&peer.subscriptions).len(),
            calls_in_flight: self.limits.max_calls_per_peer.saturating_sub(peer.calls.available_permits()),
            refusals: peer.refusals.load(Relaxed),
        };
        let mut looks: Vec<_> = peers.iter().map(look).collect();
        looks.sort_unstable_by_key(|look| look.peer);
        looks
    }
}
