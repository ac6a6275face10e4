//! Who is connected to the primary.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pando_ipc::{Hello, Kind, Timestamp};

/// A peer that has said hello.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// What it said of itself. Its id is a label: nothing is allowed because of it.
    pub(crate) hello: Hello,
    /// When it said so.
    pub(crate) since: Timestamp,
}

/// The peers that have said hello, by connection.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<BTreeMap<u64, Member>>);

impl Roster {
    fn members(&self) -> MutexGuard<'_, BTreeMap<u64, Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a peer; true when it is an instance that was not here before.
    pub(crate) fn enter(&self, peer: u64, hello: Hello) -> bool {
        let mut members = self.members();
        let is_new = hello.kind == Kind::Instance && !members.values().any(|known| same(&known.hello, &hello));
        members.insert(peer, Member { hello, since: Timestamp::now() });
        is_new
    }

    /// Strikes a connection out; returns the member when it was an instance's last one.
    pub(crate) fn strike(&self, peer: u64) -> Option<Member> {
        let mut members = self.members();
        let gone = members.remove(&peer)?;
        let is_last =
            gone.hello.kind == Kind::Instance && !members.values().any(|known| same(&known.hello, &gone.hello));
        is_last.then_some(gone)
    }

    /// Returns everyone, each once, in order of arrival.
    pub(crate) fn list(&self) -> Vec<Member> {
        let mut list: Vec<Member> = Vec::new();
        for member in self.members().values() {
            if !list.iter().any(|known| same(&known.hello, &member.hello)) {
                list.push(member.clone());
            }
        }
        list
    }

    /// Returns the instance that arrived last, or the one called `id` when it is here.
    pub(crate) fn newest_instance(&self, id: Option<&str>) -> Option<String> {
        let members = self.members();
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
    }
}
