//! A stream of events without gaps: the live stream, and the journal for what it lost.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::history::{History, HistoryError, Page, Resync};
use super::inbox::Delivery;
use super::position::{Position, Verdict};
use super::subscription::Subscription;
use super::{CallError, Client};
use crate::cursor::Bookmark;
use crate::envelope::{Envelope, Timestamp};
use crate::topic::{HEARTBEAT, Pattern, Topic};

/// Most events that are read from the journal at once.
const PAGE: usize = 1_000;
/// How long a link is waited for before the journal is read again: a primary may write its last events and leave before we hear of it. Each look that
/// finds nothing doubles it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
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
    /// Behind this place. In another database, which is told as [`Followed::Resync`], with its first event.
    Bookmark(Bookmark),
    /// With the first event of this time or later.
    Time(Timestamp),
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
/// Every durable event that matches is delivered exactly once, in the order of `seq`. Should the stream between us and
/// the primary lose a single frame unnoticed, which ours does not, a follower of several topics gets that one late,
/// before the next heartbeat. Ephemeral events come as they are; a loss is told.
///
/// It needs no primary to read what the journal has, and goes on with the stream once there is one.
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
    /// When the journal is read again if there is no link by then. Kept here, for whoever waits for us may begin anew at any time.
    look_again: Instant,
    /// How long after the last look that is.
    pause: Duration,
    ready: VecDeque<Followed>,
    /// The last `seq` that was taken from `ready`.
    taken: u64,
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
    /// Asks the journal where to begin: behind the last event before this time, or behind the last one of now.
    Anchor(Option<Timestamp>),
    /// Reads what the journal has, before there is a link: a local journal needs none.
    Early,
    /// Waits until the subscription is live; where that takes its time, with looks at the journal in between.
    Link,
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
            Since::Now => (Stage::Anchor(None), 0),
            Since::Time(time) => (Stage::Anchor(Some(time)), 0),
            Since::Seq(seq) | Since::Bookmark(Bookmark { seq, .. }) => (Stage::Early, seq),
            Since::All => (Stage::Early, 0),
        };
        let database = if let Since::Bookmark(bookmark) = since { Some(bookmark.database) } else { None };
        Self {
            subscription: Subscription::new(client.clone(), subscribed),
            position: Position::new(&patterns, floor, database),
            client,
            history,
            patterns,
            stage,
            is_tracked: true,
            look_again: Instant::now() + LOOK_AGAIN,
            pause: LOOK_AGAIN,
            ready: VecDeque::new(),
            taken: floor,
        }
    }

    /// Returns the `seq` up to which everything was taken from this follower: one that begins there ([`Since::Seq`],
    /// with the same patterns) goes on with the next event.
    ///
    /// It is 0 until the start is fixed.
    pub fn position(&self) -> u64 {
        let is_durable = |item: &Followed| match item {
            Followed::Event(event) => event.seq.is_some(),
            Followed::Resync(_) => true,
            Followed::Lagged(_) => false,
        };
        if self.ready.iter().any(is_durable) { self.taken } else { self.taken.max(self.position.floor()) }
    }

    /// Returns [`Follower::position`] together with the database it belongs to, once the journal told which that is.
    pub fn bookmark(&self) -> Option<Bookmark> {
        let database = self.position.database()?;
        Some(Bookmark { database, seq: self.position() })
    }

    /// Waits until the start is fixed: with [`Since::Now`], what is published from here on is received.
    ///
    /// Returns false when the client is closed. Without this, the start is fixed by the first [`Follower::recv`].
    pub async fn started(&mut self) -> bool {
        let mut is_now = false;
        loop {
            match self.stage {
                Stage::Anchor(time) => is_now = time.is_none(),
                Stage::Early | Stage::Link if is_now => {}
                _ => return true,
            }
            if self.step().await.is_none() {
                return false;
            }
        }
    }

    /// Waits for the next item; `None` once the client is closed. Safe to drop and call again.
    pub async fn recv(&mut self) -> Option<Followed> {
        loop {
            if let Some(item) = self.take() {
                return Some(item);
            }
            self.step().await?;
        }
    }

    /// Waits for the next item, as [`Follower::recv`] does, but ends with `None` once everything up to the event `last`
    /// was taken, too: a primary is not waited for when the journal can be read without one.
    pub async fn recv_upto(&mut self, last: u64) -> Option<Followed> {
        loop {
            let is_beyond = |item: &Followed| matches!(item, Followed::Event(event) if event.seq > Some(last));
            if !matches!(self.stage, Stage::Anchor(_)) && self.position() >= last
                || self.ready.front().is_some_and(is_beyond)
            {
                return None;
            }
            if let Some(item) = self.take() {
                return Some(item);
            }
            self.step().await?;
        }
    }

    fn take(&mut self) -> Option<Followed> {
        let item = self.ready.pop_front()?;
        self.taken = match &item {
            Followed::Event(event) => self.taken.max(event.seq.unwrap_or_default()),
            Followed::Lagged(_) => self.taken,
            // What was taken already is no longer there: the numbers begin anew.
            Followed::Resync(gap) if gap.from <= self.taken => gap.from.saturating_sub(1),
            Followed::Resync(gap) => gap.to,
        };
        Some(item)
    }

    /// Does what is next, which may put items into `ready`; `None` once the client is closed. Safe to drop.
    async fn step(&mut self) -> Option<()> {
        match self.stage {
            Stage::Anchor(time) => {
                let asked = self.client.core.stop.run_until_cancelled(self.history.last_before(time)).await?;
                match asked {
                    Ok(seq) => {
                        self.position.start(seq);
                        self.taken = seq;
                        self.stage = if time.is_some() { Stage::Early } else { Stage::Link };
                    }
                    Err(HistoryError::Unsupported) => self.untrack(),
                    Err(error) => self.retry(error).await?,
                }
            }
            Stage::Early => match self.read().await {
                Ok(page) => self.turn(page, Stage::Link),
                // There is nobody to ask yet. Once there is, the journal is read anyway.
                Err(_) => self.stage = Stage::Link,
            },
            Stage::Link if !self.is_tracked => {
                self.stage = if self.subscription.live().await { Stage::Live } else { return None };
            }
            Stage::Link => match timeout_at(self.look_again, self.subscription.live()).await {
                Ok(true) => {
                    self.pause = LOOK_AGAIN;
                    self.stage = Stage::Replay;
                }
                Ok(false) => return None,
                Err(_) => {
                    self.pause = LONGEST_PAUSE.min(2 * self.pause);
                    self.look_again = Instant::now() + self.pause;
                    self.stage = Stage::Early;
                }
            },
            Stage::Replay => match self.read().await {
                Ok(page) => self.turn(page, Stage::Live),
                Err(HistoryError::Unsupported) => self.untrack(),
                Err(error) => self.retry(error).await?,
            },
            Stage::Live => {
                let delivery = self.subscription.recv().await?;
                self.heed(delivery);
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
        if !followed.is_empty() {
            self.pause = LOOK_AGAIN;
            self.look_again = Instant::now() + self.pause;
        }
        self.ready.extend(followed);
        if !more {
            self.stage = then;
        }
    }

    /// There is no journal: whatever comes is delivered.
    fn untrack(&mut self) {
        tracing::debug!("the primary keeps no journal: events are followed live only");
        self.is_tracked = false;
        self.stage = Stage::Link;
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
    fn heed(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Event(event) => self.event(event),
            Delivery::Lagged(count) if !self.is_tracked => self.ready.push_back(Followed::Lagged(count)),
            Delivery::Relinked { .. } if !self.is_tracked => {
                let reason = "the link was lost, and the primary kept no journal".to_owned();
                self.ready.push_back(Followed::Resync(Resync { from: 0, to: 0, reason }));
                // Its successor may keep one.
                self.is_tracked = true;
                self.stage = if self.position.floor() == 0 { Stage::Anchor(None) } else { Stage::Replay };
            }
            Delivery::Lagged(_) | Delivery::Relinked { .. } => self.stage = Stage::Replay,
        }
    }

    fn event(&mut self, event: Arc<Envelope>) {
        if event.topic.as_str() == HEARTBEAT
            && self.is_tracked
            && event
                .payload
                .raw()
                .member("head")
                .is_some_and(|head| head.read().is_ok_and(|head| self.position.is_behind(head)))
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
