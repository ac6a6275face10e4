//! A caller that looks for its answer itself, for a moment, before it sleeps.
//!
//! To sleep and be woken takes longer than most answers: the core sleeps, too, and another task has to read what came. So a caller that is alone looks
//! at the socket instead, as long as that is of use. It does not give way meanwhile: who yields comes after everybody else that wants the core, some milliseconds later.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Core;
use super::calls::Outcome;
use super::link::hand_out;
use super::socket::{Dealer, Reader};
use crate::stream::Came;

/// How long a caller looks for its answer.
const AWAKE: Duration = Duration::from_micros(50);
/// When callers have looked for so long and never slept, the other tasks of the thread have their turn.
const TURN: Duration = Duration::from_micros(200);
/// The more often looking was in vain, the more calls sleep at once: 2 to the power of that, at most of this.
const MOST_VAIN: u32 = 8;

/// Whether looking is of use.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// How often it was in vain, less how often it was not.
    vain: u32,
    /// So many calls do not look.
    rest: u32,
    /// For how long callers have looked since others had their turn.
    turn: Duration,
}

impl Listening {
    /// Tells whether the next caller looks.
    fn begin(&mut self) -> bool {
        let looks = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        looks
    }

    /// Notes how it went, and tells whether others should have their turn. What took longer is in vain: others wanted the core.
    fn end(&mut self, took: Duration, found: bool) -> bool {
        let found = found && took <= AWAKE;
        self.vain = if found { self.vain.saturating_sub(1) } else { (self.vain + 1).min(MOST_VAIN) };
        self.rest = if self.vain == 0 { 0 } else { 1 << self.vain };
        self.turn += took;
        let is_over = self.turn > TURN;
        if is_over {
            self.turn = Duration::ZERO;
        }
        is_over
    }
}

/// Reads answers until that of one call is among them, which is returned, or for a moment. Nothing is read while somebody else does.
pub(super) async fn listen(core: &Core, dealer: &Dealer, outcome: &mut oneshot::Receiver<Outcome>) -> Option<Outcome> {
    let (found, is_over) = {
        let mut reader = dealer.free_reader()?;
        if !reader.listening.begin() {
            return None;
        }
        let began = Instant::now();
        let found = read_until(core, dealer, &mut reader, began + AWAKE, outcome);
        let is_over = reader.listening.end(began.elapsed(), found.is_some());
        (found, is_over)
    };
    if found.is_some() && is_over {
        tokio::task::yield_now().await;
    }
    found
}

fn read_until(
    core: &Core,
    dealer: &Dealer,
    reader: &mut Reader,
    deadline: Instant,
    outcome: &mut oneshot::Receiver<Outcome>,
) -> Option<Outcome> {
    loop {
        let read = match dealer.look(reader) {
            Ok(Came::Nothing) => Ok(()),
            Ok(_) => hand_out(core, dealer, reader),
            Err(cause) => Err(cause),
        };
        let found = outcome.try_recv().ok();
        if let Err(cause) = read {
            // The link worker ends the link.
            reader.ended = Some(cause);
            core.work.notify_one();
            return found;
        }
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::calls::Waiting;
    use super::super::socket::Outlet;
    use super::super::{Client, Options};
    use super::*;
    use crate::hello::Kind;
    use crate::stream::split;
    use crate::workdir::Workdir;
    use crate::zmtp::{Engine, Event, SocketType, WireLimits, encode_delimited};

    /// Plays the primary until both sides know one another.
    fn greet(dealer: &Dealer, primary: &mut UnixStream) {
        let mut router = Engine::new(SocketType::Router, WireLimits::default());
        loop {
            match router.poll().unwrap() {
                Some(Event::Ready(_)) => return,
                Some(Event::Send(bytes)) => primary.write_all(&bytes).unwrap(),
                Some(other) => panic!("{other:?}"),
                None => {
                    let mut reader = dealer.reader();
                    dealer.look(&mut reader).unwrap();
                    assert_eq!(dealer.take(&mut reader), Ok(None));
                    let mut said = [0; 256];
                    match primary.read(&mut said) {
                        Ok(read) => router.input().extend_from_slice(&said[..read]),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_caller_that_is_alone_finds_its_answer_where_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::open(Workdir::open(dir.path()).unwrap(), Options::new("inst-Z", Kind::Client));
        let (own, mut primary) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        primary.set_nonblocking(true).unwrap();
        let (input, output) = split(own).unwrap();
        let dealer = Arc::new(Dealer::new("ipc://a", input, output, usize::MAX));
        greet(&dealer, &mut primary);
        client.core.calls().open(Outlet::new(Arc::clone(&dealer)));
        let (reply, mut outcome) = oneshot::channel();
        let call = Waiting { message: Bytes::from_static(b"x"), answered: true, reply };
        client.core.calls().enter(7, call).unwrap();
        let answer = br#"{"jsonrpc":"2.0","id":7,"result":1}"#;
        primary.write_all(&encode_delimited(|out| out.extend_from_slice(answer))).unwrap();
        let found = listen(&client.core, &dealer, &mut outcome).await;
        assert_eq!(found, Some(Ok(Bytes::from_static(answer))));
    }

    #[test]
    fn the_more_often_looking_was_in_vain_the_rarer_it_becomes() {
        let mut listening = Listening::default();
        let mut rests = |found| {
            let rests = std::iter::from_fn(|| (!listening.begin()).then_some(())).count();
            listening.end(Duration::ZERO, found);
            rests
        };
        assert_eq!([(); 10].map(|()| rests(false)), [0, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!([(); 10].map(|()| rests(true)), [256, 128, 64, 32, 16, 8, 4, 2, 0, 0]);
    }

    #[test]
    fn others_have_their_turn_after_some_answers_that_were_found() {
        let mut listening = Listening::default();
        let mut turns = || [(); 10].map(|()| listening.end(AWAKE, true));
        assert_eq!(turns(), [false, false, false, false, true, false, false, false, false, true]);
        assert_eq!(listening.rest, 0);
        assert!(listening.end(TURN + AWAKE, true));
        assert!(listening.rest > 0, "the core was wanted by others");
    }
}
