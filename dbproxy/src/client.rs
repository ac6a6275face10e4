//! A client that counts its writes, and knows which of them have been answered.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pando_ipc::Timestamp;
use uuid::Uuid;

use crate::op::OpId;

/// How long a client id is used. The primary remembers for longer which ids it has forgotten, see [`crate::writer::KEPT_CLIENTS_FOR`].
pub(crate) const RENEWED_AFTER: Duration = Duration::from_secs(86_400);
/// Writes without an answer that the primary is asked to remember. Beyond it the oldest is given up: [`crate::Db::outcome`] cannot tell of it any more.
const MAX_OPEN: usize = 10_000;

/// Hands out op ids. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    id: Uuid,
    made: Instant,
    next: u64,
    /// Writes that have no answer yet.
    open: BTreeSet<u64>,
}

impl Default for State {
    fn default() -> Self {
        Self { id: Uuid::now_v7(), made: Instant::now(), next: 0, open: BTreeSet::new() }
    }
}

impl State {
    /// Tells whether the id is old by the wall clock, which goes on while a machine sleeps, and by which the primary forgets.
    fn is_old(&self, now: i64) -> bool {
        let (made, _) = self.id.get_timestamp().map_or((0, 0), |time| time.to_unix());
        u64::try_from(now).unwrap_or(0).abs_diff(made) >= RENEWED_AFTER.as_secs()
    }
}

/// A write that has begun. Dropped, nobody waits for its answer any more.
#[derive(Debug)]
pub(crate) struct Begun {
    client: Client,
    id: Uuid,
    counter: u64,
    /// Writes below this counter have been answered.
    pub(crate) acked: u64,
    stays_open: bool,
}

impl Client {
    /// Begins a write.
    pub(crate) fn begin(&self) -> Begun {
        let mut state = self.state();
        if state.made.elapsed() >= RENEWED_AFTER || state.is_old(Timestamp::now().unix_seconds()) {
            *state = State::default();
        }
        let (id, counter) = (state.id, state.next);
        state.next += 1;
        state.open.insert(counter);
        if state.open.len() > MAX_OPEN {
            state.open.pop_first();
        }
        let acked = state.open.first().copied().unwrap_or(counter);
        drop(state);
        Begun { client: self.clone(), id, counter, acked, stays_open: false }
    }

    /// Notes that the outcome of a write is known, if it is one of ours.
    pub(crate) fn close(&self, op_id: &OpId) {
        if let OpId::Counted { client, counter } = op_id {
            self.close_own(*client, *counter);
        }
    }

    fn close_own(&self, client: Uuid, counter: u64) {
        let mut state = self.state();
        if state.id == client {
            state.open.remove(&counter);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Begun {
    /// Returns the write's op id.
    pub(crate) fn op_id(&self) -> OpId {
        OpId::Counted { client: self.id, counter: self.counter }
    }

    /// Keeps the write open: its outcome is unknown, and somebody may ask for it.
    pub(crate) fn leave_open(mut self) {
        self.stays_open = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.stays_open {
            self.client.close_own(self.id, self.counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_answer_holds_the_mark() {
        let client = Client::default();
        let first = client.begin();
        let second = client.begin();
        assert_eq!((first.acked, second.acked), (0, 0));
        let unknown = second.op_id();
        drop(first);
        assert_eq!(client.begin().acked, 1);
        second.leave_open();
        assert_eq!(client.begin().acked, 1, "nobody knows what became of the second");
        client.close(&OpId::parse("another"));
        assert_eq!(client.begin().acked, 1);
        client.close(&unknown);
        assert_eq!(client.begin().acked, 5);
    }

    #[test]
    fn an_id_is_renewed_by_the_wall_clock_wherever_that_goes() {
        let state = State::default();
        let (now, day) = (Timestamp::now().unix_seconds(), 86_400);
        assert!(!state.is_old(now) && !state.is_old(now + day / 2));
        assert!(state.is_old(now + day * 2) && state.is_old(now - day * 2));
    }

    #[test]
    fn what_is_never_answered_is_given_up() {
        let client = Client::default();
        for _ in 0..=MAX_OPEN {
            client.begin().leave_open();
        }
        assert_eq!(client.begin().acked, 2);
    }
}
