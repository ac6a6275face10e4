//! Streams: what a subscriber sees is the journal from some event on, without gap, duplicate or stranger.

use std::collections::HashMap;

use super::{DATABASE_GONE, DATABASE_MOVED, Invariant, Seen};
use crate::history::Printed;
use crate::record::{Event, What};

/// Something that a subscriber was given.
enum Given {
    Event(Event),
    /// So many events are lost, and it was told.
    Lost(u64),
}

pub(super) fn check(seen: &mut Seen<'_>) {
    let mut streams: Vec<(String, Vec<Given>)> = Vec::new();
    for (who, records) in &seen.history.instances {
        let given = |what: &What| match what {
            What::Event(event) => Some(Given::Event(event.clone())),
            What::Lagged { events } => Some(Given::Lost(*events)),
            _ => None,
        };
        streams.push((who.clone(), records.iter().filter_map(|record| given(&record.what)).collect()));
    }
    for (tail, printed) in &seen.history.tails {
        streams.push((tail.clone(), printed.iter().filter_map(given).collect()));
    }
    let may_start_anew = [DATABASE_GONE, DATABASE_MOVED].iter().any(|fault| !seen.faults(fault).is_empty());
    for (who, stream) in streams {
        follow(seen, &who, &stream, may_start_anew);
    }
}

fn given(printed: &Printed) -> Option<Given> {
    let Printed { seq, epoch, topic, payload, resync } = printed;
    if let Some(resync) = resync {
        let bound = |key: &str| resync.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        return Some(Given::Lost(bound("to") + 1 - bound("from")));
    }
    Some(Given::Event(Event { seq: (*seq)?, epoch: *epoch, topic: topic.clone(), mark: Event::mark(payload) }))
}

fn follow(seen: &mut Seen<'_>, who: &str, stream: &[Given], may_start_anew: bool) {
    let journal: HashMap<(u64, u64), Vec<&Event>> = {
        let mut journal: HashMap<_, Vec<_>> = HashMap::new();
        for it in seen.history.databases.iter().flat_map(|database| &database.events) {
            journal.entry((it.event.epoch, it.event.seq)).or_default().push(&it.event);
        }
        journal
    };
    let mut wrong = Vec::new();
    let (mut before, mut lost) = (None::<&Event>, 0);
    for given in stream {
        let event = match given {
            Given::Event(event) => event,
            Given::Lost(events) => {
                lost += events;
                continue;
            }
        };
        let is_next = before.is_none_or(|before| event.seq > before.seq && event.seq - before.seq <= lost + 1);
        if !is_next && !may_start_anew {
            wrong.push(format!("{who} saw {event:?} behind {before:?}; it was told of {lost} lost ones"));
        }
        let known = journal.get(&(event.epoch, event.seq));
        if !known.is_some_and(|known| known.contains(&event)) && !may_start_anew {
            wrong.push(format!("{who} saw {event:?}, the journal has {known:?}"));
        }
        (before, lost) = (Some(event), 0);
    }
    seen.all_violated(Invariant::StreamIsJournal, wrong);
}
