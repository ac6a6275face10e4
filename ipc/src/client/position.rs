//! Where a follower stands in the journal, and what each frame and page means from there: it decides, without waiting.

use std::sync::Arc;

use fnv::FnvHashMap;
use uuid::Uuid;

use super::follow::Followed;
use super::history::{Page, Resync};
use crate::envelope::Envelope;
use crate::topic::{Pattern, Topic};

/// Most counters of ephemeral events that are kept. When more publishers and topics appear, all are forgotten: a loss
/// just then goes unseen.
const MAX_COUNTERS: usize = 4_096;

/// What to do with a durable frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next one.
    Deliver,
    /// It was delivered already.
    Duplicate,
    /// Something before it is missing: read the journal, which holds this one too.
    Gap,
}

/// How far the journal was delivered.
#[derive(Debug)]
pub(super) struct Position {
    /// Whether all topics are followed: then every `seq` comes, and a missing number is a gap.
    is_whole: bool,
    /// Everything followed up to here was delivered.
    floor: u64,
    /// The database that the numbers belong to, once it is known.
    database: Option<Uuid>,
    /// With a filter: the last event delivered of each topic, where that is beyond the floor.
    last: FnvHashMap<Topic, u64>,
    /// Term and counter of the last ephemeral event, by publisher and topic.
    counters: FnvHashMap<(String, Topic), (Option<u64>, u64)>,
}

impl Position {
    pub(super) fn new(patterns: &[Pattern], floor: u64, database: Option<Uuid>) -> Self {
        let is_whole = patterns.contains(&Pattern::All);
        Self { is_whole, floor, database, last: FnvHashMap::default(), counters: FnvHashMap::default() }
    }

    /// Returns the position up to which everything was delivered.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Returns the database that the position belongs to, once it is known.
    pub(super) fn database(&self) -> Option<Uuid> {
        self.database
    }

    /// Begins here.
    pub(super) fn start(&mut self, floor: u64) {
        self.floor = floor;
        self.last.clear();
    }

    /// Tells whether the journal has more than was delivered, as far as we know.
    pub(super) fn is_behind(&self, head: u64) -> bool {
        head > self.floor
    }

    /// Judges a durable frame; `prev` is the number of the event before it on its topic.
    pub(super) fn frame(&mut self, topic: &Topic, seq: u64, prev: Option<u64>) -> Verdict {
        let known = self.known(topic);
        let missing = if self.is_whole { seq > known + 1 } else { prev.is_some_and(|prev| prev > known) };
        if seq <= known {
            Verdict::Duplicate
        } else if missing {
            Verdict::Gap
        } else {
            self.delivered(topic, seq);
            Verdict::Deliver
        }
    }

    /// Takes a page that was read from the floor. Returns what it brings, and whether there is more to read.
    pub(super) fn page(&mut self, page: Page) -> (Vec<Followed>, bool) {
        let Page { events, upto, head, database, resync } = page;
        if let Some((resync, start)) = self.replaced(head, database) {
            // The page was read from a position that means nothing there.
            self.start(start);
            return (vec![Followed::Resync(resync)], start < head);
        }
        let mut followed = Vec::new();
        if let Some(resync) = resync {
            self.advance(resync.to);
            followed.push(Followed::Resync(resync));
        }
        for event in events {
            let Some(seq) = event.seq else { continue };
            if seq > self.known(&event.topic) {
                self.delivered(&event.topic, seq);
                followed.push(Followed::Event(Arc::new(event)));
            }
        }
        self.advance(upto);
        (followed, upto < head)
    }

    /// Tells when the position means nothing in this journal: what is gone, and where to go on.
    fn replaced(&mut self, head: u64, database: Uuid) -> Option<(Resync, u64)> {
        let floor = self.floor;
        let before = if database.is_nil() { None } else { self.database.replace(database) };
        if before.is_some_and(|before| before != database) {
            let reason = "the database was replaced by another one, which is followed from its start".to_owned();
            return Some((Resync { from: 1, to: floor, reason }, 0));
        }
        let reason = format!("the journal ends at {head}, before position {floor}: its end was lost");
        (head < floor).then_some((Resync { from: head + 1, to: floor, reason }, head))
    }

    /// Returns how many ephemeral events of that publisher and topic were lost before this one.
    pub(super) fn ephemeral(&mut self, event: &Envelope, n: u64) -> u64 {
        if self.counters.len() >= MAX_COUNTERS {
            self.counters.clear();
        }
        let key = (event.instance_id.clone(), event.topic.clone());
        match self.counters.insert(key, (event.epoch, n)) {
            Some((epoch, last)) if epoch == event.epoch && n > last => n - last - 1,
            // A lower number, or another term, is a publisher that began anew.
            _ => 0,
        }
    }

    fn known(&self, topic: &Topic) -> u64 {
        self.last.get(topic).map_or(self.floor, |last| self.floor.max(*last))
    }

    fn delivered(&mut self, topic: &Topic, seq: u64) {
        if seq == self.floor + 1 {
            self.floor = seq;
        } else {
            self.last.insert(topic.clone(), seq);
        }
    }

    fn advance(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        self.last.retain(|_, last| *last > self.floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    const TOPICS: [&str; 4] = ["a.x", "a.y", "b.x", "c"];

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
    }

    /// A journal whose n-th event has the n-th topic.
    fn journal(topics: &[usize]) -> Vec<Envelope> {
        let mut last = [0; TOPICS.len()];
        let numbered = |(index, topic): (usize, &usize)| {
            let mut event = Envelope::new("i", Topic::known(TOPICS[*topic]), Value::Null);
            event.seq = Some(index as u64 + 1);
            event.prev = Some(std::mem::replace(&mut last[*topic], index as u64 + 1));
            event
        };
        topics.iter().enumerate().map(numbered).collect()
    }

    fn followed_by(patterns: &[Pattern], event: &Envelope) -> bool {
        patterns.iter().any(|pattern| pattern.matches(event.topic.as_str()))
    }

    fn since(journal: &[Envelope], after: u64, patterns: &[Pattern], limit: usize) -> Page {
        let events = journal[usize::try_from(after).unwrap()..].iter().filter(|event| followed_by(patterns, event));
        paged(events.take(limit).cloned().collect(), limit, journal.len() as u64)
    }

    /// Returns a page that looked no further than its limit needed.
    fn paged(events: Vec<Envelope>, limit: usize, head: u64) -> Page {
        let last = events.last().and_then(|event| event.seq).unwrap_or(head);
        let upto = if events.len() < limit { head } else { last };
        Page { events, upto, head, database: Uuid::nil(), resync: None }
    }

    struct Model {
        position: Position,
        patterns: Vec<Pattern>,
        delivered: Vec<u64>,
    }

    impl Model {
        fn new(patterns: Vec<Pattern>) -> Self {
            Self { position: Position::new(&patterns, 0, None), patterns, delivered: Vec::new() }
        }

        fn frame(&mut self, journal: &[Envelope], event: &Envelope, limit: usize) {
            if !followed_by(&self.patterns, event) {
                return;
            }
            let seq = event.seq.unwrap();
            match self.position.frame(&event.topic, seq, event.prev) {
                Verdict::Deliver => self.delivered.push(seq),
                Verdict::Duplicate => {}
                Verdict::Gap => self.replay(journal, limit),
            }
        }

        fn replay(&mut self, journal: &[Envelope], limit: usize) {
            loop {
                let (followed, more) = self.position.page(since(journal, self.position.floor(), &self.patterns, limit));
                for item in followed {
                    let Followed::Event(event) = item else { panic!("{item:?}") };
                    self.delivered.push(event.seq.unwrap());
                }
                if !more {
                    break;
                }
            }
        }
    }

    /// What the network does to one published event.
    #[derive(Debug, Clone)]
    enum Fate {
        Arrives,
        Lost,
        Twice,
        /// An older frame arrives once more, so many events back.
        Echo(usize),
        /// It comes after the next one.
        Late,
        Reconnect,
        Heartbeat,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            8 => Just(Fate::Arrives),
            2 => Just(Fate::Lost),
            1 => Just(Fate::Twice),
            1 => (1..20_usize).prop_map(Fate::Echo),
            1 => Just(Fate::Late),
            1 => Just(Fate::Reconnect),
            1 => Just(Fate::Heartbeat),
        ]
    }

    proptest! {
        #[test]
        fn the_journal_is_delivered_once_whatever_the_network_does(
            events in prop::collection::vec((0..TOPICS.len(), fate()), 0..200),
            filter in prop::sample::select(vec![vec!["*"], vec!["a.*"], vec!["a.*", "c"], vec!["b.x"], vec!["a.x", "*"]]),
            limit in 1..10_usize,
        ) {
            let all = journal(&events.iter().map(|(topic, _)| *topic).collect::<Vec<_>>());
            let mut model = Model::new(patterns(&filter));
            let mut late = None;
            for (index, (_, fate)) in events.iter().enumerate() {
                let (so_far, event) = (&all[..=index], &all[index]);
                match fate {
                    Fate::Arrives => model.frame(so_far, event, limit),
                    Fate::Lost => {}
                    Fate::Twice => (0..2).for_each(|_| model.frame(so_far, event, limit)),
                    Fate::Echo(back) => {
                        model.frame(so_far, event, limit);
                        model.frame(so_far, &all[index.saturating_sub(*back)], limit);
                    }
                    Fate::Late => late = Some(event),
                    Fate::Reconnect => model.replay(so_far, limit),
                    Fate::Heartbeat => if model.position.is_behind(index as u64 + 1) { model.replay(so_far, limit) },
                }
                if !matches!(fate, Fate::Late) && let Some(event) = late.take() {
                    model.frame(so_far, event, limit);
                }
            }
            model.replay(&all, limit);
            prop_assert_eq!(model.position.floor(), all.len() as u64);
            prop_assert!(model.position.last.is_empty());

            let wanted: Vec<u64> =
                all.iter().filter(|event| followed_by(&model.patterns, event)).filter_map(|event| event.seq).collect();
            let mut sorted = model.delivered.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted, "each exactly once");
            for topic in TOPICS {
                let of_topic: Vec<_> =
                    model.delivered.iter().filter(|seq| all[usize::try_from(**seq - 1).unwrap()].topic.as_str() == topic).collect();
                prop_assert!(of_topic.is_sorted(), "in order within {}", topic);
            }
            if filter.contains(&"*") || filter.len() == 1 && !filter[0].ends_with('*') {
                prop_assert!(model.delivered.is_sorted(), "in order");
            }
        }

        #[test]
        fn without_silent_holes_a_filter_keeps_the_order(
            events in prop::collection::vec((0..TOPICS.len(), any::<bool>()), 0..200),
        ) {
            let all = journal(&events.iter().map(|(topic, _)| *topic).collect::<Vec<_>>());
            let mut model = Model::new(patterns(&["a.*", "c"]));
            let mut linked = true;
            for (index, (_, toggle)) in events.iter().enumerate() {
                if *toggle {
                    linked = !linked;
                    if linked {
                        model.replay(&all[..index], 3);
                    }
                }
                if linked {
                    model.frame(&all[..=index], &all[index], 3);
                }
            }
            prop_assert!(model.delivered.is_sorted());
        }
    }

    #[test]
    fn with_a_filter_a_hole_in_one_topic_is_seen_behind_another() {
        let all = journal(&[0, 0, 1, 0]);
        let mut model = Model::new(patterns(&["a.*"]));
        for index in [0, 2, 3] {
            model.frame(&all[..=index], &all[index], 10);
        }
        assert_eq!(model.delivered, [1, 3, 2, 4]);
    }

    #[test]
    fn what_is_gone_is_told_and_the_rest_follows() {
        let all = journal(&[0, 0, 0, 0]);
        let mut position = Position::new(&patterns(&["*"]), 1, None);
        let resync = Resync { from: 2, to: 3, reason: "retention".into() };
        let page = Page { resync: Some(resync.clone()), ..paged(all[3..].to_vec(), 9, 4) };
        let (followed, more) = position.page(page);
        assert_eq!(followed, [Followed::Resync(resync), Followed::Event(Arc::new(all[3].clone()))]);
        assert!(!more && position.floor() == 4);
    }

    #[test]
    fn a_journal_that_ends_before_our_position_lost_its_end() {
        let mut position = Position::new(&patterns(&["a.*"]), 100, None);
        let (followed, more) = position.page(paged(vec![], 9, 3));
        assert!(matches!(&followed[..], [Followed::Resync(Resync { from: 4, to: 100, .. })]), "{followed:?}");
        assert!(!more);
        assert_eq!(position.frame(&Topic::known("a.x"), 4, Some(2)), Verdict::Deliver);
    }

    #[test]
    fn another_database_is_recognised_however_long_its_journal_is() {
        let all = journal(&[0, 0, 0, 0]);
        let mut position = Position::new(&patterns(&["*"]), 0, None);
        let of = |database: u128, from: usize| Page {
            database: Uuid::from_u128(database),
            ..paged(all[from..].to_vec(), 9, 4)
        };
        assert_eq!(position.page(of(1, 0)).0.len(), 4);
        assert_eq!(position.page(of(1, 4)), (vec![], false));
        let (followed, more) = position.page(of(2, 4));
        assert!(matches!(&followed[..], [Followed::Resync(Resync { from: 1, to: 4, .. })]), "{followed:?}");
        assert!(more, "read again from 0");
        assert_eq!(position.page(of(2, 0)).0.len(), 4);
    }

    #[test]
    fn a_jump_of_an_ephemeral_counter_is_a_loss_and_a_restart_is_none() {
        let mut position = Position::new(&patterns(&["*"]), 0, None);
        let mut lost = |instance: &str, epoch: u64, n: u64| {
            let mut event = Envelope::new(instance, Topic::known("llm.token"), Value::Null);
            (event.epoch, event.n) = (Some(epoch), Some(n));
            position.ephemeral(&event, n)
        };
        assert_eq!([lost("i", 1, 5), lost("i", 1, 6), lost("i", 1, 9)], [0, 0, 2]);
        assert_eq!([lost("other", 1, 9), lost("i", 1, 1), lost("i", 2, 7), lost("i", 2, 9)], [0, 0, 0, 1]);
    }
}
