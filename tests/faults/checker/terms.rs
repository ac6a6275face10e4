//! Terms: one primary at a time, each in an epoch of its own, and nothing acknowledged in an epoch that is over.

use std::collections::HashMap;
use std::time::Duration;

use super::{Invariant, LOCK_LOST, SLACK, STEP_DOWN_WITHIN, Seen, seconds};
use crate::history::Deed;
use crate::record::{Outcome, Record, What};

/// A primary's term, within the times between which it surely lasted.
#[derive(Debug)]
struct Term<'a> {
    who: &'a str,
    epoch: u64,
    from: u64,
    until: u64,
}

pub(super) fn check(seen: &mut Seen<'_>) {
    for (database, mut terms) in terms(seen) {
        terms.sort_by_key(|term| term.from);
        apart(seen, database, &terms);
        fenced(seen, database, &terms);
    }
}

/// Returns the terms of each database.
fn terms<'a>(seen: &Seen<'a>) -> HashMap<&'a str, Vec<Term<'a>>> {
    let mut terms: HashMap<&str, Vec<Term<'_>>> = HashMap::new();
    for (who, records) in &seen.history.instances {
        for (at, record) in records.iter().enumerate() {
            let What::Role { role, epoch: Some(epoch), database: Some(database) } = &record.what else { continue };
            if role == "primary" {
                let until = released(&records[at..]).unwrap_or(u64::MAX).min(ended(seen, who));
                terms.entry(database).or_default().push(Term { who, epoch: *epoch, from: record.at, until });
            }
        }
    }
    terms
}

/// Returns when an instance began to let the lock go, or died at a point.
fn released(records: &[Record]) -> Option<u64> {
    records.iter().find_map(|record| match &record.what {
        What::Point { name, action } if name == "lock.release" || action.as_deref() == Some("Kill") => Some(record.at),
        _ => None,
    })
}

/// Returns when the harness ended an instance, or saw its end.
fn ended(seen: &Seen<'_>, who: &str) -> u64 {
    let end = seen.history.deeds.iter().find_map(|dated| match &dated.deed {
        Deed::Kill { who: ended } | Deed::End { who: ended, .. } if ended == who => Some(dated.at),
        _ => None,
    });
    end.unwrap_or(u64::MAX)
}

fn apart(seen: &mut Seen<'_>, database: &str, terms: &[Term<'_>]) {
    let lost = seen.faults(LOCK_LOST);
    for pair in terms.windows(2) {
        let [before, after] = [&pair[0], &pair[1]];
        if after.epoch <= before.epoch {
            let shown = format!("database {database}: {before:?} is followed by {after:?}");
            seen.violated(Invariant::EpochsGrow, shown);
        }
        // Whose lock was taken away steps down within a second; until then its successor's epoch fences it.
        let excused = lost.iter().any(|&lost| {
            let late = before.until.saturating_sub(lost);
            let stopped = seen.stopped(before.who, lost, before.until);
            lost <= after.from && Duration::from_nanos(late) <= STEP_DOWN_WITHIN + SLACK + stopped
        });
        if before.until > after.from && !excused {
            let shown = format!(
                "database {database}: {} led epoch {} until {}, {} leads epoch {} since {}",
                before.who,
                before.epoch,
                seconds(before.until),
                after.who,
                after.epoch,
                seconds(after.from)
            );
            seen.violated(Invariant::OnePrimary, shown);
        }
    }
}

/// What is begun after an epoch has begun is acknowledged in that epoch or a later one.
fn fenced(seen: &mut Seen<'_>, database: &str, terms: &[Term<'_>]) {
    let mut wrong = Vec::new();
    for call in seen.calls.values() {
        let is_here = seen.place.get(call.op).is_some_and(|&place| seen.history.databases[place].id == database);
        let Some((at, Outcome::Ok { epoch, seq, .. })) = call.returned.filter(|_| is_here) else { continue };
        let begun = terms.partition_point(|term| term.from <= call.invoked);
        if let Some(newer) = terms[..begun].iter().find(|term| term.epoch > *epoch) {
            wrong.push(format!(
                "{} was begun at {} and acknowledged at {} as seq {seq} of epoch {epoch}, but {} led epoch {} since {}",
                call.op,
                seconds(call.invoked),
                seconds(at),
                newer.who,
                newer.epoch,
                seconds(newer.from)
            ));
        }
    }
    seen.all_violated(Invariant::Fencing, wrong);
}
