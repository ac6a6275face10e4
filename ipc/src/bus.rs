//! The primary's side of the wire: PUB and ROUTER on both doors, bound by our own ZMTP engine.
//!
//! ```text
//!  doors ──► acceptor (one per listener) ──► peer: uid, handshake ──► reader ──► calls ──► Methods
//!                                                 publish ──► ring ──► writer       └──► ring
//! ```
//!
//! No peer can hurt another: what each may send and leave unread is bounded ([`Limits`]), nobody waits for anybody's
//! socket, and a peer beyond a bound is cut off and counted ([`BusStats::refusals`]).

mod acceptor;
mod calls;
mod doors;
mod limits;
mod owner;
mod peer;
mod shared;
mod stats;
mod transitions;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access::Needs;
use crate::envelope::Envelope;
use crate::fault::{Code, Fault};
use crate::lock::Endpoints;
use crate::methods::{Call, Methods};
use crate::ports::Ports;
use crate::rpc::Json;
use crate::workdir::{Workdir, WorkdirError};
use crate::zmtp::{encode_message, encode_message_with};

use acceptor::Acceptor;
use shared::Shared;

pub use limits::*;
pub use stats::{BusStats, Offence, PeerStats, Refused};
pub use transitions::{KEPT_TRANSITIONS, Transition};

/// How long a closing bus waits for peers to close their side, once all is written to them.
const LINGER: Duration = Duration::from_millis(50);

/// Who may come in over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpDoor {
    /// Nobody: no port is bound.
    Closed,
    /// Processes of our own user. Where the system does not tell whose a connection is, the door stays closed.
    #[default]
    OwnUser,
    /// Those, and processes whose user the system does not tell. One that is known to be another user's stays outside.
    Unverified,
}

/// What a bus is started with.
#[derive(Debug, Clone)]
pub struct BusOptions {
    /// The directory whose primary we are.
    pub workdir: Workdir,
    /// Our term; it names the sockets of the native door.
    pub epoch: u64,
    /// Who may come in over TCP.
    pub tcp: TcpDoor,
    /// What is granted to peers: less, where the process may open few descriptors.
    pub limits: Limits,
}

/// Why a bus cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The directory for the sockets cannot be used.
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    /// A Unix socket cannot be bound.
    #[error("cannot listen on {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A TCP port cannot be bound, for another reason than being taken.
    #[error("cannot listen on 127.0.0.1:{port}: {source}")]
    Port {
        /// The port; 0 is any.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// A running bus; clones share it. It ends with [`Bus::shutdown`], or at once and without flushing when the last clone is dropped.
///
/// A method that captures a `Bus` keeps it alive, so such a bus ends by `shutdown` only.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    endpoints: Endpoints,
    ports: Option<Ports>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.accepting.cancel();
        self.shared.kill.cancel();
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("endpoints", &self.inner.endpoints).finish_non_exhaustive()
    }
}

impl Bus {
    /// Binds both doors, then serves. The caller holds the workdir's lock: socket files of former terms are removed.
    ///
    /// The TCP door is on the ports of [`crate::ports_for_path`] or the next free pair; see [`Bus::ports`].
    #[expect(clippy::unused_async, reason = "listeners register with the runtime: async says where it may be called")]
    pub async fn start(options: BusOptions, methods: Methods) -> Result<Self, BusError> {
        let doors = doors::bind(&options)?;
        let shared = Arc::new(Shared::new(options.limits.within_this_process(), methods));
        for (role, listener) in doors.listeners {
            shared.connections.spawn(Acceptor::new(Arc::clone(&shared), role, listener).run());
        }
        Ok(Self { inner: Arc::new(Inner { shared, endpoints: doors.endpoints, ports: doors.ports }) })
    }

    /// Returns the ports of the TCP door; `None` when it is closed.
    pub fn ports(&self) -> Option<Ports> {
        self.inner.ports
    }

    /// Returns where peers connect, the native door first.
    pub fn endpoints(&self) -> Endpoints {
        self.inner.endpoints.clone()
    }

    /// Returns the table of methods that this bus answers.
    pub fn methods(&self) -> &Methods {
        &self.inner.shared.methods
    }

    /// Adds a method; see [`Methods::register`].
    pub fn register_method<F, Fut, R>(&self, name: impl Into<Arc<str>>, needs: impl Into<Needs>, handler: F)
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Fault>> + Send + 'static,
        R: Into<Json>,
    {
        self.methods().register(name, needs, handler);
    }

    /// Queues an event for its subscribers. Never blocks; may be called from any thread, inside a runtime or not.
    ///
    /// All subscribers see all events in one order. An event is not acknowledged: see [`Bus::flush`].
    pub fn publish(&self, envelope: &Envelope) {
        if self.inner.shared.has_audience(envelope.topic.as_str()) {
            let (message, at) = encode_message_with(envelope.expected_bytes(), |out| envelope.append_to(out));
            self.inner.shared.publish(&message[at..], || message.clone());
        } else {
            self.inner.shared.counters.published.fetch_add(1, Relaxed);
        }
    }

    /// Queues an event that is encoded already: topic, NUL, envelope. Otherwise as [`Bus::publish`].
    pub fn publish_frame(&self, frame: &[u8]) {
        self.inner.shared.publish(frame, || encode_message(frame));
    }

    /// Returns the peer number of each caller whose connection ends from now on. A receiver that lags loses the oldest.
    pub fn departures(&self) -> broadcast::Receiver<u64> {
        self.inner.shared.departures.subscribe()
    }

    /// Returns what is connected and queued now, and what was refused since the start.
    pub fn stats(&self) -> BusStats {
        self.inner.shared.stats()
    }

    /// Returns who is connected, oldest first. Takes milliseconds: it finds the processes behind TCP connections.
    pub fn peers(&self) -> Vec<PeerStats> {
        self.inner.shared.look()
    }

    /// Returns the last connections that came and went, oldest first.
    pub fn transitions(&self) -> Vec<Transition> {
        self.inner.shared.transitions.list()
    }

    /// Returns what was refused since the last look, at most one line per reason.
    pub fn take_refusals(&self) -> Vec<Refused> {
        self.inner.shared.counters.take_news()
    }

    /// Waits until all that was queued for peers has been written to their sockets; `false` when time ran out first.
    pub async fn flush(&self, within: Duration) -> bool {
        timeout(within, self.inner.shared.flushed()).await.is_ok()
    }

    /// Answers every further call with `refusal`; what is in flight goes on. The first refusal stands.
    pub fn refuse(&self, refusal: Fault) {
        self.inner.shared.refusal.get_or_init(|| refusal);
    }

    /// Waits until no call is in flight, which needs [`Bus::refuse`] first; `false` when time ran out before.
    pub async fn drain(&self, within: Duration) -> bool {
        let calls = &self.inner.shared.calls;
        calls.close();
        timeout(within, calls.wait()).await.is_ok()
    }

    /// Ends the bus: accepts nothing more, refuses further calls with `E_NOT_PRIMARY` unless [`Bus::refuse`] said otherwise, lets
    /// calls in flight finish, writes what is queued, and closes.
    ///
    /// Peers that have said hello learn at last how many of their messages were read ([`crate::hello::GOODBYE`]), so that they
    /// can send the others again.
    ///
    /// What was published before is delivered to every peer that reads it within the time given. When this returns, all
    /// sockets are closed, the ports are free to bind, and the socket files are gone. A call that has not finished in
    /// time is dropped at its next await.
    pub async fn shutdown(&self, within: Duration) {
        let shared = &self.inner.shared;
        let deadline = Instant::now() + within;
        self.refuse(Fault::new(Code::NotPrimary, "ipc: the primary is leaving; nothing was applied"));
        shared.accepting.cancel();
        shared.connections.close();
        let drained = self.drain(within).await;
        shared.closing.cancel();
        if !drained || timeout_at(deadline, shared.left()).await.is_err() {
            tracing::warn!(?within, stats = ?shared.stats(), "bus closes with calls or messages unfinished");
        } else if timeout(LINGER, shared.connections.wait()).await.is_err() {
            tracing::debug!("some peers keep their connections open");
        }
        shared.kill.cancel();
        shared.connections.wait().await;
    }
}

#[cfg(test)]
mod tests;
