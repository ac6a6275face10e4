//! The checker against histories made by hand: a calm one holds, and each promise that is broken in it is named.

use super::{Invariant, check};
use crate::history::{Database, Dated, Deed, History, Journaled, Printed};
use crate::record::{Event, Outcome, Record, What, Work};

const MS: u64 = 1_000_000;

fn event(seq: u64, epoch: u64, topic: &str, mark: &str) -> Event {
    Event { seq, epoch, topic: topic.to_owned(), mark: mark.to_owned() }
}

fn record(at_ms: u64, what: What) -> Record {
    Record { at: at_ms * MS, what }
}

fn invoke(at_ms: u64, op: &str, work: Work) -> Record {
    record(at_ms, What::Invoke { op: op.to_owned(), work, within_ms: 100 })
}

fn acked(at_ms: u64, op: &str, seq: u64, epoch: u64) -> Record {
    record(at_ms, What::Return { op: op.to_owned(), outcome: Outcome::Ok { seq, epoch, replayed: false } })
}

fn leads(at_ms: u64, epoch: u64) -> Record {
    record(at_ms, What::Role { role: "primary".to_owned(), epoch: Some(epoch), database: Some("d".to_owned()) })
}

fn deed(at_ms: u64, deed: Deed) -> Dated {
    Dated { at: at_ms * MS, deed }
}

/// Two terms: in the first `a` inserts and publishes and is killed, in the second `b` inserts.
fn calm() -> History {
    let journal = [
        (0, event(1, 1, "db.trial.created", "1")),
        (0, event(2, 1, "trial.published", "a-2")),
        (1, event(3, 2, "db.trial.created", "2")),
    ];
    let printed = |event: &Event| Printed {
        seq: Some(event.seq),
        epoch: event.epoch,
        topic: event.topic.clone(),
        payload: if event.topic == "trial.published" {
            serde_json::json!({"op": event.mark})
        } else {
            serde_json::json!({"payload": {"key": event.mark}})
        },
        resync: None,
    };
    let tail = journal.iter().map(|(_, event)| printed(event)).collect();
    let a = vec![
        leads(10, 1),
        invoke(11, "a-1", Work::Insert),
        acked(12, "a-1", 1, 1),
        invoke(13, "a-2", Work::Publish),
        acked(14, "a-2", 2, 1),
        invoke(15, "a-3", Work::Insert),
    ];
    let b = vec![
        record(11, What::Event(event(1, 1, "db.trial.created", "1"))),
        leads(30, 2),
        invoke(31, "b-1", Work::Insert),
        acked(40, "b-1", 3, 2),
        record(41, What::Read { op: "b-1".to_owned(), found: true }),
        record(50, What::Point { name: "lock.release".to_owned(), action: None }),
    ];
    History {
        instances: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
        tails: [("t".to_owned(), tail)].into(),
        deeds: vec![deed(20, Deed::Kill { who: "a".to_owned() }), deed(60, Deed::Wal { bytes: 1 })],
        databases: vec![Database {
            id: "d".to_owned(),
            epoch: 2,
            integrity: "ok".to_owned(),
            rows: vec![(1, "a-1".to_owned()), (2, "b-1".to_owned())],
            events: journal.into_iter().map(|(prev, event)| Journaled { prev, event }).collect(),
        }],
    }
}

/// Breaks the calm history and sees that this, and nothing else, is named.
#[track_caller]
fn check_named(expected: &[Invariant], break_it: impl FnOnce(&mut History)) {
    let mut history = calm();
    break_it(&mut history);
    let found = check(&history);
    let mut named: Vec<_> = found.iter().map(|violation| violation.invariant).collect();
    named.dedup();
    assert_eq!(named, expected, "{found:#?}");
}

fn of<'a>(history: &'a mut History, who: &str) -> &'a mut Vec<Record> {
    history.instances.get_mut(who).unwrap()
}

#[test]
fn a_calm_history_holds() {
    check_named(&[], |_| {});
}

#[test]
fn a_write_that_is_lost_or_doubled_is_named() {
    check_named(&[Invariant::JournalDense, Invariant::NothingLost], |it| drop(it.databases[0].rows.remove(1)));
    check_named(&[Invariant::NothingTwice], |it| it.databases[0].rows.push((3, "a-1".to_owned())));
    check_named(&[Invariant::NothingTwice], |it| {
        let twice = Journaled { prev: 2, event: event(4, 2, "trial.published", "a-2") };
        it.databases[0].events.push(twice);
    });
}

#[test]
fn a_write_that_nobody_made_or_that_failed_is_named() {
    check_named(&[Invariant::NothingInvented], |it| it.databases[0].rows.push((3, "x-1".to_owned())));
    check_named(&[Invariant::NothingInvented], |it| {
        let outcome = Outcome::Fail { why: "refused".to_owned() };
        of(it, "b")[3] = record(40, What::Return { op: "b-1".to_owned(), outcome });
    });
    // What became of a killed caller's last write is nobody's business.
    check_named(&[], |it| it.databases[0].rows.push((3, "a-3".to_owned())));
}

#[test]
fn an_acknowledgement_of_another_event_is_named() {
    check_named(&[Invariant::AckNamesItsEvent, Invariant::RealTimeOrder], |it| of(it, "b")[3] = acked(40, "b-1", 2, 2));
    check_named(&[Invariant::AckNamesItsEvent, Invariant::Fencing], |it| of(it, "b")[3] = acked(40, "b-1", 3, 1));
    let summary = |it: &mut History| {
        it.databases[0].events.push(Journaled { prev: 0, event: event(4, 2, "db.changed", "") });
        it.tails.clear();
    };
    check_named(&[Invariant::AckNamesItsEvent], summary);
    check_named(&[], |it| {
        summary(it);
        of(it, "b")[3] = acked(40, "b-1", 4, 2);
    });
}

#[test]
fn a_gap_or_a_fallen_epoch_in_the_journal_is_named() {
    check_named(&[Invariant::JournalDense, Invariant::StreamIsJournal], |it| {
        it.databases[0].events[2].event.epoch = 0;
        of(it, "b")[3] = acked(40, "b-1", 3, 0);
        of(it, "b")[1] = leads(30, 0);
        of(it, "a")[0] = record(10, What::Lagged { events: 0 });
    });
    check_named(&[Invariant::JournalDense], |it| it.databases[0].events[2].prev = 2);
}

#[test]
fn numbers_that_contradict_time_are_named() {
    check_named(&[Invariant::RealTimeOrder], |it| {
        // a-2 has the larger number, but ended before a-1 began.
        let a = of(it, "a");
        a[1] = invoke(15, "a-1", Work::Insert);
        a[2] = acked(16, "a-1", 1, 1);
        a.swap(1, 3);
        a.swap(2, 4);
    });
}

#[test]
fn two_primaries_at_once_are_named() {
    check_named(&[Invariant::OnePrimary], |it| it.deeds[0] = deed(35, Deed::Kill { who: "a".to_owned() }));
    check_named(&[Invariant::EpochsGrow], |it| {
        of(it, "b")[1] = leads(30, 1);
        of(it, "b")[3] = acked(40, "b-1", 3, 1);
        it.databases[0].events[2].event.epoch = 1;
        it.tails.clear();
    });
    // A lock that was taken away excuses a second.
    check_named(&[], |it| {
        it.deeds[0] = deed(35, Deed::Kill { who: "a".to_owned() });
        let (name, detail) = (super::LOCK_LOST.to_owned(), String::new());
        it.deeds.push(deed(25, Deed::Fault { name, detail }));
    });
}

#[test]
fn an_acknowledgement_in_an_epoch_that_is_over_is_named() {
    check_named(&[Invariant::Fencing], |it| {
        let late = Journaled { prev: 2, event: event(4, 1, "trial.published", "a-4") };
        it.databases[0].events.push(Journaled { event: event(4, 2, "trial.published", "a-4"), ..late });
        it.databases[0].events[3].event.epoch = 1;
        it.databases[0].events[3].event.seq = 3;
        it.databases[0].events.swap(2, 3);
        it.databases[0].events[3].event.seq = 4;
        it.databases[0].events[3].prev = 1;
        it.tails.clear();
        of(it, "a").extend([invoke(32, "a-4", Work::Publish), acked(33, "a-4", 3, 1)]);
        of(it, "b")[3] = acked(40, "b-1", 4, 2);
    });
}

#[test]
fn a_call_that_is_late_or_never_ends_is_named() {
    check_named(&[Invariant::Deadline], |it| of(it, "b")[3] = acked(31 + 351, "b-1", 3, 2));
    check_named(&[Invariant::Deadline], |it| of(it, "b").push(invoke(45, "b-2", Work::Insert)));
    // The time in which its process was stopped does not count.
    check_named(&[], |it| {
        of(it, "b")[3] = acked(31 + 351, "b-1", 3, 2);
        it.deeds.push(deed(32, Deed::Stop { who: "b".to_owned() }));
        it.deeds.push(deed(40, Deed::Continue { who: "b".to_owned() }));
    });
}

#[test]
fn a_stream_that_is_not_the_journal_is_named() {
    let tail = |it: &mut History, change: &dyn Fn(&mut Vec<Printed>)| change(it.tails.get_mut("t").unwrap());
    let named = &[Invariant::StreamIsJournal];
    check_named(named, |it| tail(it, &|tail| drop(tail.remove(1))));
    check_named(named, |it| tail(it, &|tail| tail.insert(1, tail[0].clone())));
    check_named(named, |it| tail(it, &|tail| tail[1].topic = "other".to_owned()));
    check_named(named, |it| of(it, "b")[0] = record(11, What::Event(event(1, 1, "db.trial.created", "9"))));
    // A loss that is told is no lie.
    check_named(&[], |it| {
        tail(it, &|tail| {
            let resync = Some(serde_json::json!({"from": 2, "to": 2}));
            tail[1] = Printed { seq: None, epoch: 0, topic: String::new(), payload: serde_json::Value::Null, resync };
        });
    });
}

#[test]
fn what_is_read_too_early_used_too_much_or_left_behind_is_named() {
    check_named(&[Invariant::ReadYourWrites], |it| {
        of(it, "b")[4] = record(41, What::Read { op: "b-1".to_owned(), found: false });
    });
    check_named(&[Invariant::Integrity], |it| it.databases[0].integrity = "row 7 missing".to_owned());
    check_named(&[Invariant::Bounded], |it| {
        it.deeds[1] = deed(60, Deed::Usage { who: "a".to_owned(), resident_kib: 1, descriptors: 10_000 });
    });
    check_named(&[Invariant::NothingLeft], |it| it.deeds[1] = deed(60, Deed::Left { what: "a socket".to_owned() }));
}

#[test]
fn a_large_log_is_named_unless_the_harness_pins_it() {
    const LARGE: u64 = (64 << 20) + 1;
    let pin = |at_ms, name: &str| deed(at_ms, Deed::Fault { name: name.to_owned(), detail: String::new() });
    let wal = |at_ms, bytes| deed(at_ms, Deed::Wal { bytes });
    let named = &[Invariant::Bounded];
    check_named(named, |it| it.deeds.push(wal(61, LARGE)));
    check_named(&[], |it| it.deeds.extend([pin(61, super::LOG_PINNED), wal(9_000, LARGE)]));
    check_named(named, |it| it.deeds.extend([wal(61, LARGE), pin(62, super::LOG_PINNED)]));
    check_named(named, |it| it.deeds.extend([pin(61, super::LOG_PINNED), wal(62, (1 << 30) + 1)]));
    // It has some seconds to shrink.
    let released = |it: &mut History| it.deeds.extend([pin(61, super::LOG_PINNED), pin(70, super::LOG_RELEASED)]);
    check_named(&[], |it| {
        released(it);
        it.deeds.push(wal(5_070, LARGE));
    });
    check_named(named, |it| {
        released(it);
        it.deeds.push(wal(5_071, LARGE));
    });
}

#[test]
fn what_is_acknowledged_while_the_disk_fails_is_named() {
    let fault =
        |at_ms, name: &str| deed(at_ms, Deed::Fault { name: name.to_owned(), detail: "EIO in epoch 2".to_owned() });
    let failing = |from, to| [fault(from, super::DISK_FAILS), fault(to, super::DISK_WORKS)];
    check_named(&[Invariant::OnDisk], |it| it.deeds.extend(failing(30, 45)));
    // Begun before, or ended behind it.
    check_named(&[], |it| it.deeds.extend(failing(32, 45)));
    check_named(&[], |it| it.deeds.extend(failing(30, 39)));
    // Another primary's disk.
    check_named(&[], |it| it.deeds.extend(failing(10, 16)));
}
