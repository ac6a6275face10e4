//! A stream of events without gaps: the live stream, and the journal for what it lost.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::history::{History, HistoryError, Page, Resync};
use super::inbox::Delivery;
use super::position::{Position, Verdict};
use super::subscription::Subscription;
use super::{CallError, Client};
use crate::envelope::Envelope;
use crate::hello::HEAD;
use crate::topic::{HEARTBEAT, Pattern, Topic};

/// Most events that are read from the journal at once.
const PAGE: usize = 1_000;
/// Pause after the primary could not be asked for the journal.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Pause after the journal could not be read for a reason that time alone may not mend.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Where a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// With what is published from now on.
    Now,
    /// After the event with this `seq`.
    Seq(u64),
    /// With the oldest event in the journal.
    All,
}

/// What a follower receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// An event.
    Event(Arc<Envelope>),
    /// So many ephemeral events were lost before here.
    Lagged(u64),
    /// Durable events were lost and are gone from the journal: read the state anew.
    Resync(Resync),
}

/// Events of some patterns, gap-free.
///
/// Every durable event that matches is delivered exactly once; events of one topic come in the order of `seq`, and all
/// do when everything (`*`) or one topic is followed. With several topics the order holds too, unless the stream loses
/// a single frame unnoticed: that one then comes late. Ephemeral events come as they are; a loss is told.
///
/// An older primary without journal is followed live only. When the link to it was lost, that is told as
/// [`Followed::Resync`] from 0 to 0: nobody knows what happened meanwhile.
pub struct Follower {
    client: Client,
    subscription: Subscription,
    history: Arc<dyn History>,
    patterns: Vec<Pattern>,
    position: Position,
    stage: Stage,
    /// Whether there is a journal.
    is_tracked: bool,
    ready: VecDeque<Followed>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { patterns, position, stage, .. } = self;
        f.debug_struct("Follower")
            .field("patterns", patterns)
            .field("position", &position.floor())
            .field("stage", stage)
            .finish_non_exhaustive()
    }
}

/// What a follower does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Reads what the journal has, before there is a link: a local journal needs none.
    Early,
    /// Waits until the subscription is live.
    Link { since_now: bool },
    /// Asks for the journal's head, to begin there.
    Anchor,
    /// Reads the journal from the position to its head.
    Replay,
    /// Follows the stream.
    Live,
}

impl Follower {
    pub(super) fn new(client: Client, patterns: Vec<Pattern>, since: Since, history: Arc<dyn History>) -> Self {
        let mut subscribed = patterns.clone();
        subscribed.push(Pattern::Exactly(Topic::known(HEARTBEAT)));
        let (stage, floor) = match since {
            Since::Now => (Stage::Link { since_now: true }, 0),
            Since::Seq(seq) => (Stage::Early, seq),
            Since::All => (Stage::Early, 0),
        };
        Self {
            subscription: Subscription::new(client.clone(), subscribed),
            position: Position::new(&patterns, floor),
            client,
            history,
            patterns,
            stage,
            is_tracked: true,
            ready: VecDeque::new(),
        }
    }

    /// Returns the `seq` up to which everything was taken from this follower: [`Since::Seq`] of it loses nothing.
    ///
    /// With a filter it trails the events taken by at most one heartbeat, so that some may come again.
    pub fn position(&self) -> u64 {
        let before = |item: &Followed| match item {
            Followed::Event(event) => event.seq.map(|seq| seq - 1),
            Followed::Resync(resync) => Some(resync.from.saturating_sub(1)),
            Followed::Lagged(_) => None,
        };
        let floor = self.position.floor();
        self.ready.iter().find_map(before).map_or(floor, |waiting| waiting.min(floor))
    }

    /// Waits until the start is fixed: with [`Since::Now`], what is published from here on is received.
    ///
    /// Returns false when the client is closed. Without this, the start is fixed by the first [`Follower::recv`].
    pub async fn started(&mut self) -> bool {
        while matches!(self.stage, Stage::Link { since_now: true } | Stage::Anchor) {
            if self.step().await.is_none() {
                return false;
            }
        }
        true
    }

    /// Waits for the next item; `None` once the client is closed. Safe to drop and call again.
    pub async fn recv(&mut self) -> Option<Followed> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            self.step().await?;
        }
    }

    /// Does what is next, which may put items into `ready`; `None` once the client is closed. Safe to drop.
    async fn step(&mut self) -> Option<()> {
        match self.stage {
            Stage::Early => match self.read().await {
                Ok(page) => self.turn(page, Stage::Link { since_now: false }),
                // There is nobody to ask yet. Once there is, the journal is read anyway.
                Err(_) => self.stage = Stage::Link { since_now: false },
            },
            Stage::Link { since_now } => {
                if !self.subscription.live().await {
                    return None;
                }
                self.stage = if since_now { Stage::Anchor } else { Stage::Replay };
            }
            Stage::Anchor => match self.client.call(HEAD, json!({})).await {
                Ok(head) => {
                    self.position.start(head.get("seq").and_then(Value::as_u64).unwrap_or_default());
                    self.stage = Stage::Live;
                }
                Err(error) if error.is_method_not_found() => self.untrack(),
                Err(error) => self.retry(HistoryError::Call(error)).await?,
            },
            Stage::Replay => match self.read().await {
                Ok(page) => self.turn(page, Stage::Live),
                Err(HistoryError::Unsupported) => self.untrack(),
                Err(error) => self.retry(error).await?,
            },
            Stage::Live => {
                let delivery = self.subscription.recv().await?;
                self.take(delivery);
            }
        }
        Some(())
    }

    async fn read(&self) -> Result<Page, HistoryError> {
        self.history.since(self.position.floor(), &self.patterns, PAGE).await
    }

    /// Takes a page; once it was the last, goes on with `then`.
    fn turn(&mut self, page: Page, then: Stage) {
        let (followed, more) = self.position.page(page);
        self.ready.extend(followed);
        if !more {
            self.stage = then;
        }
    }

    /// There is no journal: whatever comes is delivered.
    fn untrack(&mut self) {
        tracing::debug!("the primary keeps no journal: events are followed live only");
        self.is_tracked = false;
        self.stage = Stage::Live;
    }

    /// Waits a little before the next attempt; `None` when the client is closed.
    async fn retry(&self, error: HistoryError) -> Option<()> {
        let pause = match error {
            HistoryError::Call(error) if !matches!(error, CallError::Refused(_)) => RETRY_PAUSE,
            error => {
                tracing::warn!(%error, "events wait until the journal can be read");
                REFUSED_PAUSE
            }
        };
        self.client.core.stop.run_until_cancelled(tokio::time::sleep(pause)).await
    }

    /// Decides what a delivery means. What the stream lost is read from the journal next.
    fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Event(event) => self.event(event),
            Delivery::Lagged(count) if !self.is_tracked => self.ready.push_back(Followed::Lagged(count)),
            Delivery::Relinked { .. } if !self.is_tracked => {
                let reason = "the link was lost, and the primary kept no journal".to_owned();
                self.ready.push_back(Followed::Resync(Resync { from: 0, to: 0, reason }));
                // Its successor may keep one.
                self.is_tracked = true;
                self.stage = if self.position.floor() == 0 { Stage::Anchor } else { Stage::Replay };
            }
            Delivery::Lagged(_) | Delivery::Relinked { .. } => self.stage = Stage::Replay,
        }
    }

    fn event(&mut self, event: Arc<Envelope>) {
        if event.topic.as_str() == HEARTBEAT
            && self.is_tracked
            && event.payload.get("head").and_then(Value::as_u64).is_some_and(|head| self.position.is_behind(head))
        {
            self.stage = Stage::Replay;
        }
        if !self.patterns.iter().any(|pattern| pattern.matches(event.topic.as_str())) {
            return;
        }
        match (event.seq, event.n) {
            (Some(seq), _) if self.is_tracked => match self.position.frame(&event.topic, seq, event.prev) {
                Verdict::Deliver => self.ready.push_back(Followed::Event(event)),
                Verdict::Duplicate => {}
                Verdict::Gap => self.stage = Stage::Replay,
            },
            (None, Some(n)) => {
                let lost = self.position.ephemeral(&event, n);
                if lost > 0 {
                    self.ready.push_back(Followed::Lagged(lost));
                }
                self.ready.push_back(Followed::Event(event));
            }
            _ => self.ready.push_back(Followed::Event(event)),
        }
    }
}
