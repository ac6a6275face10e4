//! The client: calls, notifications and events over one link to whoever is the primary.
//!
//! ```text
//!  Client ──call──► Calls ──────────────── DEALER ──► ROUTER
//!         ◄─answer─ (by number) ◄─ link worker │ Link (watch): which primary, believed after hello
//!  Subscription ◄── Inbox ◄── feed worker ── SUB ◄───── PUB
//!  Follower = Subscription + History: gap-free
//! ```
//!
//! A caller writes its own request, or while many call the link worker writes theirs together; that worker takes the answers in, and whoever waits for one reads it. A caller that is
//! alone looks for its answer itself, for some microseconds, before it sleeps (`listen`). Another worker takes the events in. A socket lives for one connection. On any error, loss or change of the primary both are dropped and made anew, and what was sent but not
//! answered ends as [`CallError::Unknown`] at once.

mod calls;
mod dial;
mod error;
mod feed;
mod follow;
mod history;
mod inbox;
mod link;
mod listen;
mod options;
mod position;
mod socket;
mod subscription;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::failpoint::{self, Point};
use crate::hello::{PING, Welcome};
use crate::lock::{Holder, LockInfo};
use crate::rpc::{Json, parse_response, result_text};
use crate::stream::Ring;
use crate::topic::Pattern;
use crate::workdir::Workdir;

use calls::{Calls, Next, Outcome, Reply, Waiting, Withdrawn};
use feed::Feeds;
use listen::listen;

pub use calls::{MAX_UNREAD, MAX_WAITING};
pub use error::{CallError, Cause};
pub use follow::{Followed, Follower, Since};
pub use history::{History, HistoryError, LocalHistory, Page, RemoteHistory, Resync};
pub use inbox::{Delivery, INBOX_CAPACITY};
pub use options::Options;
pub use subscription::Subscription;

/// Longest that anything is waited for, a year: who asks for more waits so long, and no clock overflows.
pub const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long [`Client::close`] waits for the proof that its last notifications were read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The primary that calls go to now: it holds the lock, and it answered hello as the one that the lock file names.
#[derive(Debug, Clone)]
pub struct Link {
    /// What the lock file says of it.
    pub info: LockInfo,
    /// What it said of itself. An older server knows no hello: then this is taken from the lock file, and `database` is nil.
    pub welcome: Welcome,
    /// Counts the links of this client.
    number: u64,
}

/// Whoever holds the lock has not said anything for 2 s or more, pings included: it hangs, or is stopped.
///
/// Time in which this process itself was stopped does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Who it is, and what its process did when last looked at.
    pub holder: Holder,
    /// For how long it has been silent; told again every 500 ms. Its link is given up after 6 s.
    pub lasted: Duration,
}

/// A cheap handle to one link; clones share it. See the [module](self) for the whole.
///
/// The client ends with [`Client::close`], or when its last handle, [`Subscription`] and [`Follower`] is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    core: Arc<Core>,
    tasks: TaskTracker,
    _last: Arc<DropGuard>,
}

/// What handles and workers share.
#[derive(Debug)]
struct Core {
    workdir: Workdir,
    options: Options,
    calls: Mutex<Calls>,
    feeds: Mutex<Feeds>,
    /// Tells the link worker that a call waits, or that somebody wants a link.
    work: Notify,
    /// Tells the feed worker that a subscriber came or went.
    wishes: Notify,
    link: watch::Sender<Option<Link>>,
    silence: watch::Sender<Option<Silence>>,
    /// Why there is no link.
    trouble: Mutex<Option<Cause>>,
    last_number: AtomicU64,
    /// Frames that were no events.
    skipped: AtomicU64,
    stop: CancellationToken,
}

impl Client {
    /// Starts a client: it dials in the background, for ever, until it is closed. Calls may be made at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(workdir: Workdir, options: Options) -> Self {
        let (dial_timeout, call_timeout) =
            (options.dial_timeout.min(LONGEST_WAIT), options.call_timeout.min(LONGEST_WAIT));
        let options = Options { dial_timeout, call_timeout, ..options };
        let stop = CancellationToken::new();
        let core = Arc::new(Core {
            workdir,
            options,
            calls: Mutex::default(),
            feeds: Mutex::default(),
            work: Notify::new(),
            wishes: Notify::new(),
            link: watch::Sender::new(None),
            silence: watch::Sender::new(None),
            trouble: Mutex::default(),
            last_number: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            stop: stop.clone(),
        });
        let tasks = TaskTracker::new();
        let (linking, feeding) = (core.clone(), core.clone());
        tasks.spawn(async move { link::keep(&linking).await });
        tasks.spawn(async move { feed::listen(&feeding).await });
        tasks.close();
        Self { core, tasks, _last: Arc::new(stop.drop_guard()) }
    }

    /// Starts a client and waits until it has a link, at most `dial_timeout`.
    pub async fn connect(workdir: Workdir, options: Options) -> Result<Self, CallError> {
        let client = Self::open(workdir, options);
        client.linked().await.map(|()| client)
    }

    /// Waits until there is a link and the primary answers, at most `dial_timeout`.
    pub async fn linked(&self) -> Result<(), CallError> {
        let deadline = Instant::now() + self.core.options.dial_timeout;
        loop {
            match self.call_by(PING, json!({}), deadline).await {
                // Whatever it answers, there is a link.
                Ok(_) | Err(CallError::Refused(_)) => return Ok(()),
                // A primary that went with the question carried nothing out: the next one is asked.
                Err(CallError::Unknown(_)) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Calls a method and waits for its result, at most `call_timeout`.
    ///
    /// The error says what is known: see [`CallError`]. Dropping the future forgets the call; if it was sent, it may still be applied.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, CallError> {
        self.call_by(method, params, Instant::now() + self.core.options.call_timeout).await
    }

    /// Calls a method and waits for its result until `deadline`, which covers dial, queueing and answer.
    pub async fn call_by(&self, method: &str, params: impl Serialize, deadline: Instant) -> Result<Value, CallError> {
        read(&self.core.exchange(method, &params, true, deadline).await?)
    }

    /// Does the same with params and result as text, for those who write and read them as types of their own.
    pub async fn call_json(&self, method: &str, params: Json, deadline: Instant) -> Result<Json, CallError> {
        self.core.submit(method, params, true, deadline).await
    }

    /// Calls a method without wanting an answer; returns once it was handed to the socket of a link.
    ///
    /// It is lost when the link breaks just then. [`Client::close`] waits until it was read.
    pub async fn notify(&self, method: &str, params: impl Into<Json>) -> Result<(), CallError> {
        let deadline = Instant::now() + self.core.options.call_timeout;
        self.core.submit(method, params.into(), false, deadline).await.map(drop)
    }

    /// Subscribes to the events of a pattern; returns once the subscription is proven live: what is published from
    /// here on is received. (A server that publishes no probes is taken at its word.)
    pub async fn subscribe(&self, pattern: Pattern) -> Result<Subscription, CallError> {
        let deadline = Instant::now() + self.core.options.call_timeout;
        let mut subscription = Subscription::new(self.clone(), vec![pattern]);
        match self.core.within(deadline, subscription.live()).await {
            Ok(true) => Ok(subscription),
            Ok(false) => Err(CallError::NotSent(Cause::Closed)),
            Err(cause) => Err(CallError::NotSent(cause)),
        }
    }

    /// Follows the events of some patterns, gap-free: what the stream lost is read from `history`.
    ///
    /// It waits for a primary as long as it takes. See [`Follower`] for what is guaranteed.
    pub fn follow(&self, patterns: Vec<Pattern>, since: Since, history: Arc<dyn History>) -> Follower {
        Follower::new(self.clone(), patterns, since, history)
    }

    /// Returns the link, to look at or to watch: `None` while there is none.
    pub fn link(&self) -> watch::Receiver<Option<Link>> {
        self.core.work.notify_one();
        self.core.link.subscribe()
    }

    /// Returns how long whoever holds the lock has been silent, to look at or to watch: `None` while all is well.
    pub fn silence(&self) -> watch::Receiver<Option<Silence>> {
        self.core.silence.subscribe()
    }

    /// Returns why there is no link, or none that is of use, as far as it is known.
    pub fn trouble(&self) -> Option<Cause> {
        let silent = self.core.silent_holder();
        silent.or_else(|| if self.core.link.borrow().is_some() { None } else { self.core.trouble().clone() })
    }

    /// Returns how many frames were skipped because they were no events.
    pub fn skipped_frames(&self) -> u64 {
        self.core.skipped.load(Ordering::Relaxed)
    }

    /// Ends the client for all its handles, and waits for its end.
    ///
    /// Notifications that were sent are waited for until the primary has read them, at most 1 s. Calls under way end as
    /// [`CallError::Unknown`], subscriptions with `None` behind what they hold.
    pub async fn close(&self) {
        // Dropped half-way it ends all the same.
        let stop = self.core.stop.clone().drop_guard();
        if self.core.calls().has_unread() {
            // The sockets do not flush when they close, and are read in order: an answer to this shows the rest was read.
            let flushed = self.call_by(PING, json!({}), Instant::now() + CLOSE_TIMEOUT).await;
            if let Err(error) = flushed {
                tracing::debug!(%error, "closed without knowing whether the last notifications were read");
            }
        }
        drop(stop);
        self.hang_up().await;
    }

    /// Ends the client for all its handles at once: what it told a primary that is gone need not be waited for.
    pub async fn hang_up(&self) {
        self.core.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Core {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds(&self) -> MutexGuard<'_, Feeds> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Cause>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_trouble(&self, cause: Cause) {
        *self.trouble() = Some(cause);
    }

    /// Notes that a primary is being dialled, unless more is known of it by an earlier attempt.
    fn note_dialling(&self, instance_id: &str) {
        let mut trouble = self.trouble();
        if !matches!(&*trouble, Some(Cause::ConnectionFailed { .. } | Cause::Version { .. })) {
            *trouble = Some(socket::failed(instance_id, &"it has not answered yet"));
        }
    }

    fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells whether somebody waits for a link.
    fn is_wanted(&self) -> bool {
        self.calls().is_wanted() || !self.feeds().is_empty()
    }

    /// Tells that whoever holds the lock is silent, or that all is well.
    fn report(&self, silence: Option<Silence>) {
        self.silence.send_if_modified(|known| {
            let is_news = *known != silence;
            *known = silence;
            is_news
        });
    }

    /// Returns the cause of a failure while whoever holds the lock is silent.
    fn silent_holder(&self) -> Option<Cause> {
        let silence = self.silence.borrow();
        silence.as_ref().map(|it| Cause::Unresponsive { holder: Box::new(it.holder.clone()), silent: it.lasted })
    }

    /// Tells the callers what they are answered with.
    fn settle(&self, answers: &mut Vec<(u64, Outcome)>) {
        if answers.is_empty() {
            return;
        }
        let told: Vec<(Reply, Outcome)> = {
            let mut calls = self.calls();
            calls.gather(answers.len());
            answers.drain(..).filter_map(|(number, outcome)| Some((calls.answered(number)?, outcome))).collect()
        };
        // Who is woken here takes the lock next.
        for (reply, outcome) in told {
            drop(reply.send(outcome));
        }
    }

    /// Makes a call and reads its result.
    async fn submit(&self, method: &str, params: Json, answered: bool, deadline: Instant) -> Result<Json, CallError> {
        read(&self.exchange(method, &params, answered, deadline).await?)
    }

    /// Sends a request, or has it wait, and waits for what becomes of it.
    async fn exchange(&self, method: &str, params: &impl Serialize, answered: bool, deadline: Instant) -> Outcome {
        let number = self.next_number();
        let message = calls::encode(answered.then_some(number), method, params);
        let (reply, mut outcome) = oneshot::channel();
        let (next, waits) = {
            let mut calls = self.calls();
            calls.enter(number, Waiting { message, answered, reply }).map_err(CallError::NotSent)?;
            (calls.next(number), calls.is_wanted())
        };
        match &next {
            Next::Write(dealer) | Next::WriteAlone(dealer) => flush(dealer.ring()),
            Next::Wake => self.work.notify_one(),
            Next::Nothing => {}
        }
        if !waits {
            failpoint::hit(Point::ClientSent);
        }
        if let Next::WriteAlone(dealer) = next
            && let Some(outcome) = listen(self, &dealer, &mut outcome).await
        {
            return outcome;
        }
        let mut ticket = Ticket { core: self, number, outcome };
        let given_up = match self.within(deadline, &mut ticket.outcome).await {
            Ok(outcome) => return outcome.unwrap_or(Err(CallError::Unknown(Cause::Closed))),
            Err(cause) => cause,
        };
        let withdrawn = self.calls().withdraw(number);
        match withdrawn {
            Withdrawn::Unsent => Err(CallError::NotSent(given_up)),
            Withdrawn::Sent => Err(CallError::Unknown(given_up)),
            // It is being told.
            Withdrawn::Settled => (&mut ticket.outcome).await.unwrap_or(Err(CallError::Unknown(given_up))),
        }
    }

    /// Waits for something that needs a link: until `deadline`, but without a link no longer than `dial_timeout`.
    async fn within<T>(&self, deadline: Instant, wanted: impl Future<Output = T>) -> Result<T, Cause> {
        let started = Instant::now();
        let dialled = deadline.min(started + self.options.dial_timeout);
        tokio::pin!(wanted);
        for until in [dialled, deadline] {
            if let Ok(output) = timeout_at(until, &mut wanted).await {
                return Ok(output);
            }
            if self.link.borrow().is_none()
                && let Some(cause) = self.silent_holder().or_else(|| self.trouble().clone())
            {
                return Err(cause);
            }
        }
        Err(self.silent_holder().unwrap_or(Cause::Timeout { after: started.elapsed() }))
    }
}

/// Reads the result out of an answer, or the refusal.
fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, CallError> {
    if let Some((_, text)) = result_text(answer)
        && let Ok(text) = std::str::from_utf8(text)
        && let Ok(result) = serde_json::from_str(text)
    {
        return Ok(result);
    }
    let unreadable = |error: &dyn Display| {
        CallError::Unknown(socket::failed("the primary", &format_args!("its answer is unreadable: {error}")))
    };
    let answer = parse_response(answer).map_err(|error| unreadable(&error))?;
    answer.outcome.map_err(CallError::Refused)?.read().map_err(|error| unreadable(&error))
}

/// Writes what was handed over.
fn flush(ring: &Ring) {
    if let Err(error) = ring.flush() {
        // The link worker finds that, too, and knows what to do.
        tracing::debug!(%error, "the primary cannot be written to");
    }
}

/// A caller's place among the calls. Dropping it, because the caller does, gives the place up.
struct Ticket<'a> {
    core: &'a Core,
    number: u64,
    outcome: oneshot::Receiver<Outcome>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.outcome.is_terminated() {
            self.core.calls().withdraw(self.number);
        }
    }
}
