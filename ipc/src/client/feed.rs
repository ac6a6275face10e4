//! Who wants which events, and the worker that brings them: one SUB for all subscribers of a client.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::poll;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::error::{CallError, Cause};
use super::inbox::Inbox;
use super::link::Backoff;
use super::socket::Ear;
use super::{Core, Link};
use crate::envelope::Envelope;
use crate::hello::PUBLISH;
use crate::rpc::Json;
use crate::topic::{PROBE_PREFIX, Pattern};

/// Pause between two probes of a subscription that is not proven yet.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// How long a proof may take; then the socket is made anew.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// Most frames that are taken before the subscribers have their turn.
const BURST: usize = 64;
/// After so long without any frame the subscription is proven again.
const SILENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Entry {
    patterns: Vec<Pattern>,
    inbox: Arc<Inbox>,
    /// Told when the subscription is live for the first time.
    ready: Option<oneshot::Sender<()>>,
    /// Whether events flow now. What comes before the proof belongs to the gap that the proof ends.
    live: bool,
}

/// All subscriptions of a client, by their number.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    entries: BTreeMap<u64, Entry>,
    last: u64,
    closed: bool,
}

impl Feeds {
    /// Adds a subscriber; the receiver hears when its subscription is live, or never when the client is closed.
    pub(super) fn add(&mut self, patterns: Vec<Pattern>, inbox: &Arc<Inbox>) -> (u64, oneshot::Receiver<()>) {
        let (ready, receiver) = oneshot::channel();
        self.last += 1;
        if self.closed {
            inbox.close();
        } else {
            let entry = Entry { patterns, inbox: inbox.clone(), ready: Some(ready), live: false };
            self.entries.insert(self.last, entry);
        }
        (self.last, receiver)
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.entries.remove(&number);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the ZeroMQ subscriptions that select what anybody wants.
    fn wanted(&self) -> BTreeSet<String> {
        self.entries.values().flat_map(|entry| &entry.patterns).map(Pattern::subscription).collect()
    }

    /// Returns the newest subscriber that waits for a proof.
    fn unproven(&self) -> Option<u64> {
        self.entries.iter().rev().find(|(_, entry)| !entry.live).map(|(number, _)| *number)
    }

    /// The subscriptions up to this number are live.
    fn prove(&mut self, upto: u64, epoch: u64) {
        for entry in self.entries.range_mut(..=upto).map(|(_, entry)| entry).filter(|entry| !entry.live) {
            entry.live = true;
            match entry.ready.take().map(|ready| ready.send(())) {
                Some(Ok(())) => {}
                Some(Err(())) => tracing::trace!("a subscriber left before it was live"),
                None => entry.inbox.relinked(epoch),
            }
        }
    }

    /// The socket is gone.
    fn interrupt(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.live = false);
    }

    /// Hands a frame to everybody who wants it. Returns false when it is no event.
    fn deliver(&self, frame: &[u8]) -> bool {
        let Some(topic) = topic_of(frame) else { return false };
        let mut envelope = None;
        for entry in self.entries.values().filter(|entry| entry.live && wants(&entry.patterns, topic)) {
            if envelope.is_none() {
                match Envelope::from_frame(frame) {
                    Ok(read) => envelope = Some(Arc::new(read)),
                    Err(error) => {
                        tracing::debug!(%error, "skipped a frame");
                        return false;
                    }
                }
            }
            if let Some(envelope) = &envelope {
                entry.inbox.push(envelope.clone());
            }
        }
        true
    }

    fn close(&mut self) {
        self.closed = true;
        for entry in std::mem::take(&mut self.entries).into_values() {
            entry.inbox.close();
        }
    }
}

fn topic_of(frame: &[u8]) -> Option<&str> {
    let end = frame.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&frame[..end]).ok()
}

/// Probes are told only to those who name them: to everybody else they are no events.
fn wants(patterns: &[Pattern], topic: &str) -> bool {
    let probe = topic.starts_with(PROBE_PREFIX);
    patterns.iter().any(|pattern| pattern.matches(topic) && !(probe && *pattern == Pattern::All))
}

/// Brings events as long as anybody wants them, until the client is closed.
pub(super) async fn listen(core: &Core) {
    let mut links = core.link.subscribe();
    let mut backoff = Backoff::default();
    let endless = async {
        loop {
            let link = wanted_link(core, &mut links).await;
            let since = Instant::now();
            let ended = tokio::select! {
                ended = hear(core, &link) => ended,
                () = replaced(&mut links, link.number) => Ok(()),
            };
            core.feeds().interrupt();
            backoff.ended(since);
            if let Err(cause) = ended {
                tracing::debug!(%cause, "event stream lost");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    };
    let _never: Option<()> = core.stop.run_until_cancelled(endless).await;
    core.feeds().close();
}

/// Waits until there is a link and somebody who wants events.
async fn wanted_link(core: &Core, links: &mut watch::Receiver<Option<Link>>) -> Link {
    loop {
        if core.feeds().is_empty() {
            core.wishes.notified().await;
            continue;
        }
        // The sender lives in `core`, so that this never fails.
        if let Ok(Some(link)) = links.wait_for(Option::is_some).await.map(|link| link.clone()) {
            return link;
        }
    }
}

async fn replaced(links: &mut watch::Receiver<Option<Link>>, number: u64) {
    drop(links.wait_for(|link| link.as_ref().is_none_or(|link| link.number != number)).await);
}

enum Step {
    Frame(Bytes),
    Lost(Cause),
    Wish,
    Unprovable,
    TooQuiet,
}

/// Brings events over one socket, until nobody wants any (`Ok`) or it is lost.
async fn hear(core: &Core, link: &Link) -> Result<(), Cause> {
    let ear = Ear::open(&link.info.doors().publish).await?;
    let quiet_until = Instant::now() + SILENCE;
    let mut hearing =
        Hearing { core, link, ear, carried: BTreeSet::new(), proof: None, is_provable: true, quiet_until };
    hearing.align().await?;
    loop {
        let Hearing { ear, proof, quiet_until, .. } = &mut hearing;
        let deadline = proof.as_ref().map_or(*quiet_until, |proof| proof.deadline);
        let step = tokio::select! {
            heard = ear.next() => heard.map_or_else(Step::Lost, Step::Frame),
            () = core.wishes.notified() => Step::Wish,
            () = probed(proof) => Step::Unprovable,
            () = tokio::time::sleep_until(deadline) => Step::TooQuiet,
        };
        match step {
            Step::Frame(frame) => hearing.burst(frame).await?,
            Step::Lost(cause) => return Err(cause),
            Step::Wish if core.feeds().is_empty() => return Ok(()),
            Step::Wish => hearing.align().await?,
            Step::Unprovable => {
                hearing.is_provable = false;
                hearing.proven().await?;
            }
            Step::TooQuiet if hearing.proof.is_some() => {
                return Err(hearing.ear.failure(&format_args!("no probe came back within {PROOF_TIMEOUT:?}")));
            }
            Step::TooQuiet => hearing.prove(0).await?,
        }
    }
}

/// A proof under way: the event published here comes back once every subscription made before is live.
struct Proof<'a> {
    topic: Pattern,
    /// The newest subscriber that it proves.
    upto: u64,
    deadline: Instant,
    /// Publishes the probe again and again. It ends only when the server cannot publish probes.
    probing: BoxFuture<'a, ()>,
}

async fn probed(proof: &mut Option<Proof<'_>>) {
    match proof {
        Some(proof) => (&mut proof.probing).await,
        None => std::future::pending().await,
    }
}

struct Hearing<'a> {
    core: &'a Core,
    link: &'a Link,
    ear: Ear,
    /// The subscriptions that the socket has.
    carried: BTreeSet<String>,
    proof: Option<Proof<'a>>,
    is_provable: bool,
    quiet_until: Instant,
}

impl Hearing<'_> {
    /// Brings the socket's subscriptions in line with what is wanted, and starts the proof of new ones.
    async fn align(&mut self) -> Result<(), Cause> {
        let (wanted, unproven) = {
            let feeds = self.core.feeds();
            (feeds.wanted(), feeds.unproven())
        };
        for prefix in wanted.difference(&self.carried) {
            self.ear.subscribe(prefix).await?;
        }
        for prefix in self.carried.difference(&wanted) {
            self.ear.unsubscribe(prefix).await?;
        }
        self.carried = wanted;
        match unproven {
            Some(upto) if self.proof.is_none() => self.prove(upto).await,
            _ => Ok(()),
        }
    }

    /// Starts to prove that the subscriptions up to this number are live.
    async fn prove(&mut self, upto: u64) -> Result<(), Cause> {
        self.quiet_until = Instant::now() + SILENCE;
        if !self.is_provable {
            self.core.feeds().prove(upto, self.link.welcome.epoch);
            return Ok(());
        }
        let name = format!("{PROBE_PREFIX}{}", Uuid::new_v4().simple());
        let Ok(topic) = Pattern::new(&name) else { return Ok(()) };
        self.ear.subscribe(&topic.subscription()).await?;
        let probing = Box::pin(probe(self.core, name));
        self.proof = Some(Proof { topic, upto, deadline: Instant::now() + PROOF_TIMEOUT, probing });
        Ok(())
    }

    /// Takes a frame and those that have come behind it: they need no waiting.
    async fn burst(&mut self, first: Bytes) -> Result<(), Cause> {
        self.quiet_until = Instant::now() + SILENCE;
        self.frame(&first).await?;
        for _ in 1..BURST {
            let Poll::Ready(next) = poll!(pin!(self.ear.next())) else { return Ok(()) };
            self.frame(&next?).await?;
        }
        // There may be more without end: no inbox is filled before its subscriber had a turn to empty it.
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn frame(&mut self, frame: &[u8]) -> Result<(), Cause> {
        if self.proof.as_ref().is_some_and(|proof| topic_of(frame).is_some_and(|topic| proof.topic.matches(topic))) {
            return self.proven().await;
        }
        if !self.core.feeds().deliver(frame) {
            self.core.skipped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn proven(&mut self) -> Result<(), Cause> {
        let Some(proof) = self.proof.take() else { return Ok(()) };
        self.core.feeds().prove(proof.upto, self.link.welcome.epoch);
        self.ear.unsubscribe(&proof.topic.subscription()).await?;
        // Whoever came while the proof was under way needs one of its own.
        self.align().await
    }
}

/// Publishes a probe until it is dropped. Returns when the server will never publish one.
async fn probe(core: &Core, topic: String) {
    loop {
        let params = json!({"topic": topic, "payload": null, "durable": false});
        match core.submit(PUBLISH, Json::of(&params), true, Instant::now() + PROOF_TIMEOUT).await {
            Err(CallError::Refused(fault)) if !fault.is_retryable() => {
                tracing::debug!(%fault, "the server publishes no probes: subscriptions are not proven");
                return;
            }
            _ => tokio::time::sleep(PROBE_PAUSE).await,
        }
    }
}
