//! The calls of a client that wait to be sent or to be answered: who decides, without waiting.

use std::collections::BTreeMap;

use bytes::Bytes;
use fnv::FnvHashMap;
use tokio::sync::oneshot;

use super::error::{CallError, Cause};
use crate::rpc::Json;

/// Most calls that wait to be sent, while there is no link or the primary reads slowly. One more fails with [`Cause::Busy`].
pub const MAX_WAITING: usize = 16_384;
/// Most messages handed to the socket that the primary has not shown to have read. Further ones wait.
///
/// It lies below the 100,000 messages that the `zeromq` crate queues per peer, so that handing over never blocks.
pub const MAX_UNREAD: usize = 65_536;

pub(super) type Outcome = Result<Json, CallError>;

/// A request that waits to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The message body.
    pub(super) body: Bytes,
    /// Whether the primary answers; a notification is settled once it is handed over.
    pub(super) answered: bool,
    /// Who wants to know.
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// A message to hand to the socket now.
#[derive(Debug, PartialEq)]
pub(super) struct Outgoing {
    pub(super) number: u64,
    pub(super) body: Bytes,
    pub(super) answered: bool,
}

/// A request that was sent and not answered yet.
#[derive(Debug)]
struct Sent {
    waiting: Waiting,
    /// Its place among the messages of the link.
    place: u64,
}

/// How far a call had come when its caller gave up.
#[derive(Debug, PartialEq)]
pub(super) enum Withdrawn {
    /// It was never sent, and will not be.
    Unsent,
    /// It was sent.
    Sent,
    /// It was settled just before.
    Settled,
}

/// Every call from its start to its outcome. A call is in exactly one of the two maps, or settled.
#[derive(Debug, Default)]
pub(super) struct Calls {
    waiting: BTreeMap<u64, Waiting>,
    sent: FnvHashMap<u64, Sent>,
    /// Notifications sent that no later answer has shown to be read.
    unread: usize,
    /// The ping whose answer shows that so many notifications were read.
    fence: Option<(u64, usize)>,
    closed: bool,
}

impl Calls {
    /// Takes a call into the queue.
    pub(super) fn enter(&mut self, number: u64, call: Waiting) -> Result<(), Cause> {
        if self.closed {
            return Err(Cause::Closed);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(Cause::Busy { waiting: self.waiting.len() });
        }
        self.waiting.insert(number, call);
        Ok(())
    }

    /// Takes the oldest waiting call to be sent at once, as the message of this place; from here on it counts as sent.
    pub(super) fn next(&mut self, place: u64) -> Option<Outgoing> {
        if self.sent.len() + self.unread >= MAX_UNREAD {
            return None;
        }
        let (number, waiting) = self.waiting.pop_first()?;
        let outgoing = Outgoing { number, body: waiting.body.clone(), answered: waiting.answered };
        self.sent.insert(number, Sent { waiting, place });
        Some(outgoing)
    }

    /// Takes a call back that certainly was not applied: it waits to be sent again.
    pub(super) fn put_back(&mut self, number: u64) {
        if let Some(Sent { waiting, .. }) = self.sent.remove(&number) {
            self.waiting.insert(number, waiting);
        }
    }

    /// Takes back every call beyond the first `read` messages of the link: the primary left without having read them.
    pub(super) fn put_back_unread(&mut self, read: u64) {
        let unread: Vec<_> =
            self.sent.iter().filter(|(_, sent)| sent.place > read).map(|(number, _)| *number).collect();
        for number in unread {
            self.put_back(number);
        }
    }

    /// Tells whether answers are awaited.
    pub(super) fn awaits_answers(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Settles a notification that the socket took.
    pub(super) fn handed_over(&mut self, number: u64) {
        self.unread += 1;
        self.settle(number, Ok(Json::null()));
    }

    /// Settles a call by its answer; tells whether someone waited for it.
    pub(super) fn answered(&mut self, number: u64, outcome: Outcome) -> bool {
        if let Some((fence, covered)) = self.fence
            && fence == number
        {
            self.unread -= covered.min(self.unread);
            self.fence = None;
        }
        self.settle(number, outcome)
    }

    fn settle(&mut self, number: u64, outcome: Outcome) -> bool {
        self.sent.remove(&number).is_some_and(|sent| sent.waiting.reply.send(outcome).is_ok())
    }

    /// Notes that ping `number` is on its way: its answer shows that all sent before it was read.
    pub(super) fn fence(&mut self, number: u64) {
        self.fence = Some((number, self.unread));
    }

    /// Tells whether so much is unread that a ping should find out more.
    pub(super) fn wants_fence(&self) -> bool {
        self.fence.is_none() && self.unread >= MAX_UNREAD / 2
    }

    /// Tells whether notifications may still be on their way.
    pub(super) fn has_unread(&self) -> bool {
        self.unread > 0
    }

    /// Tells whether a call waits to be sent.
    pub(super) fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns how many calls are neither settled nor forgotten.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }

    /// Forgets a call whose caller no longer waits.
    pub(super) fn withdraw(&mut self, number: u64) -> Withdrawn {
        if self.waiting.remove(&number).is_some() {
            Withdrawn::Unsent
        } else if self.sent.remove(&number).is_some() {
            Withdrawn::Sent
        } else {
            Withdrawn::Settled
        }
    }

    /// The link is gone: of what was sent over it, nothing more will be heard.
    pub(super) fn lose(&mut self, cause: &Cause) {
        for (_, sent) in self.sent.drain() {
            drop(sent.waiting.reply.send(Err(CallError::Unknown(cause.clone()))));
        }
        (self.unread, self.fence) = (0, None);
    }

    /// Waiting is of no use: fails everything that was not sent.
    pub(super) fn refuse(&mut self, cause: &Cause) {
        for (_, Waiting { reply, .. }) in std::mem::take(&mut self.waiting) {
            drop(reply.send(Err(CallError::NotSent(cause.clone()))));
        }
    }

    /// Fails everything, now and later.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.lose(&Cause::Closed);
        self.refuse(&Cause::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(calls: &mut Calls, number: u64, answered: bool) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        calls.enter(number, Waiting { body: Bytes::new(), answered, reply }).unwrap();
        outcome
    }

    #[test]
    fn a_call_is_settled_once_and_by_its_own_number() {
        let mut calls = Calls::default();
        let (mut one, mut two) = (enter(&mut calls, 1, true), enter(&mut calls, 2, true));
        assert_eq!((calls.next(1).unwrap().number, calls.next(2).unwrap().number), (1, 2));
        assert!(calls.answered(2, Ok(Json::of(&"two"))));
        assert!(!calls.answered(2, Ok(Json::of(&"again"))));
        assert!(!calls.answered(7, Ok(Json::of(&"nobody's"))));
        assert_eq!(two.try_recv().unwrap(), Ok(Json::of(&"two")));
        assert!(one.try_recv().is_err(), "not answered yet");
    }

    #[test]
    fn a_caller_that_gives_up_learns_whether_it_was_sent() {
        let mut calls = Calls::default();
        let _receivers = [enter(&mut calls, 1, true), enter(&mut calls, 2, true)];
        let outgoing = calls.next(1).unwrap();
        assert_eq!(
            (calls.withdraw(1), calls.withdraw(2), calls.withdraw(2)),
            (Withdrawn::Sent, Withdrawn::Unsent, Withdrawn::Settled)
        );
        calls.put_back(outgoing.number);
        assert!(calls.next(2).is_none(), "a withdrawn call is not sent later");
    }

    #[test]
    fn a_lost_link_leaves_what_was_not_sent() {
        let mut calls = Calls::default();
        let (mut sent, mut waits) = (enter(&mut calls, 1, true), enter(&mut calls, 2, true));
        calls.next(1).unwrap();
        calls.lose(&Cause::Closed);
        assert_eq!(sent.try_recv().unwrap(), Err(CallError::Unknown(Cause::Closed)));
        assert!(waits.try_recv().is_err());
        assert_eq!(calls.next(1).unwrap().number, 2);
    }

    #[test]
    fn what_a_leaving_primary_has_not_read_is_sent_again_in_order() {
        let mut calls = Calls::default();
        let mut receivers: Vec<_> = (1..=4).map(|number| enter(&mut calls, number, true)).collect();
        for place in 11..=14 {
            calls.next(place).unwrap();
        }
        calls.put_back(1);
        calls.put_back_unread(12);
        assert!(calls.awaits_answers(), "the second was read");
        calls.lose(&Cause::Closed);
        assert_eq!(receivers[1].try_recv().unwrap(), Err(CallError::Unknown(Cause::Closed)));
        let again: Vec<_> = (1..=3).map(|place| calls.next(place).unwrap().number).collect();
        assert_eq!(again, [1, 3, 4]);
    }

    #[test]
    fn what_is_unread_is_bounded_until_a_ping_is_answered() {
        let mut calls = Calls::default();
        let mut number = 0;
        let mut send_all = |calls: &mut Calls| {
            let mut count = 0;
            loop {
                number += 1;
                drop(enter(calls, number, false));
                let Some(outgoing) = calls.next(number) else { break count };
                calls.handed_over(outgoing.number);
                count += 1;
            }
        };
        assert_eq!(send_all(&mut calls), MAX_UNREAD);
        assert!(calls.wants_fence());
        calls.fence(u64::MAX);
        assert!(!calls.wants_fence(), "one ping at a time");
        assert!(!calls.answered(u64::MAX, Ok(Json::null())));
        assert!(send_all(&mut calls) > MAX_UNREAD / 2);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut calls = Calls::default();
        let _receivers: Vec<_> = (0..MAX_WAITING as u64).map(|number| enter(&mut calls, number, true)).collect();
        let (reply, _outcome) = oneshot::channel();
        let refused = calls.enter(u64::MAX, Waiting { body: Bytes::new(), answered: true, reply });
        assert_eq!(refused, Err(Cause::Busy { waiting: MAX_WAITING }));
    }
}
