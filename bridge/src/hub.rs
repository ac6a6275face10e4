//! In-process publish and subscribe, bounded per subscriber.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pando_ipc::{Envelope, Pattern, Recorded};
use tokio::sync::{Notify, watch};

/// Events that wait for one subscriber. When its queue is full, further events are dropped for that subscriber alone and counted: it
/// is told [`Delivery::Lagged`] at the place of the loss.
pub const QUEUE_EVENTS: usize = 4_096;

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// An event that one of its patterns selects; durable ones come in commit order, each once.
    Event(Arc<Envelope>),
    /// At this place so many events were lost, because the subscriber was slow or the journal no longer held them.
    Lagged(u64),
}

/// The events of this process: everything that happens in the workdir, in commit order.
///
/// A cheap handle; clones share the hub.
#[derive(Debug, Clone, Default)]
pub struct Hub(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    subscribers: Mutex<Vec<Weak<Subscriber>>>,
    position: AtomicU64,
    interest: watch::Sender<Vec<Pattern>>,
}

#[derive(Debug)]
struct Subscriber {
    patterns: Vec<Pattern>,
    /// Durable events up to here are older than the subscription.
    behind: AtomicU64,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Delivery>,
    closed: bool,
}

impl Queue {
    fn push(&mut self, event: Arc<Envelope>) {
        if self.waiting.len() < QUEUE_EVENTS {
            self.waiting.push_back(Delivery::Event(event));
        } else {
            self.lose(1);
        }
    }

    fn lose(&mut self, lost: u64) {
        match self.waiting.back_mut() {
            Some(Delivery::Lagged(n)) => *n += lost,
            _ => self.waiting.push_back(Delivery::Lagged(lost)),
        }
    }
}

impl Hub {
    /// Returns a hub without subscribers, at position 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Subscribes from now on to the events that any of the patterns selects.
    pub fn subscribe(&self, patterns: impl IntoIterator<Item = Pattern>) -> HubSubscription {
        self.subscribe_behind(0, patterns)
    }

    /// Subscribes to the events that any of the patterns selects; durable ones up to `seq` are too old for it.
    ///
    /// A hub that is fed with what is of interest alone gets some of them late, when somebody takes an interest.
    pub fn subscribe_behind(&self, seq: u64, patterns: impl IntoIterator<Item = Pattern>) -> HubSubscription {
        let subscriber = Arc::new(Subscriber {
            patterns: patterns.into_iter().collect(),
            behind: AtomicU64::new(seq),
            queue: Mutex::default(),
            arrived: Notify::new(),
        });
        let mut subscribers = lock(&self.0.subscribers);
        subscribers.push(Arc::downgrade(&subscriber));
        self.note_interest(&mut subscribers);
        HubSubscription { subscriber, hub: self.clone() }
    }

    /// Returns what the subscribers select, and tells when that changes. Events of other topics need not be delivered.
    pub fn interest(&self) -> watch::Receiver<Vec<Pattern>> {
        self.0.interest.subscribe()
    }

    fn note_interest(&self, subscribers: &mut Vec<Weak<Subscriber>>) {
        subscribers.retain(|known| known.strong_count() > 0);
        let mut union = Vec::new();
        for subscriber in subscribers.iter().filter_map(Weak::upgrade) {
            for pattern in &subscriber.patterns {
                if !union.contains(pattern) {
                    union.push(pattern.clone());
                }
            }
        }
        if union.contains(&Pattern::All) {
            union = vec![Pattern::All];
        }
        self.0.interest.send_if_modified(|interest| {
            let is_new = *interest != union;
            *interest = union;
            is_new
        });
    }

    /// Returns the `seq` of the last durable event that was delivered, or that this hub starts behind; 0: none.
    pub fn position(&self) -> u64 {
        self.0.position.load(Ordering::Acquire)
    }

    /// Makes the hub start behind `seq`: what is not later is taken as delivered.
    pub fn start_behind(&self, seq: u64) {
        self.0.position.fetch_max(seq, Ordering::AcqRel);
    }

    /// Tells that the events `from` to `to` could not be had, and goes on behind them. Numbers that were delivered already
    /// begin anew: it is another journal, or one that lost its end.
    pub fn resync(&self, from: u64, to: u64) {
        let position = self.position();
        let (next, lost) = if from <= position { (from.saturating_sub(1), 1) } else { (to, to - from + 1) };
        if next < position {
            self.each(|subscriber, _| {
                subscriber.behind.store(0, Ordering::Release);
                false
            });
        }
        self.0.position.store(next, Ordering::Release);
        self.lagged(lost);
    }

    /// Hands an event to its subscribers; a durable one that is not later than the position is a duplicate and dropped.
    ///
    /// Durable events must come in order, from one feeder at a time.
    pub fn deliver(&self, event: &Arc<Envelope>) {
        self.hand_out(event.seq, event.topic.as_str(), || Arc::clone(event));
    }

    /// Does the same with one that is encoded; it is read only when somebody subscribed to it.
    pub fn deliver_recorded(&self, event: &Recorded) {
        self.hand_out(Some(event.seq()), event.topic(), || event.envelope());
    }

    fn hand_out(&self, seq: Option<u64>, topic: &str, event: impl Fn() -> Arc<Envelope>) {
        if let Some(seq) = seq
            && self.0.position.fetch_max(seq, Ordering::AcqRel) >= seq
        {
            return;
        }
        self.each(|subscriber, queue| {
            let is_old = seq.is_some_and(|seq| seq <= subscriber.behind.load(Ordering::Acquire));
            let is_wanted = !is_old && subscriber.patterns.iter().any(|pattern| pattern.matches(topic));
            if is_wanted {
                queue.push(event());
            }
            is_wanted
        });
    }

    /// Tells every subscriber that `lost` events could not be had.
    pub fn lagged(&self, lost: u64) {
        self.each(|_, queue| {
            queue.lose(lost);
            true
        });
    }

    /// Ends every subscription once it has received what waits for it.
    pub fn close(&self) {
        self.each(|_, queue| {
            queue.closed = true;
            true
        });
    }

    /// Does something with each subscriber, and wakes those for which it says so.
    fn each(&self, act: impl Fn(&Subscriber, &mut Queue) -> bool) {
        for subscriber in lock(&self.0.subscribers).iter().filter_map(Weak::upgrade) {
            if act(&subscriber, &mut lock(&subscriber.queue)) {
                subscriber.arrived.notify_one();
            }
        }
    }
}

/// One subscriber's end of a [`Hub`]. Dropping it unsubscribes.
#[derive(Debug)]
pub struct HubSubscription {
    subscriber: Arc<Subscriber>,
    hub: Hub,
}

impl Drop for HubSubscription {
    fn drop(&mut self) {
        let mut subscribers = lock(&self.hub.0.subscribers);
        let own = Arc::downgrade(&self.subscriber);
        subscribers.retain(|known| !known.ptr_eq(&own));
        self.hub.note_interest(&mut subscribers);
    }
}

impl HubSubscription {
    /// Waits for the next delivery; `None` once the hub was closed and the queue is empty. Safe to drop and call again.
    pub async fn recv(&mut self) -> Option<Delivery> {
        loop {
            {
                let mut queue = lock(&self.subscriber.queue);
                match queue.waiting.pop_front() {
                    Some(delivery) => return Some(delivery),
                    None if queue.closed => return None,
                    None => {}
                }
            }
            self.subscriber.arrived.notified().await;
        }
    }
}

/// Locks a mutex whose holder cannot leave it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Wake};

    use super::*;
    use pando_ipc::Topic;
    use serde_json::Value;

    fn event(topic: &'static str, seq: Option<u64>) -> Arc<Envelope> {
        let mut event = Envelope::new("i", Topic::known(topic), Value::Null);
        event.seq = seq;
        Arc::new(event)
    }

    fn pattern(text: &str) -> [Pattern; 1] {
        [Pattern::new(text).unwrap()]
    }

    async fn seqs(mut subscription: HubSubscription) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(delivery) = subscription.recv().await {
            match delivery {
                Delivery::Event(event) => seen.push(event.seq.unwrap()),
                Delivery::Lagged(n) => panic!("lost {n}"),
            }
        }
        seen
    }

    #[tokio::test]
    async fn a_pattern_selects_and_a_duplicate_is_dropped() {
        let hub = Hub::new();
        hub.start_behind(3);
        let (all, family, one) =
            (hub.subscribe(pattern("*")), hub.subscribe(pattern("a.*")), hub.subscribe(pattern("b.c")));
        for (topic, seq) in [("a.b", 2), ("a.b", 4), ("b.c", 5), ("b.c", 5), ("a.b", 4), ("a.x", 6)] {
            hub.deliver(&event(topic, Some(seq)));
        }
        hub.close();
        assert_eq!((seqs(all).await, seqs(family).await, seqs(one).await), (vec![4, 5, 6], vec![4, 6], vec![5]));
        assert_eq!(hub.position(), 6);
    }

    #[derive(Debug, Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn only_those_are_woken_whom_an_event_concerns() {
        let hub = Hub::new();
        let mut family = hub.subscribe(pattern("a.*"));
        let woken = Arc::<Woken>::default();
        let waker = Arc::clone(&woken).into();
        let mut waits = pin!(family.recv());
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        hub.deliver(&event("b.c", Some(1)));
        assert!(!woken.0.load(Ordering::Acquire));
        hub.deliver(&event("a.b", Some(2)));
        assert!(woken.0.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn interest_is_what_the_subscribers_select_and_what_is_older_than_one_is_not_for_it() {
        let hub = Hub::new();
        let interest = hub.interest();
        let selected = || interest.borrow().iter().map(ToString::to_string).collect::<Vec<_>>();
        let early = hub.subscribe(["a.b", "c.*"].map(|text| Pattern::new(text).unwrap()));
        let late = hub.subscribe_behind(2, pattern("a.b"));
        assert_eq!(selected(), ["a.b", "c.*"]);
        let all = hub.subscribe(pattern("*"));
        assert_eq!(selected(), ["*"]);
        drop(all);
        for seq in 1..=3 {
            hub.deliver(&event("a.b", Some(seq)));
        }
        hub.close();
        assert_eq!((seqs(early).await, seqs(late).await), (vec![1, 2, 3], vec![3]));
        assert!(selected().is_empty());
    }

    #[tokio::test]
    async fn numbers_that_begin_anew_are_delivered_again() {
        let hub = Hub::new();
        hub.start_behind(9);
        let mut all = hub.subscribe_behind(9, pattern("*"));
        hub.resync(1, 9);
        hub.deliver(&event("a", Some(1)));
        hub.resync(2, 5);
        hub.deliver(&event("a", Some(5)));
        hub.deliver(&event("a", Some(6)));
        hub.close();
        let mut seen = Vec::new();
        while let Some(delivery) = all.recv().await {
            seen.push(match delivery {
                Delivery::Event(event) => format!("{}", event.seq.unwrap()),
                Delivery::Lagged(lost) => format!("lost {lost}"),
            });
        }
        assert_eq!(seen, ["lost 1", "1", "lost 4", "6"]);
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_told_where_and_how_much_it_lost() {
        let hub = Hub::new();
        let mut slow = hub.subscribe(pattern("*"));
        let quick = hub.subscribe(pattern("*"));
        for seq in 1..=QUEUE_EVENTS as u64 + 3 {
            hub.deliver(&event("a", Some(seq)));
        }
        drop(quick);
        for seq in 1..=QUEUE_EVENTS as u64 {
            assert!(matches!(slow.recv().await, Some(Delivery::Event(event)) if event.seq == Some(seq)));
        }
        assert_eq!(slow.recv().await, Some(Delivery::Lagged(3)));
        hub.deliver(&event("a", Some(QUEUE_EVENTS as u64 + 4)));
        assert!(
            matches!(slow.recv().await, Some(Delivery::Event(event)) if event.seq == Some(QUEUE_EVENTS as u64 + 4))
        );
    }

    #[tokio::test]
    async fn a_waiting_subscriber_wakes() {
        let hub = Hub::new();
        let mut waiting = hub.subscribe(pattern("*"));
        let (received, ()) = tokio::join!(waiting.recv(), async {
            tokio::task::yield_now().await;
            hub.deliver(&event("a", None));
        });
        assert!(matches!(received, Some(Delivery::Event(_))));
    }
}
