//! The last connections that came and went, and why.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::envelope::Timestamp;
use crate::methods::{Caller, Door};

/// Transitions that are kept; the oldest give way.
pub const KEPT_TRANSITIONS: usize = 128;

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// The connection's number.
    pub peer: u64,
    /// How it came in.
    pub door: Door,
    /// Its process, where the door can tell.
    pub pid: Option<u32>,
    /// Which socket of ours it is connected to: `rpc` or `pub`.
    pub socket: &'static str,
    /// `connected`, `closed`, or why it was cut off, by the name of its refusal.
    pub what: &'static str,
}

/// A ring of transitions.
#[derive(Debug, Default)]
pub(super) struct Transitions(Mutex<VecDeque<Transition>>);

impl Transitions {
    pub(super) fn note(&self, caller: &Caller, socket: &'static str, what: &'static str) {
        let Caller { peer, door, pid, .. } = *caller;
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == KEPT_TRANSITIONS {
            ring.pop_front();
        }
        ring.push_back(Transition { at: Timestamp::now(), peer, door, pid, socket, what });
    }

    pub(super) fn list(&self) -> Vec<Transition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_give_way() {
        let transitions = Transitions::default();
        for peer in 0..KEPT_TRANSITIONS as u64 + 3 {
            transitions.note(&Caller::new(peer, Door::Native, None, None), "rpc", "connected");
        }
        let list = transitions.list();
        assert_eq!((list.len(), list[0].peer), (KEPT_TRANSITIONS, 3));
    }
}
