//! Who is connected to the primary.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pando_ipc::{Hello, Kind, Timestamp};
use tokio::time::Instant;

/// After so long without a heartbeat, of which there is one every 5 s, a connected instance is stale: it hangs, or is stopped.
const STALE_AFTER: Duration = Duration::from_secs(12);
/// Instances that left in this term and are still named; the oldest give way.
const REMEMBERED: usize = 16;

/// Whether a member is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is connected and speaks.
    Online,
    /// It is connected, but says nothing.
    Stale,
    /// It has left.
    Gone,
}

impl Presence {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Stale => "stale",
            Self::Gone => "gone",
        }
    }
}

/// A peer that has said hello.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// What it said of itself. Its id is a label: nothing is allowed because of it.
    pub(crate) hello: Hello,
    /// When it said so.
    pub(crate) since: Timestamp,
    /// When it said something last: hello or a heartbeat.
    heard: Instant,
    is_gone: bool,
}

impl Member {
    /// Tells whether it is there. Clients say nothing of their own accord: they are there as long as they are connected.
    pub(crate) fn presence(&self, now: Instant) -> Presence {
        match self.hello.kind {
            _ if self.is_gone => Presence::Gone,
            Kind::Instance if now.duration_since(self.heard) > STALE_AFTER => Presence::Stale,
            _ => Presence::Online,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<u64, Member>,
    gone: VecDeque<Member>,
}

/// The peers that have said hello, by connection.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<State>);

impl Roster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a peer; true when it is an instance that was not here before.
    pub(crate) fn enter(&self, peer: u64, hello: Hello) -> bool {
        let mut state = self.state();
        let is_new = hello.kind == Kind::Instance && !state.members.values().any(|known| same(&known.hello, &hello));
        state.gone.retain(|known| !same(&known.hello, &hello));
        let (since, heard) = (Timestamp::now(), Instant::now());
        state.members.insert(peer, Member { hello, since, heard, is_gone: false });
        is_new
    }

    /// Notes that an instance gave a sign of life.
    pub(crate) fn heard(&self, instance_id: &str) {
        let now = Instant::now();
        for member in self.state().members.values_mut().filter(|member| member.hello.instance_id == instance_id) {
            member.heard = now;
        }
    }

    /// Strikes a connection out; returns the member when it was an instance's last one.
    pub(crate) fn strike(&self, peer: u64) -> Option<Member> {
        let mut state = self.state();
        let mut gone = state.members.remove(&peer)?;
        gone.is_gone = true;
        let is_last =
            gone.hello.kind == Kind::Instance && !state.members.values().any(|known| same(&known.hello, &gone.hello));
        if !is_last {
            return None;
        }
        if state.gone.len() == REMEMBERED {
            state.gone.pop_front();
        }
        state.gone.push_back(gone.clone());
        Some(gone)
    }

    /// Returns how many instances are connected.
    pub(crate) fn instances(&self) -> u64 {
        self.list().iter().filter(|member| member.hello.kind == Kind::Instance).count() as u64
    }

    /// Returns the instances that left in this term, the last ones of them.
    pub(crate) fn gone(&self) -> Vec<Member> {
        self.state().gone.iter().cloned().collect()
    }

    /// Returns everyone, each once, in order of arrival.
    pub(crate) fn list(&self) -> Vec<Member> {
        let state = self.state();
        let mut list: Vec<Member> = Vec::new();
        for member in state.members.values() {
            match list.iter_mut().find(|known| same(&known.hello, &member.hello)) {
                Some(known) => known.heard = known.heard.max(member.heard),
                None => list.push(member.clone()),
            }
        }
        list
    }

    /// Returns the instance that arrived last, or the one called `id` when it is here.
    pub(crate) fn newest_instance(&self, id: Option<&str>) -> Option<String> {
        let members = &self.state().members;
        let mut instances = members.values().rev().filter(|member| member.hello.kind == Kind::Instance);
        let found = instances.find(|member| id.is_none_or(|id| member.hello.instance_id == id))?;
        Some(found.hello.instance_id.clone())
    }
}

fn same(a: &Hello, b: &Hello) -> bool {
    a.kind == b.kind && a.instance_id == b.instance_id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(id: &str, kind: Kind) -> Hello {
        Hello { instance_id: id.into(), kind, pid: 1, version: String::new(), protocol: 1, headless: false }
    }

    #[test]
    fn an_instance_joins_with_its_first_link_and_leaves_with_its_last() {
        let roster = Roster::default();
        assert!(roster.enter(1, hello("a", Kind::Instance)));
        assert!(!roster.enter(2, hello("a", Kind::Instance)));
        assert!(!roster.enter(3, hello("c", Kind::Client)));
        assert_eq!(roster.list().len(), 2);
        assert!(roster.enter(4, hello("b", Kind::Instance)));
        assert_eq!(roster.newest_instance(None).as_deref(), Some("b"));
        assert_eq!(
            (roster.newest_instance(Some("a")).as_deref(), roster.newest_instance(Some("c"))),
            (Some("a"), None)
        );
        assert!(roster.strike(4).is_some());
        assert!(roster.strike(1).is_none());
        assert_eq!(roster.strike(2).unwrap().hello.instance_id, "a");
        assert!(roster.strike(3).is_none() && roster.strike(3).is_none());
        assert_eq!((roster.list().len(), roster.gone().len()), (0, 2), "those that left are remembered");
        assert!(roster.enter(4, hello("a", Kind::Instance)));
        assert_eq!((roster.gone().len(), roster.instances()), (1, 1));
    }

    #[test]
    fn whoever_is_connected_and_silent_is_stale() {
        let roster = Roster::default();
        roster.enter(1, hello("a", Kind::Instance));
        roster.enter(2, hello("c", Kind::Client));
        roster.enter(3, hello("b", Kind::Instance));
        roster.strike(3);
        let all = [roster.list(), roster.gone()].concat();
        let presence = |now: Instant| all.iter().map(|member| member.presence(now).name()).collect::<Vec<_>>();
        assert_eq!(presence(Instant::now()), ["online", "online", "gone"]);
        let later = Instant::now() + STALE_AFTER + Duration::from_secs(1);
        assert_eq!(presence(later), ["stale", "online", "gone"]);
    }
}
