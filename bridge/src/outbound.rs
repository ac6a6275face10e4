//! From the primary to everyone: committed events and ephemeral ones, to this process and to the bus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use pando_ipc::topic::PROBE_PREFIX;
use pando_ipc::{Bus, Envelope, Recorded, Topic};

use crate::hub::Hub;

/// Where events leave this process: the bus, or a stand-in in tests.
pub trait Publisher: Send + Sync + std::fmt::Debug {
    /// Sends an event to whoever subscribed to its topic. Never blocks.
    fn publish(&self, event: &Envelope);

    /// Does the same with an event that is encoded already.
    fn publish_frame(&self, frame: &[u8]);
}

impl Publisher for Bus {
    fn publish(&self, event: &Envelope) {
        Bus::publish(self, event);
    }

    fn publish_frame(&self, frame: &[u8]) {
        Bus::publish_frame(self, frame);
    }
}

/// Carries the events of one term: to the hub of this process, and out on the bus once it is attached.
#[derive(Debug)]
pub struct Outbound {
    hub: Hub,
    ways: RwLock<Ways>,
    /// Ephemeral events so far.
    counters: Mutex<Counters>,
}

/// Where committed events go.
#[derive(Debug, Default)]
struct Ways {
    /// The term and its bus, while it serves.
    bus: Option<(u64, Box<dyn Publisher>)>,
    /// The hub has all that was committed, so it takes what is committed from now on. Before, it is fed from the journal.
    is_live: bool,
}

/// Ephemeral events so far, per publisher and topic. Forgotten when the publisher leaves.
#[derive(Debug, Default)]
struct Counters(HashMap<String, HashMap<Topic, u64>>);

impl Counters {
    /// Counts an event and returns its number. Names are copied only for the first one.
    fn count(&mut self, event: &Envelope) -> u64 {
        if let Some(n) = self.0.get_mut(&event.instance_id).and_then(|topics| topics.get_mut(&event.topic)) {
            *n += 1;
            return *n;
        }
        self.0.entry(event.instance_id.clone()).or_default().insert(event.topic.clone(), 1);
        1
    }
}

impl Outbound {
    /// Returns the way out for one term. Committed events reach the hub once it is [live](Self::go_live), and others once a bus is attached.
    pub fn new(hub: Hub) -> Self {
        Self { hub, ways: RwLock::default(), counters: Mutex::default() }
    }

    /// Hands committed events to the hub from now on, if `is_fed` says of its position that it has all that was committed. Returns whether it does.
    pub fn go_live(&self, is_fed: impl FnOnce(u64) -> bool) -> bool {
        let mut ways = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        ways.is_live = is_fed(self.hub.position());
        ways.is_live
    }

    /// Sends everything that comes from now on to the bus of the term `epoch`, too.
    pub fn attach(&self, epoch: u64, bus: impl Publisher + 'static) {
        self.ways.write().unwrap_or_else(PoisonError::into_inner).bus = Some((epoch, Box::new(bus)));
    }

    /// Lets go of the bus: events reach the hub alone.
    pub fn detach(&self) {
        let bus = self.ways.write().unwrap_or_else(PoisonError::into_inner).bus.take();
        drop(bus);
    }

    /// Carries committed events, in commit order. Called by the writer's thread; never blocks.
    pub fn carry(&self, events: &[Recorded]) {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if let Some((_, bus)) = &ways.bus {
                bus.publish_frame(event.frame());
            }
            if ways.is_live {
                self.hub.deliver_recorded(event);
            }
        }
    }

    /// Numbers an ephemeral event and carries it; it is in no journal and whoever misses it learns so from `n`.
    ///
    /// A probe is of use to its own subscriber alone and is not counted.
    pub fn ephemeral(&self, mut event: Envelope) -> Arc<Envelope> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if !event.topic.as_str().starts_with(PROBE_PREFIX) {
            event.n = Some(counters.count(&event));
        }
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        event.epoch = ways.bus.as_ref().map(|(epoch, _)| *epoch);
        let event = Arc::new(event);
        // Under the lock, so that the numbers leave in order.
        if let Some((_, bus)) = &ways.bus {
            bus.publish(&event);
        }
        self.hub.deliver(&event);
        event
    }

    /// Forgets the counters of a publisher that left.
    pub fn forget(&self, instance_id: &str) {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).0.remove(instance_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_ipc::Pattern;
    use serde_json::Value;

    #[derive(Debug, Clone, Default)]
    struct Sent(Arc<Mutex<Vec<Envelope>>>);

    impl Publisher for Sent {
        fn publish(&self, event: &Envelope) {
            self.0.lock().unwrap().push(event.clone());
        }

        fn publish_frame(&self, frame: &[u8]) {
            self.publish(&Envelope::from_frame(frame).unwrap());
        }
    }

    #[tokio::test]
    async fn an_event_reaches_the_hub_and_the_bus_once() {
        let (hub, sent) = (Hub::new(), Sent::default());
        let mut local = hub.subscribe([Pattern::All]);
        let outbound = Outbound::new(hub);
        assert!(outbound.go_live(|position| position == 0));
        let mut early = Envelope::new("i", Topic::known("a.b"), Value::Null);
        early.seq = Some(1);
        outbound.carry(&[Recorded::new(&early).unwrap()]);
        outbound.attach(7, sent.clone());
        let late = Envelope { seq: Some(2), ..early };
        outbound.carry(&[Recorded::new(&late).unwrap()]);
        for publisher in ["i", "j", "i"] {
            outbound.ephemeral(Envelope::new(publisher, Topic::known("llm.token"), Value::Null));
        }
        let seen: Vec<_> = sent.0.lock().unwrap().iter().map(|e| (e.instance_id.clone(), e.n, e.epoch)).collect();
        let token = |publisher: &str, n| (publisher.to_owned(), Some(n), Some(7));
        assert_eq!(seen, [("i".to_owned(), None, None), token("i", 1), token("j", 1), token("i", 2)]);
        for _ in 0..5 {
            assert!(matches!(local.recv().await, Some(crate::Delivery::Event(_))));
        }
    }

    #[tokio::test]
    async fn a_hub_that_is_behind_is_fed_from_the_journal_first() {
        let hub = Hub::new();
        let mut local = hub.subscribe([Pattern::All]);
        let outbound = Outbound::new(hub.clone());
        let event = |seq| Envelope { seq: Some(seq), ..Envelope::new("i", Topic::known("a.b"), Value::Null) };
        outbound.carry(&[Recorded::new(&event(2)).unwrap()]);
        assert!(!outbound.go_live(|position| position == 2), "it has neither");
        hub.deliver(&Arc::new(event(1)));
        hub.deliver(&Arc::new(event(2)));
        assert!(outbound.go_live(|position| position == 2));
        for seq in [2, 3] {
            outbound.carry(&[Recorded::new(&event(seq)).unwrap()]);
        }
        hub.close();
        let mut seen = Vec::new();
        while let Some(crate::Delivery::Event(event)) = local.recv().await {
            seen.extend(event.seq);
        }
        assert_eq!(seen, [1, 2, 3]);
    }
}
