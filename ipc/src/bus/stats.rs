//! What the bus has seen and refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// Why something was refused or cut off; the name of each is its key in [`BusStats::refusals`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The peer is another user.
    ForeignUid,
    /// The peer's user cannot be told.
    UnknownUid,
    /// The connection was dialled by its own port.
    SelfConnect,
    /// The handshake took too long, or its place was needed.
    Handshake,
    /// The limit on connections is reached.
    Connections,
    /// No descriptor was left for the connection.
    Descriptors,
    /// The peer broke the protocol or one of its limits.
    Protocol,
    /// The subscriber did not keep up.
    SlowSubscriber,
    /// The caller did not read its answers.
    SlowCaller,
    /// The caller may not do what it asked for.
    Unauthorized,
    /// A limit on calls in flight is reached.
    Busy,
    /// An answer was larger than the limit.
    AnswerTooLarge,
    /// An event was larger than the limit.
    EventTooLarge,
}

const NAMES: [&str; 13] = [
    "foreign_uid",
    "unknown_uid",
    "self_connect",
    "handshake",
    "connections",
    "descriptors",
    "protocol",
    "slow_subscriber",
    "slow_caller",
    "unauthorized",
    "busy",
    "answer_too_large",
    "event_too_large",
];

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) published: AtomicU64,
    refusals: [AtomicU64; NAMES.len()],
}

impl Counters {
    pub(super) fn refuse(&self, why: Refusal) {
        self.refusals[why as usize].fetch_add(1, Relaxed);
    }

    /// Returns the refusals that happened at all.
    pub(super) fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.refusals.iter().map(|count| count.load(Relaxed));
        NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// A look at the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BusStats {
    /// Connected peers that may call.
    pub callers: usize,
    /// Connected peers that follow events.
    pub subscribers: usize,
    /// Calls being executed; a batch counts as one.
    pub calls_in_flight: usize,
    /// Bytes queued for peers, each with a small overhead.
    pub queued_bytes: usize,
    /// Connections accepted since the start, refused ones included.
    pub accepted: u64,
    /// Calls and notifications received since the start.
    pub calls: u64,
    /// Events published since the start.
    pub published: u64,
    /// What was refused or cut off since the start, by reason.
    pub refusals: BTreeMap<&'static str, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_under_its_own_name() {
        let counters = Counters::default();
        counters.refuse(Refusal::ForeignUid);
        counters.refuse(Refusal::EventTooLarge);
        counters.refuse(Refusal::EventTooLarge);
        assert_eq!(counters.refusals(), BTreeMap::from([("foreign_uid", 1), ("event_too_large", 2)]));
        assert_eq!(Refusal::EventTooLarge as usize, NAMES.len() - 1);
    }
}
