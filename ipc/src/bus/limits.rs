//! Every bound of the bus, with what happens when it is reached.

use std::time::Duration;

use crate::zmtp::WireLimits;

/// Time from accept to a finished handshake, the check of the peer's uid included. Then the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once, per listener. Beyond it new connections wait in the kernel's backlog, at most until the oldest
/// handshake is [`HANDSHAKE_GRACE`] old, which is then closed in their favour.
pub const MAX_HANDSHAKES: usize = 256;
/// How long a handshake may take while others wait for its place.
pub const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
/// Time from the first byte of a message to its last. Then the connection is closed: whoever sends a byte now and then
/// holds memory and gives nothing. A peer that says nothing at all may do so for ever.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may read nothing while bytes wait for it. Then it is cut off, and what waited is freed.
pub const READ_NOTHING_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at once, both doors and both sockets together. One beyond it is closed at once.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Descriptors that connections leave to the rest of the process: where it may open fewer than both together, the limits
/// on connections and handshakes shrink, so that strangers at the door never keep the database from opening a file.
pub const DESCRIPTORS_KEPT: usize = 64;
/// Of the connections that there may be, one in so many may be in its handshake, per listener: with four listeners the
/// silent ones leave at least half of the places to those who talk.
const HANDSHAKE_SHARE: usize = 8;
/// Bytes queued for one subscriber. One that lets it fill up is cut off; it resumes by replay.
pub const EVENT_RING_BYTES: usize = 8 * 1024 * 1024;
/// Bytes queued for one caller. One that lets its answers fill it up is cut off. It has room for the answers of all calls
/// that were in flight when the pause began: 1,024 of 60 KiB each, or sixteen of the largest.
pub const REPLY_RING_BYTES: usize = 64 * 1024 * 1024;
/// Bytes queued for one caller above which its requests are not read, so that one who reads no answers stops there.
pub const REPLY_PAUSE_BYTES: usize = 256 * 1024;
/// Largest answer, and largest event. A larger answer is replaced by `E_TOO_LARGE`; a larger event is dropped and counted.
pub const MAX_OUTGOING_BYTES: usize = 4 * 1024 * 1024;
/// Calls in flight of one peer. The one beyond it is answered `E_BUSY` at once. A batch counts as one.
pub const MAX_CALLS_PER_PEER: usize = 1_024;
/// Calls in flight of all peers, beyond those that each may always have. The one beyond it is answered `E_BUSY` at once.
pub const MAX_CALLS: usize = 8_192;
/// Calls in flight that a peer may have however many the others have, so that a few of them never keep out the rest.
pub const ALWAYS_CALLS_PER_PEER: usize = 16;

/// What the bus grants to its peers. The default of each field is the constant of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// What one peer may send.
    pub wire: WireLimits,
    /// See [`HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// See [`MAX_HANDSHAKES`].
    pub max_handshakes: usize,
    /// See [`HANDSHAKE_GRACE`].
    pub handshake_grace: Duration,
    /// See [`MESSAGE_TIMEOUT`].
    pub message_timeout: Duration,
    /// See [`READ_NOTHING_TIMEOUT`].
    pub read_nothing_timeout: Duration,
    /// See [`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// See [`EVENT_RING_BYTES`].
    pub event_ring_bytes: usize,
    /// See [`REPLY_RING_BYTES`].
    pub reply_ring_bytes: usize,
    /// See [`REPLY_PAUSE_BYTES`].
    pub reply_pause_bytes: usize,
    /// See [`MAX_OUTGOING_BYTES`].
    pub max_outgoing_bytes: usize,
    /// See [`MAX_CALLS_PER_PEER`].
    pub max_calls_per_peer: usize,
    /// See [`MAX_CALLS`].
    pub max_calls: usize,
    /// See [`ALWAYS_CALLS_PER_PEER`].
    pub always_calls_per_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wire: WireLimits::default(),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_handshakes: MAX_HANDSHAKES,
            handshake_grace: HANDSHAKE_GRACE,
            message_timeout: MESSAGE_TIMEOUT,
            read_nothing_timeout: READ_NOTHING_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            event_ring_bytes: EVENT_RING_BYTES,
            reply_ring_bytes: REPLY_RING_BYTES,
            reply_pause_bytes: REPLY_PAUSE_BYTES,
            max_outgoing_bytes: MAX_OUTGOING_BYTES,
            max_calls_per_peer: MAX_CALLS_PER_PEER,
            max_calls: MAX_CALLS,
            always_calls_per_peer: ALWAYS_CALLS_PER_PEER,
        }
    }
}

impl Limits {
    /// Returns these limits, shrunk to what a process can serve that may open so many descriptors.
    #[must_use]
    pub(super) fn within(self, descriptors: usize) -> Self {
        let max_connections = descriptors.saturating_sub(DESCRIPTORS_KEPT).clamp(1, self.max_connections);
        let max_handshakes = (max_connections / HANDSHAKE_SHARE).clamp(1, self.max_handshakes);
        Self { max_handshakes, max_connections, ..self }
    }

    /// Returns these limits, shrunk to what this process can serve.
    #[must_use]
    pub(super) fn within_this_process(self) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.within(limit.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_mean_few_connections() {
        let check = |descriptors, connections, handshakes| {
            let limits = Limits::default().within(descriptors);
            assert_eq!((limits.max_connections, limits.max_handshakes), (connections, handshakes), "{descriptors}");
        };
        check(usize::MAX, MAX_CONNECTIONS, MAX_HANDSHAKES);
        check(1_024, 960, 120);
        check(256, 192, 24);
        check(10, 1, 1);
    }
}
