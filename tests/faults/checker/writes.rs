//! Writes: there once when acknowledged, not at all when they failed, in order, and in time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{
    Call, DATABASE_GONE, DATABASE_MOVED, DISK_FAILS, DISK_WORKS, Invariant, SLACK, STEP_DOWN_WITHIN, Seen, seconds,
};
use crate::history::{Database, Deed};
use crate::record::{Outcome, What};

/// Topic of the events that are published under an op id.
const PUBLISHED: &str = "trial.published";
/// Topic of the events of inserted rows.
const INSERTED: &str = "db.trial.created";
/// Topic of the event that ends a write that changed rows.
const CHANGED: &str = "db.changed";

pub(super) fn check(seen: &mut Seen<'_>) {
    let history = seen.history;
    let found: Vec<_> = history.databases.iter().map(writes_in).collect();
    for (number, (database, found)) in history.databases.iter().zip(&found).enumerate() {
        if database.integrity != "ok" {
            seen.violated(Invariant::Integrity, format!("database {}: {}", database.id, database.integrity));
        }
        journal(seen, database);
        for (&op, places) in found {
            if places.len() > 1 {
                seen.violated(Invariant::NothingTwice, format!("{op} is there {} times: {places:?}", places.len()));
            }
            if let Some(other) = seen.place.insert(op, number) {
                seen.violated(Invariant::NothingTwice, format!("{op} is in databases {other} and {number}"));
            }
        }
    }
    check_calls(seen, &found);
    order(seen);
    reads(seen);
    on_disk(seen);
}

/// While the disk of an epoch's primary fails, nothing is acknowledged in that epoch that was begun meanwhile.
fn on_disk(seen: &mut Seen<'_>) {
    let mut failing: Option<(u64, &str)> = None;
    let mut wrong = Vec::new();
    for dated in &seen.history.deeds {
        match &dated.deed {
            Deed::Fault { name, detail } if name == DISK_FAILS => failing = Some((dated.at, detail)),
            Deed::Fault { name, .. } if name == DISK_WORKS => {
                let Some((since, failed)) = failing.take() else { continue };
                for Call { op, invoked, returned, .. } in seen.calls.values() {
                    if let Some((at, Outcome::Ok { epoch, replayed: false, .. })) = returned
                        && (since..dated.at).contains(invoked)
                        && *at < dated.at
                        && failed.ends_with(&format!(" {epoch}"))
                    {
                        wrong.push(format!("{op} was acknowledged at {} in spite of {failed}", seconds(*at)));
                    }
                }
            }
            _ => {}
        }
    }
    seen.all_violated(Invariant::OnDisk, wrong);
}

/// Returns the `seq` of the last event of each op in a database. A row is there by its event; the write ends with the summary behind it.
fn writes_in(database: &Database) -> HashMap<&str, Vec<u64>> {
    let ends =
        database.events.iter().enumerate().filter(|(_, it)| it.event.topic == INSERTED).filter_map(|(at, it)| {
            let summary = database.events.get(at + 1).filter(|next| next.event.topic == CHANGED);
            Some((it.event.mark.parse().ok()?, summary.unwrap_or(it).event.seq))
        });
    let seqs: HashMap<u64, u64> = ends.collect();
    let mut found: HashMap<&str, Vec<u64>> = HashMap::new();
    for (rowid, op) in &database.rows {
        // A row without an event has no number: 0 never matches an acknowledgement.
        found.entry(op).or_default().push(seqs.get(rowid).copied().unwrap_or(0));
    }
    for published in database.events.iter().filter(|it| it.event.topic == PUBLISHED) {
        found.entry(&published.event.mark).or_default().push(published.event.seq);
    }
    found
}

fn check_calls(seen: &mut Seen<'_>, found: &[HashMap<&str, Vec<u64>>]) {
    let gone = seen.faults(DATABASE_GONE);
    let killed = ended_by_force(seen);
    let calls: Vec<Call<'_>> = seen.calls.values().cloned().collect();
    for call in &calls {
        let Call { who, op, invoked, .. } = call;
        let place = seen.place.get(op).copied();
        match &call.returned {
            Some((at, Outcome::Ok { seq, epoch, replayed })) => match place {
                Some(place) => {
                    let database = &seen.history.databases[place];
                    let is_at = found[place][op].contains(seq) && epoch_of(database, *seq) == Some(*epoch);
                    if !is_at {
                        let shown = format!(
                            "{op} was acknowledged as seq {seq} of epoch {epoch} (replayed: {replayed}), the journal has it at {:?}",
                            found[place][op]
                        );
                        seen.violated(Invariant::AckNamesItsEvent, shown);
                    }
                }
                None if gone.iter().any(|gone| *at < gone + nanos(STEP_DOWN_WITHIN + SLACK)) => {}
                None => seen.violated(
                    Invariant::NothingLost,
                    format!(
                        "{op} ({:?}), acknowledged at {} as seq {seq} of epoch {epoch}, is not there",
                        call.work,
                        seconds(*at)
                    ),
                ),
            },
            Some((at, Outcome::Fail { why })) if place.is_some() => seen.violated(
                Invariant::NothingInvented,
                format!("{op} is there, though its caller was told at {} that it failed: {why}", seconds(*at)),
            ),
            None if !killed.contains(who) => {
                seen.violated(Invariant::Deadline, format!("{op}, begun at {}, never ended", seconds(*invoked)));
            }
            _ => {}
        }
        if let Some((at, outcome)) = &call.returned {
            let took = Duration::from_nanos(at - invoked);
            if took > call.within + SLACK + seen.stopped(who, *invoked, *at) {
                let shown = format!("{op} took {took:?} of its {:?}: {outcome:?}", call.within);
                seen.violated(Invariant::Deadline, shown);
            }
        }
    }
    for (number, found) in found.iter().enumerate() {
        for (op, seqs) in found.iter().filter(|(op, _)| !seen.calls.contains_key(*op)).collect::<Vec<_>>() {
            let shown = format!("{op} in database {number} at {seqs:?} was begun by nobody");
            seen.violated(Invariant::NothingInvented, shown);
        }
    }
}

/// Returns the instances whose calls need not end: they were killed, or asked to leave in the middle of them.
fn ended_by_force<'a>(seen: &Seen<'a>) -> HashSet<&'a str> {
    let deeds = seen.history.deeds.iter().filter_map(|dated| match &dated.deed {
        Deed::Kill { who } | Deed::Term { who } => Some(who.as_str()),
        _ => None,
    });
    let points = seen.history.instances.iter().filter_map(|(who, records)| {
        let kills = |what: &What| matches!(what, What::Point { action: Some(action), .. } if action == "Kill");
        records.iter().any(|record| kills(&record.what)).then_some(who.as_str())
    });
    deeds.chain(points).collect()
}

fn epoch_of(database: &Database, seq: u64) -> Option<u64> {
    let at = database.events.binary_search_by_key(&seq, |it| it.event.seq).ok()?;
    Some(database.events[at].event.epoch)
}

/// The journal is dense; along it epochs never fall; `prev` names the event before on the same topic.
fn journal(seen: &mut Seen<'_>, database: &Database) {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for pair in database.events.windows(2) {
        let [before, after] = [&pair[0].event, &pair[1].event];
        if after.seq != before.seq + 1 || after.epoch < before.epoch {
            seen.violated(Invariant::JournalDense, format!("{before:?} is followed by {after:?}"));
        }
    }
    for journaled in &database.events {
        let event = &journaled.event;
        let prev = last.insert(&event.topic, event.seq);
        if prev.is_some_and(|prev| prev != journaled.prev) {
            let shown = format!("{event:?} says that {} was the last of its topic, not {prev:?}", journaled.prev);
            seen.violated(Invariant::JournalDense, shown);
        }
        if event.topic == PUBLISHED && !seen.calls.contains_key(event.mark.as_str()) {
            seen.violated(Invariant::NothingInvented, format!("{event:?} was published by nobody"));
        }
    }
    let rows: HashSet<u64> = database.rows.iter().map(|(rowid, _)| *rowid).collect();
    for it in database.events.iter().filter(|it| it.event.topic == INSERTED) {
        if !it.event.mark.parse().is_ok_and(|rowid| rows.contains(&rowid)) {
            seen.violated(Invariant::JournalDense, format!("{:?} tells of a row that is not there", it.event));
        }
    }
}

/// If A was acknowledged before B was begun, A has the smaller number; in each database for itself.
fn order(seen: &mut Seen<'_>) {
    for number in 0..seen.history.databases.len() {
        let here = seen.calls.values().filter(|call| call.is_acked() && seen.place.get(call.op) == Some(&number));
        let mut calls: Vec<(&Call<'_>, u64, u64)> = here
            .filter_map(|call| match call.returned {
                Some((at, Outcome::Ok { seq, .. })) => Some((call, at, *seq)),
                _ => None,
            })
            .collect();
        let mut ends = calls.clone();
        calls.sort_by_key(|(call, ..)| call.invoked);
        ends.sort_by_key(|(_, at, _)| *at);
        let mut ends = ends.into_iter().peekable();
        let mut latest: Option<(&Call<'_>, u64, u64)> = None;
        let mut wrong = Vec::new();
        for (call, _, seq) in &calls {
            while let Some(ended) = ends.next_if(|(_, at, _)| *at < call.invoked) {
                if latest.is_none_or(|(_, _, seq)| ended.2 > seq) {
                    latest = Some(ended);
                }
            }
            if let Some((before, at, larger)) = latest.filter(|(_, _, larger)| larger >= seq) {
                wrong.push(format!(
                    "{} was acknowledged as seq {larger} at {}, {} was begun at {} and has seq {seq}",
                    before.op,
                    seconds(at),
                    call.op,
                    seconds(call.invoked)
                ));
            }
        }
        seen.all_violated(Invariant::RealTimeOrder, wrong);
    }
}

fn reads(seen: &mut Seen<'_>) {
    let gone = [seen.faults(DATABASE_GONE), seen.faults(DATABASE_MOVED)].concat();
    for (who, records) in &seen.history.instances {
        for record in records {
            let What::Read { op, found: false } = &record.what else { continue };
            if gone.iter().all(|gone| record.at < *gone) {
                let shown = format!("{who} wrote {op} and did not see it at {}", seconds(record.at));
                seen.violated(Invariant::ReadYourWrites, shown);
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}
