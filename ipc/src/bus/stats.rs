//! What the bus has seen and refused, and who is connected.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::access::Capability;
use crate::envelope::Timestamp;
use crate::methods::{Caller, Door};

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
    /// The peer began a message and did not finish it in time.
    SlowSender,
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

const NAMES: [&str; 14] = [
    "foreign_uid",
    "unknown_uid",
    "self_connect",
    "handshake",
    "connections",
    "descriptors",
    "protocol",
    "slow_sender",
    "slow_subscriber",
    "slow_caller",
    "unauthorized",
    "busy",
    "answer_too_large",
    "event_too_large",
];

/// One kind of refusal since somebody last looked, and whom the first of them met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Why: a key of [`BusStats::refusals`].
    pub reason: &'static str,
    /// How often since the last look.
    pub count: u64,
    /// Whom, as far as that is known.
    #[serde(flatten)]
    pub offence: Offence,
}

/// Whom a refusal met, and over what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Offence {
    /// How it came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// What it did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Offence {
    /// What somebody unknown did at a door.
    pub(super) fn at(door: Door) -> Self {
        Self { door: Some(door), ..Self::default() }
    }

    /// What a peer did.
    pub(super) fn of(caller: &Caller, detail: impl Into<String>) -> Self {
        Self {
            door: Some(caller.door),
            uid: caller.uid,
            pid: caller.pid,
            instance_id: caller.hello().map(|hello| hello.instance_id.clone()),
            detail: detail.into(),
        }
    }
}

impl Refusal {
    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) published: AtomicU64,
    refusals: [AtomicU64; NAMES.len()],
    /// Per reason: how many were looked at, and the first one since.
    news: Mutex<[(u64, Option<Offence>); NAMES.len()]>,
}

impl Counters {
    /// Counts a refusal. `offence` is asked only when it is the first of its kind since [`Counters::take_news`].
    pub(super) fn refuse(&self, why: Refusal, offence: impl FnOnce() -> Offence) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        self.refusals[why as usize].fetch_add(1, Relaxed);
        news[why as usize].1.get_or_insert_with(offence);
    }

    /// Returns the refusals that happened at all.
    pub(super) fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.refusals.iter().map(|count| count.load(Relaxed));
        NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Returns what was refused since the last look: at most one line per reason, however much it was.
    pub(super) fn take_news(&self) -> Vec<Refused> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = news.iter_mut().zip(&self.refusals).zip(NAMES).filter_map(|(((seen, offence), total), reason)| {
            let offence = offence.take()?;
            let total = total.load(Relaxed);
            let count = total - std::mem::replace(seen, total);
            Some(Refused { reason, count, offence })
        });
        lines.collect()
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

/// A look at one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStats {
    /// Number of the connection, unique for the life of this process.
    pub peer: u64,
    /// Which socket of ours it is connected to: `rpc` or `pub`.
    pub socket: &'static str,
    /// How it came in.
    pub door: Door,
    /// Its user, as the system says, where it can.
    pub uid: Option<u32>,
    /// Its process, as the system says, where it can.
    pub pid: Option<u32>,
    /// What it calls itself, once it said hello.
    pub instance_id: Option<String>,
    /// What it may at most, by what is known of it.
    pub may: Capability,
    /// Its ZeroMQ socket type, as it says.
    pub socket_type: String,
    /// The ZeroMQ identity that it claims: a label.
    pub identity: String,
    /// When its handshake was done.
    pub since: Timestamp,
    /// Bytes received since then.
    pub bytes_in: u64,
    /// Bytes sent since then.
    pub bytes_out: u64,
    /// Bytes queued for it, each message with a small overhead.
    pub queued_bytes: usize,
    /// Its distinct subscriptions.
    pub subscriptions: usize,
    /// Calls of it being executed; a batch counts as one.
    pub calls_in_flight: usize,
    /// Calls of it that were refused.
    pub refusals: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_under_its_own_name() {
        let counters = Counters::default();
        counters.refuse(Refusal::ForeignUid, Offence::default);
        counters.refuse(Refusal::EventTooLarge, Offence::default);
        counters.refuse(Refusal::EventTooLarge, Offence::default);
        assert_eq!(counters.refusals(), BTreeMap::from([("foreign_uid", 1), ("event_too_large", 2)]));
        assert_eq!(Refusal::EventTooLarge as usize, NAMES.len() - 1);
    }

    #[test]
    fn news_is_one_line_per_reason_however_much_was_refused() {
        let counters = Counters::default();
        for uid in [7, 8, 9] {
            counters.refuse(Refusal::ForeignUid, || Offence { uid: Some(uid), ..Offence::at(Door::Tcp) });
        }
        let [line] = &counters.take_news()[..] else { panic!("one line") };
        assert_eq!((line.reason, line.count, line.offence.uid), ("foreign_uid", 3, Some(7)));
        let json = r#"{"reason":"foreign_uid","count":3,"door":"tcp","uid":7}"#;
        assert_eq!(serde_json::to_string(line).unwrap(), json);
        assert!(counters.take_news().is_empty());
        counters.refuse(Refusal::ForeignUid, Offence::default);
        assert_eq!(counters.take_news()[0].count, 1);
    }
}
