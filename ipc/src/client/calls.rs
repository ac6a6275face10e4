//! The calls of a client that wait to be sent or to be answered: who decides, without waiting.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fnv::FnvHashMap;
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::error::{CallError, Cause};
use super::socket::{Dealer, Outlet};
use crate::hello::PING;
use crate::rpc::write_request;
use crate::stream::Ring;
use crate::zmtp::encode_delimited;

/// Most calls that wait to be sent, while there is no link or the primary reads slowly. One more fails with [`Cause::Busy`].
pub const MAX_WAITING: usize = 16_384;
/// Most messages handed to the socket that the primary has not shown to have read. Further ones wait.
pub const MAX_UNREAD: usize = 65_536;

/// How many bytes of what many callers say wait for the link worker, who writes it together. What is more is written by whoever says it: the
/// primary answers the first while the others still speak.
const GATHERED_BYTES: usize = 8 << 10;

/// What a notification is answered with: nothing, by us.
const VOID: &[u8] = br#"{"jsonrpc":"2.0","id":0,"result":null}"#;

/// What becomes of a call: its answer as it came.
pub(super) type Outcome = Result<Bytes, CallError>;
pub(super) type Reply = oneshot::Sender<Outcome>;

/// Returns the message of a request, or of a notification when it has no number.
pub(super) fn encode(number: Option<u64>, method: &str, params: &impl Serialize) -> Bytes {
    encode_delimited(|out| write_request(out, number, method, params))
}

/// A request that waits to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The message as it goes over the wire.
    pub(super) message: Bytes,
    /// Whether the primary answers; a notification is settled once it is handed over.
    pub(super) answered: bool,
    /// Who wants to know.
    pub(super) reply: Reply,
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

/// What a caller does once its call is among the others.
#[derive(Debug)]
pub(super) enum Next {
    /// It writes what is handed over.
    Write(Arc<Dealer>),
    /// It does the same, and is the only one that waits for an answer.
    WriteAlone(Arc<Dealer>),
    /// It leaves that to the link worker, which must be woken.
    Wake,
    /// The link worker knows.
    Nothing,
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
    /// Where messages go, while there is a link that takes them.
    outlet: Option<Outlet>,
    /// The last answers came several at once: so many callers are about that the link worker writes what they say, together.
    is_busy: bool,
    /// The link worker is about to write what is handed over.
    is_gathering: bool,
    closed: bool,
}

impl Calls {
    /// Takes a call: it is handed over at once, or waits until [`Calls::hand_over`] can do so.
    pub(super) fn enter(&mut self, number: u64, call: Waiting) -> Result<(), Cause> {
        if self.closed {
            return Err(Cause::Closed);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(Cause::Busy { waiting: self.waiting.len() });
        }
        let is_next = self.waiting.is_empty();
        if let Some(call) = if is_next { self.send(number, call) } else { Some(call) } {
            self.waiting.insert(number, call);
        }
        Ok(())
    }

    /// There is a link: what waits may go there.
    pub(super) fn open(&mut self, outlet: Outlet) {
        self.outlet = Some(outlet);
    }

    /// Nothing more is sent over this link; answers may still come.
    pub(super) fn hold(&mut self) {
        self.outlet = None;
    }

    /// So many answers came at once, and as many callers are about to be woken. What several of them say is written together, by the link worker.
    pub(super) fn gather(&mut self, answers: usize) {
        self.is_busy = answers > 1;
        self.is_gathering |= self.is_busy;
    }

    /// Tells whether what is handed over is left to the link worker.
    pub(super) fn is_gathering(&self) -> bool {
        self.is_gathering
    }

    /// Sends what waits, oldest first, as far as the link takes it. Returns where it is to be flushed by the link worker: from here on others do.
    pub(super) fn hand_over(&mut self, ping_number: impl FnOnce() -> u64) -> Option<Arc<Ring>> {
        self.is_gathering = false;
        if self.fence.is_none() && self.unread >= MAX_UNREAD / 2 {
            self.ping(ping_number());
        }
        while let Some((number, call)) = self.waiting.pop_first() {
            if let Some(call) = self.send(number, call) {
                self.waiting.insert(number, call);
                break;
            }
        }
        self.outlet.as_ref().map(|outlet| Arc::clone(outlet.ring()))
    }

    /// Hands a call over: from here on it counts as sent. Returns it where the link takes none.
    fn send(&mut self, number: u64, call: Waiting) -> Option<Waiting> {
        let is_full = self.sent.len() + self.unread >= MAX_UNREAD;
        let Some(outlet) = self.outlet.as_mut().filter(|outlet| !is_full && outlet.has_room()) else {
            return Some(call);
        };
        let place = outlet.push(call.message.clone());
        if call.answered {
            self.sent.insert(number, Sent { waiting: call, place });
        } else {
            self.unread += 1;
            drop(call.reply.send(Ok(Bytes::from_static(VOID))));
        }
        None
    }

    /// Tells the caller of this number what is to be done about what it has handed over, or has not.
    pub(super) fn next(&mut self, number: u64) -> Next {
        let is_ping_due = self.fence.is_none() && self.unread >= MAX_UNREAD / 2;
        let Some(outlet) = self.outlet.as_ref().filter(|_| self.waiting.is_empty() && !is_ping_due) else {
            // There is no link, or it is full, or will be.
            return Next::Wake;
        };
        if self.is_gathering {
            let is_much = outlet.ring().bytes() > GATHERED_BYTES;
            if is_much { Next::Write(Arc::clone(outlet.dealer())) } else { Next::Nothing }
        } else if self.is_busy {
            self.is_gathering = true;
            Next::Wake
        } else if self.sent.len() == 1 && self.sent.contains_key(&number) {
            Next::WriteAlone(Arc::clone(outlet.dealer()))
        } else {
            Next::Write(Arc::clone(outlet.dealer()))
        }
    }

    /// Sends a ping of this number, if there is a link; its answer shows that all sent before it was read.
    pub(super) fn ping(&mut self, number: u64) {
        if let Some(outlet) = &mut self.outlet {
            outlet.push(encode(Some(number), PING, &json!({})));
            self.fence = Some((number, self.unread));
        }
    }

    /// Returns where room is to be waited for: a call waits because the socket is full.
    pub(super) fn blocked(&self) -> Option<Arc<Ring>> {
        let outlet = self.outlet.as_ref().filter(|outlet| !self.waiting.is_empty() && !outlet.has_room())?;
        Some(Arc::clone(outlet.ring()))
    }

    /// Takes a call back that certainly was not applied: it waits for the next link, for nothing more is sent over this one.
    pub(super) fn put_back(&mut self, number: u64) {
        self.hold();
        if let Some(Sent { waiting, .. }) = self.sent.remove(&number) {
            self.waiting.insert(number, waiting);
        }
    }

    /// Takes back every call beyond the first `read` messages of the link: the primary left without having read them.
    pub(super) fn put_back_unread(&mut self, read: u64) {
        self.hold();
        let unread: Vec<_> =
            self.sent.iter().filter(|(_, sent)| sent.place > read).map(|(number, _)| *number).collect();
        for number in unread {
            self.put_back(number);
        }
    }

    /// Tells whether nothing more is sent over this link, and no answer is awaited.
    pub(super) fn is_done(&self) -> bool {
        self.outlet.is_none() && self.sent.is_empty()
    }

    /// Settles a call that is answered, and returns who is to be told.
    pub(super) fn answered(&mut self, number: u64) -> Option<Reply> {
        if let Some((fence, covered)) = self.fence
            && fence == number
        {
            self.unread -= covered.min(self.unread);
            self.fence = None;
        }
        self.sent.remove(&number).map(|sent| sent.waiting.reply)
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
        (self.outlet, self.is_busy, self.is_gathering) = (None, false, false);
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
    use tokio::net::UnixStream;

    use super::*;
    use crate::stream::split;

    fn enter(calls: &mut Calls, number: u64, answered: bool) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        calls.enter(number, Waiting { message: Bytes::from_static(b"x"), answered, reply }).unwrap();
        outcome
    }

    /// A link whose other end reads nothing, and which is told to wait above so many bytes.
    fn linked(calls: &mut Calls, pause: usize) -> UnixStream {
        let (own, peer) = UnixStream::pair().unwrap();
        let (input, output) = split(own.into_std().unwrap()).unwrap();
        calls.open(Outlet::new(Arc::new(Dealer::new("ipc://a", input, output, pause))));
        peer
    }

    /// Sends what waits; no ping is due.
    fn send(calls: &mut Calls) {
        calls.hand_over(|| panic!("a ping"));
    }

    #[tokio::test]
    async fn a_call_is_settled_once_and_by_its_own_number() {
        let mut calls = Calls::default();
        let (mut one, mut two) = (enter(&mut calls, 1, true), enter(&mut calls, 2, true));
        assert!(calls.answered(2).is_none(), "it is not sent yet");
        let _peer = linked(&mut calls, usize::MAX);
        send(&mut calls);
        assert!(!calls.is_wanted());
        let reply = calls.answered(2).unwrap();
        assert!(calls.answered(2).is_none() && calls.answered(7).is_none());
        reply.send(Ok("two".into())).unwrap();
        assert_eq!(two.try_recv().unwrap(), Ok("two".into()));
        assert!(one.try_recv().is_err(), "not answered yet");
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_learns_whether_it_was_sent() {
        let mut calls = Calls::default();
        let _peer = linked(&mut calls, usize::MAX);
        let _sent = enter(&mut calls, 1, true);
        calls.hold();
        let _waits = enter(&mut calls, 2, true);
        assert_eq!(
            (calls.withdraw(1), calls.withdraw(2), calls.withdraw(2)),
            (Withdrawn::Sent, Withdrawn::Unsent, Withdrawn::Settled)
        );
        calls.put_back(1);
        assert!(!calls.is_wanted(), "a withdrawn call is not sent later");
    }

    #[tokio::test]
    async fn a_lost_link_leaves_what_was_not_sent() {
        let mut calls = Calls::default();
        let _peer = linked(&mut calls, usize::MAX);
        let mut sent = enter(&mut calls, 1, true);
        send(&mut calls);
        calls.hold();
        let mut waits = enter(&mut calls, 2, true);
        send(&mut calls);
        assert!(!calls.is_done(), "an answer is awaited");
        calls.lose(&Cause::Closed);
        assert_eq!(sent.try_recv().unwrap(), Err(CallError::Unknown(Cause::Closed)));
        assert!(waits.try_recv().is_err() && calls.is_done());
        let _peer = linked(&mut calls, usize::MAX);
        send(&mut calls);
        assert_eq!(calls.withdraw(2), Withdrawn::Sent);
    }

    #[tokio::test]
    async fn what_a_leaving_primary_has_not_read_is_sent_again_in_order() {
        let mut calls = Calls::default();
        let _peer = linked(&mut calls, usize::MAX);
        let mut receivers: Vec<_> = (1..=4).map(|number| enter(&mut calls, number, true)).collect();
        send(&mut calls);
        calls.put_back(1);
        calls.put_back_unread(2);
        send(&mut calls);
        assert!(!calls.is_done(), "the second was read");
        calls.lose(&Cause::Closed);
        assert_eq!(receivers[1].try_recv().unwrap(), Err(CallError::Unknown(Cause::Closed)));
        assert_eq!(calls.waiting.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[tokio::test]
    async fn what_is_unread_is_bounded_until_a_ping_is_answered() {
        let mut calls = Calls::default();
        let _peer = linked(&mut calls, usize::MAX);
        let mut number = 0;
        let mut send_all = |calls: &mut Calls| {
            let before = number;
            while !calls.is_wanted() {
                number += 1;
                drop(enter(calls, number, false));
                if matches!(calls.next(number), Next::Wake) {
                    calls.hand_over(|| u64::MAX);
                }
            }
            number - before
        };
        assert_eq!(send_all(&mut calls), MAX_UNREAD as u64 + 1);
        assert!(calls.fence.is_some_and(|(ping, covered)| ping == u64::MAX && covered == MAX_UNREAD / 2));
        assert!(calls.answered(u64::MAX).is_none(), "nobody waits for that");
        calls.hand_over(|| u64::MAX);
        assert_eq!(send_all(&mut calls), MAX_UNREAD as u64 / 2);
    }

    #[tokio::test]
    async fn a_call_waits_while_the_socket_is_full() {
        let mut calls = Calls::default();
        let mut peer = linked(&mut calls, 0);
        assert!(calls.blocked().is_none(), "nothing is full yet");
        let _receivers = [enter(&mut calls, 1, true), enter(&mut calls, 2, true)];
        assert!(matches!(calls.next(2), Next::Wake));
        assert_eq!((calls.withdraw(1), calls.is_wanted()), (Withdrawn::Sent, true));
        let ring = calls.blocked().unwrap();
        let writing = ring.write_out(std::time::Duration::from_secs(20));
        tokio::select! {
            ended = writing => panic!("{ended:?}"),
            _ = ring.room() => {}
        }
        tokio::io::AsyncReadExt::read_exact(&mut peer, &mut [0]).await.unwrap();
        send(&mut calls);
        assert_eq!(calls.withdraw(2), Withdrawn::Sent);
    }

    #[tokio::test]
    async fn while_many_call_the_link_worker_writes_for_them() {
        let mut calls = Calls::default();
        let _peer = linked(&mut calls, usize::MAX);
        let next = |calls: &mut Calls, number| {
            drop(enter(calls, number, true));
            calls.next(number)
        };
        assert!(matches!(next(&mut calls, 1), Next::WriteAlone(_)));
        assert!(matches!(calls.next(7), Next::Write(_)), "another one waits, who says this does not");
        calls.gather(2);
        assert!(calls.is_gathering() && matches!(next(&mut calls, 2), Next::Nothing));
        let much = (0..GATHERED_BYTES).map(|_| next(&mut calls, 2)).find(|next| !matches!(next, Next::Nothing));
        assert!(matches!(much, Some(Next::Write(_))) && calls.is_gathering(), "much does not wait");
        let ring = calls.hand_over(|| 7).unwrap();
        assert!(ring.bytes() > GATHERED_BYTES && !calls.is_gathering());
        ring.flush().unwrap();
        assert!(matches!(next(&mut calls, 3), Next::Wake) && matches!(next(&mut calls, 4), Next::Nothing));
        send(&mut calls);
        calls.gather(1);
        assert!(matches!(next(&mut calls, 5), Next::Write(_)));
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut calls = Calls::default();
        let _receivers: Vec<_> = (0..MAX_WAITING as u64).map(|number| enter(&mut calls, number, true)).collect();
        let (reply, _outcome) = oneshot::channel();
        let refused = calls.enter(u64::MAX, Waiting { message: Bytes::new(), answered: true, reply });
        assert_eq!(refused, Err(Cause::Busy { waiting: MAX_WAITING }));
    }
}
