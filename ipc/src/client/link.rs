//! Keeps the link: finds the primary, sends what waits, hands out the answers, notices the loss, and again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Interval, MissedTickBehavior, timeout};

use super::calls::Outcome;
use super::error::{CallError, Cause};
use super::socket::{Dealer, Outlet, Reader};
use super::{Core, Link, Silence, dial, flush};
use crate::failpoint::{self, Point};
use crate::fault::Code;
use crate::hello::GOODBYE;
use crate::lock::{Holder, LockInfo, read_lock_for_path};
use crate::rpc::{Incoming, parse_request, parse_response, result_text};

/// Pauses between attempts, while somebody waits for the link; the last one repeats.
const PAUSES_MS: [u64; 7] = [1, 2, 5, 10, 20, 50, 100];
/// Pause between attempts when nobody waits; it ends when somebody does.
const IDLE_PAUSE: Duration = Duration::from_millis(500);
/// For so long after the loss of a link its primary is not dialled again, but another one is as soon as it is there.
const LOST_PAUSE: Duration = Duration::from_millis(4);
/// A link that lasted so long was a good one: the next attempt follows at once.
const SETTLED: Duration = Duration::from_millis(100);
/// How often the link is looked at.
const TICK: Duration = Duration::from_millis(500);
/// After so many silent ticks the primary is asked for a sign of life: 1 s.
const PING_AFTER_TICKS: u32 = 2;
/// After so many it is reported as unresponsive: 2 s.
const UNRESPONSIVE_AFTER_TICKS: u32 = 4;
/// After so many the link is given up: 6 s.
const LOST_AFTER_TICKS: u32 = 12;

/// Why a link ends that the primary ended in good order.
const LEFT: &str = "the primary has left";
/// Why a link ends whose primary refuses to be one, or is not the one that the lock file names.
const SUPERSEDED: &str = "it is not the primary any more";

/// The growing pauses between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff(usize);

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let pause = PAUSES_MS[self.0];
        self.0 = (self.0 + 1).min(PAUSES_MS.len() - 1);
        Duration::from_millis(pause)
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }

    /// Starts over when what ended now had lasted.
    pub(super) fn ended(&mut self, since: Instant) {
        if since.elapsed() >= SETTLED {
            self.reset();
        }
    }

    fn is_spent(&self) -> bool {
        self.0 + 1 == PAUSES_MS.len()
    }
}

/// What a tick of silence asks for.
#[derive(Debug, PartialEq)]
enum Beat {
    Nothing,
    Ping,
    Report,
    GiveUp,
}

/// Whether the holder of the lock still speaks. It counts ticks, not time, so that our own long sleep is not held against it.
#[derive(Debug, Default)]
struct Pulse {
    silent_ticks: u32,
    /// Whose silence is counted.
    holder: Option<LockInfo>,
}

impl Pulse {
    /// Something was heard; tells whether the holder had been reported as unresponsive.
    fn heard(&mut self) -> bool {
        std::mem::take(&mut self.silent_ticks) >= UNRESPONSIVE_AFTER_TICKS
    }

    /// Counts a tick in which `holder` has said nothing. With another one the count starts over.
    fn tick(&mut self, holder: &LockInfo) -> Beat {
        if self.holder.as_ref() != Some(holder) {
            *self = Self { silent_ticks: 0, holder: Some(holder.clone()) };
        }
        self.silent_ticks += 1;
        match self.silent_ticks {
            PING_AFTER_TICKS => Beat::Ping,
            LOST_AFTER_TICKS.. => Beat::GiveUp,
            UNRESPONSIVE_AFTER_TICKS.. => Beat::Report,
            _ => Beat::Nothing,
        }
    }

    /// Returns what to report of a holder that has said nothing for too long.
    fn silence(&self) -> Option<Silence> {
        let holder = self.holder.clone().filter(|_| self.silent_ticks >= UNRESPONSIVE_AFTER_TICKS)?;
        Some(Silence { holder: Holder::new(holder), lasted: TICK * self.silent_ticks })
    }
}

/// The ticks in which a link, or the search for one, is looked at.
fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Keeps the link until the client is closed; then fails whatever still waits.
pub(super) async fn keep(core: &Core) {
    let mut backoff = Backoff::default();
    let mut pulse = Pulse::default();
    let mut number = 0;
    let mut lost = None;
    let endless = async {
        loop {
            let (dealer, outlet, link) = linked(core, lost.as_ref(), &mut backoff, &mut pulse).await;
            number += 1;
            tracing::debug!(instance = link.info.instance_id, epoch = link.welcome.epoch, "linked to the primary");
            let (since, epoch) = (Instant::now(), link.welcome.epoch);
            core.link.send_replace(Some(Link { number, ..link.clone() }));
            core.calls().open(outlet);
            failpoint::hit(Point::ClientLinked);
            let cause = pump(core, &dealer, &link, &mut pulse).await;
            tracing::debug!(epoch, %cause, "link lost");
            core.set_trouble(cause.clone());
            core.calls().lose(&cause);
            core.link.send_replace(None);
            backoff.ended(since);
            lost = Some(link.info);
        }
    };
    let _never: Option<()> = core.stop.run_until_cancelled(endless).await;
    core.calls().close();
    core.link.send_replace(None);
}

/// Tries until there is a link, and tells meanwhile when whoever holds the lock says nothing.
async fn linked(
    core: &Core,
    lost: Option<&LockInfo>,
    backoff: &mut Backoff,
    pulse: &mut Pulse,
) -> (Arc<Dealer>, Outlet, Link) {
    let mut ticks = ticks();
    let connected = async {
        if lost.is_some() {
            // Most often it is gone, and its successor needs the processor more than we do.
            drop(timeout(LOST_PAUSE, dial::changed(&core.workdir, lost)).await);
        }
        connected(core, backoff).await
    };
    tokio::pin!(connected);
    loop {
        tokio::select! {
            linked = &mut connected => {
                pulse.heard();
                core.report(None);
                return linked;
            }
            _ = ticks.tick() => match dial::advertised(&core.workdir) {
                Ok(holder) => {
                    pulse.tick(&holder);
                    core.report(pulse.silence());
                }
                Err(_nobody) => {
                    *pulse = Pulse::default();
                    core.report(None);
                }
            },
        }
    }
}

/// Tries until there is a link.
async fn connected(core: &Core, backoff: &mut Backoff) -> (Arc<Dealer>, Outlet, Link) {
    loop {
        let seen = read_lock_for_path(&core.workdir).ok();
        let cause = match dial::advertised(&core.workdir) {
            Ok(info) => {
                core.note_dialling(&info.instance_id);
                tokio::select! {
                    dialled = dial::dial(info.clone(), &core.options) => match dialled {
                        Ok(linked) => return linked,
                        Err(cause) => cause,
                    },
                    () = dial::superseded(&core.workdir, &info) => {
                        backoff.reset();
                        continue;
                    }
                }
            }
            Err(cause) => cause,
        };
        tracing::trace!(%cause, "no link");
        if matches!(cause, Cause::Version { .. }) {
            // Waiting does not make another release of the primary: tell the callers now.
            core.calls().refuse(&cause);
        }
        core.set_trouble(cause);
        if backoff.is_spent() && !core.is_wanted() {
            tokio::select! {
                () = tokio::time::sleep(IDLE_PAUSE) => {}
                () = core.work.notified() => backoff.reset(),
            }
        } else {
            // The next primary says that it is ready by writing the lock file: then no pause is left to wait for.
            drop(timeout(backoff.next(), dial::changed(&core.workdir, seen.as_ref())).await);
        }
    }
}

enum Step {
    Received(Result<(), Cause>),
    Work,
    Tick,
}

/// Moves messages over one link until it is lost, and tells why.
async fn pump(core: &Core, dealer: &Dealer, link: &Link, pulse: &mut Pulse) -> Cause {
    let mut ticks = ticks();
    let mut is_superseded = false;
    loop {
        // The first answers may have come with that to hello.
        if let Err(cause) = hand_out(core, dealer, &mut dealer.reader()) {
            return cause;
        }
        if core.calls().is_gathering() {
            // Whoever was woken has its turn.
            tokio::task::yield_now().await;
        }
        let (ring, blocked) = {
            let mut calls = core.calls();
            if calls.is_done() {
                return dealer.failure(&SUPERSEDED);
            }
            (calls.hand_over(|| core.next_number()), calls.blocked())
        };
        if let Some(ring) = ring {
            flush(&ring);
        }
        let room = async {
            match &blocked {
                Some(ring) => ring.room().await,
                None => pending().await,
            }
        };
        let step = tokio::select! {
            received = dealer.receive() => Step::Received(received),
            () = core.work.notified() => Step::Work,
            _ = room => Step::Work,
            _ = ticks.tick() => Step::Tick,
        };
        // Callers hear answers, too.
        if std::mem::take(&mut dealer.reader().has_heard) && pulse.heard() {
            core.report(None);
        }
        match step {
            Step::Received(Ok(())) | Step::Work => {}
            Step::Received(Err(cause)) => return cause,
            // Its last words may still lie in the socket: they tell what it has read.
            Step::Tick if is_superseded => return dealer.failure(&SUPERSEDED),
            Step::Tick if dial::is_superseded(&core.workdir, &link.info) => {
                is_superseded = true;
                core.calls().hold();
            }
            Step::Tick => match pulse.tick(&link.info) {
                Beat::Nothing => {}
                Beat::Ping => core.calls().ping(core.next_number()),
                Beat::Report => core.report(pulse.silence()),
                Beat::GiveUp => {
                    core.report(pulse.silence());
                    let unknown = || dealer.failure(&"the primary does not answer pings");
                    return core.silent_holder().unwrap_or_else(unknown);
                }
            },
        }
    }
}

/// What a message of the primary means to us.
enum Said {
    /// A call is settled.
    Answer(u64, Outcome),
    /// A call was refused because it is not the primary any more, or will not be soon: it applies nothing, and refuses whatever else it reads.
    NotPrimary(u64),
    /// The last word of one that leaves: how many of our messages it has read.
    Goodbye(u64),
    Nothing,
}

/// Hands out all that was received. What a leaving primary refused or has not read waits for the next one.
pub(super) fn hand_out(core: &Core, dealer: &Dealer, reader: &mut Reader) -> Result<(), Cause> {
    let mut read = None;
    let ended = loop {
        match dealer.take(reader) {
            Ok(Some(body)) => match said(body) {
                Said::Answer(number, outcome) => reader.answers.push((number, outcome)),
                Said::NotPrimary(number) => core.calls().put_back(number),
                Said::Goodbye(messages) => {
                    read = Some(messages);
                    break Err(dealer.failure(&LEFT));
                }
                Said::Nothing => {}
            },
            Ok(None) => break Ok(()),
            Err(cause) => break Err(cause),
        }
    };
    core.settle(&mut reader.answers);
    if let Some(read) = read {
        core.calls().put_back_unread(read);
    }
    match reader.ended.take() {
        // A caller has found it.
        Some(cause) => Err(cause),
        None => ended,
    }
}

/// Tells what a message means. A result is read by whoever waits for it.
fn said(body: Bytes) -> Said {
    // A part of what was received would keep the whole of it for as long as its reader takes.
    let body = if body.is_unique() { body } else { Bytes::copy_from_slice(&body) };
    if let Some((number, _)) = result_text(&body) {
        return Said::Answer(number, Ok(body));
    }
    match parse_response(&body).map(|answer| (answer.id.as_number(), answer.outcome)) {
        Ok((Some(number), Ok(_))) => Said::Answer(number, Ok(body)),
        Ok((Some(number), Err(fault))) if fault.is(Code::NotPrimary) || fault.is(Code::Fenced) => {
            Said::NotPrimary(number)
        }
        Ok((Some(number), Err(fault))) => Said::Answer(number, Err(CallError::Refused(fault))),
        Ok((None, Ok(_))) => goodbye(&body).map_or(Said::Nothing, Said::Goodbye),
        Ok((None, Err(fault))) => {
            tracing::warn!(%fault, "the primary could not read a request of ours");
            Said::Nothing
        }
        Err(error) => {
            tracing::warn!(%error, "unreadable answer from the primary");
            Said::Nothing
        }
    }
}

/// Reads the last word of a leaving primary.
fn goodbye(body: &[u8]) -> Option<u64> {
    let Ok(Incoming::Single(said)) = parse_request(body) else { return None };
    let read = said.params.raw().member("read")?.read().ok()?;
    (said.method == GOODBYE).then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_then_reported_then_ended() {
        let info: LockInfo = serde_json::from_str(include_str!("../../../tests/golden/ipc.lock")).unwrap();
        let mut pulse = Pulse::default();
        let beats: Vec<_> = (0..LOST_AFTER_TICKS).map(|_| pulse.tick(&info)).collect();
        let at = |beat| beats.iter().position(|it| *it == beat).unwrap() + 1;
        assert_eq!((at(Beat::Ping), at(Beat::Report), at(Beat::GiveUp)), (2, 4, 12));
        assert_eq!(pulse.silence().unwrap().lasted, Duration::from_secs(6));
        assert!(pulse.heard());
        assert_eq!((pulse.heard(), pulse.silence(), pulse.tick(&info)), (false, None, Beat::Nothing));
    }

    #[test]
    fn the_silence_of_one_holder_is_not_held_against_the_next() {
        let info: LockInfo = serde_json::from_str(include_str!("../../../tests/golden/ipc.lock")).unwrap();
        let mut pulse = Pulse::default();
        for _ in 0..UNRESPONSIVE_AFTER_TICKS {
            pulse.tick(&info);
        }
        assert!(pulse.silence().is_some());
        let next = LockInfo { epoch: Some(2), ..info };
        assert_eq!((pulse.tick(&next), pulse.silence()), (Beat::Nothing, None));
    }

    #[test]
    fn pauses_grow_to_a_tenth_of_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [1, 2, 5, 10, 20, 50, 100, 100, 100]);
    }
}
