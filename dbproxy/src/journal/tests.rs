//! Numbers, pages, retention and time of the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::history::MAX_PAGE_LOOKED_AT;
use super::*;
use pando_ipc::client::Page;
use pando_ipc::{Pattern, Timestamp, Topic};
use serde_json::json;

fn fresh() -> (Connection, Journal) {
    let connection = Connection::open_in_memory().unwrap();
    for migration in [
        include_str!("../migrations/0001_pando.sql"),
        include_str!("../migrations/0003_op_clients.sql"),
        include_str!("../migrations/0005_fewer_pages.sql"),
        include_str!("../migrations/0006_ops_with_events.sql"),
    ] {
        connection.execute_batch(migration).unwrap();
    }
    let meta = "INSERT INTO _pando_meta VALUES ('database', '67e55044-10b1-426f-9247-bb680e5fe0c8')";
    connection.execute_batch(meta).unwrap();
    let journal = Journal::load(&connection, 1).unwrap();
    (connection, journal)
}

fn append(connection: &Connection, journal: &mut Journal, topic: &'static str) -> (u64, u64) {
    let event = journal.append(connection, Envelope::new("i", Topic::known(topic), json!({})), &mut None).unwrap();
    (event.seq(), event.envelope().prev.unwrap())
}

fn all(connection: &Connection, after: u64, pattern: &str, limit: usize) -> Page {
    since(connection, after, &[Pattern::new(pattern).unwrap()], limit).unwrap()
}

#[test]
fn numbers_are_dense_and_prev_is_right_after_a_rollback_and_a_restart() {
    let (connection, mut journal) = fresh();
    assert_eq!(append(&connection, &mut journal, "a"), (1, 0));
    assert_eq!(append(&connection, &mut journal, "b"), (2, 0));
    let mark = journal.mark();
    connection.execute_batch("SAVEPOINT s").unwrap();
    assert_eq!(append(&connection, &mut journal, "a"), (3, 1));
    assert_eq!(append(&connection, &mut journal, "a"), (4, 3));
    assert_eq!(append(&connection, &mut journal, "new"), (5, 0));
    connection.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
    journal.roll_back(mark);
    assert_eq!(append(&connection, &mut journal, "a"), (3, 1));
    assert_eq!(append(&connection, &mut journal, "new"), (4, 0));
    journal.commit();
    let mut journal = Journal::load(&connection, 2).unwrap();
    assert_eq!(append(&connection, &mut journal, "b"), (5, 2));
    assert_eq!(append(&connection, &mut journal, "a"), (6, 3));
}

#[test]
fn prev_is_right_whatever_was_written_down() {
    let (connection, mut journal) = fresh();
    assert_eq!(append(&connection, &mut journal, "rare"), (1, 0));
    append_many(&connection, &mut journal, SAVE_EVERY);
    journal.commit();
    assert!(journal.is_savable());
    journal.save(&connection).unwrap();
    journal.is_kept(None);
    assert!(!journal.is_savable());
    let head = journal.head();
    assert_eq!(append(&connection, &mut journal, "late"), (head + 1, 0));
    journal.commit();
    // Written down, read again, or in memory.
    for mut journal in [Journal::load(&connection, 2).unwrap(), journal] {
        let mark = journal.mark();
        connection.execute_batch("BEGIN").unwrap();
        assert_eq!(append(&connection, &mut journal, "rare"), (head + 2, 1));
        assert_eq!(append(&connection, &mut journal, "late"), (head + 3, head + 1));
        assert_eq!(append(&connection, &mut journal, "many"), (head + 4, head));
        connection.execute_batch("ROLLBACK").unwrap();
        journal.roll_back(mark);
    }
}

#[test]
fn an_event_keeps_an_op_where_both_stand_on_one_page() {
    let (connection, mut journal) = fresh();
    let client = Uuid::from_u128(7);
    // A payload that leaves room, and one that does not.
    for (bytes, keeps) in [(1_000, true), (MAX_KEEPING_BYTES, false)] {
        let event = Envelope::new("i", Topic::known("a"), json!("x".repeat(bytes)));
        let mut op = Some(KeptOp { client: &client, counter: 3, fingerprint: 9, results: "[]" });
        let seq = journal.append(&connection, event, &mut op).unwrap().seq();
        assert_eq!(op.is_none(), keeps, "{bytes} bytes");
        let sql = "SELECT client IS NOT NULL FROM _pando_event WHERE seq = ?1";
        assert_eq!(connection.query_row(sql, [seq], |row| row.get::<_, bool>(0)).unwrap(), keeps, "{bytes} bytes");
    }
}

#[test]
fn for_nobody_no_event_is_read() {
    let (mut connection, mut journal) = fresh();
    append_many(&connection, &mut journal, SAVE_EVERY - 1);
    journal.commit();
    let mut steps = |patterns: &[Pattern]| {
        let counted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&counted);
        let counter = move || {
            count.fetch_add(1, Ordering::Relaxed);
            false
        };
        connection.progress_handler(1, Some(counter)).unwrap();
        let page = since(&connection, 0, patterns, 10).unwrap();
        connection.progress_handler(1, None::<fn() -> bool>).unwrap();
        assert_eq!((page.events.len(), page.upto), (0, journal.head()));
        counted.load(Ordering::Relaxed)
    };
    assert!(steps(&[]) < SAVE_EVERY / 2);
    assert!(steps(&[Pattern::new("other").unwrap()]) > SAVE_EVERY);
}

#[test]
fn since_selects_by_pattern_and_limit() {
    let (connection, mut journal) = fresh();
    for topic in ["a.x", "b.x", "a.y", "a.x"] {
        append(&connection, &mut journal, topic);
    }
    let seqs = |page: Page| page.events.iter().map(|event| event.seq.unwrap()).collect::<Vec<_>>();
    assert_eq!(seqs(all(&connection, 0, "*", 3)), [1, 2, 3]);
    assert_eq!(seqs(all(&connection, 1, "a.*", 9)), [3, 4]);
    assert_eq!(seqs(all(&connection, 0, "a.x", 9)), [1, 4]);
    let both = since(&connection, 0, &[Pattern::new("b.x").unwrap(), Pattern::new("a.y").unwrap()], 9).unwrap();
    assert_eq!((both.head, seqs(both)), (4, vec![2, 3]));
    assert!(all(&connection, 4, "*", 9).events.is_empty());
    let counted = |after, text| count(&connection, after, &[Pattern::new(text).unwrap()]).unwrap();
    assert_eq!(
        [counted(0, "*"), counted(1, "*"), counted(0, "a.*"), counted(1, "a.x"), counted(9, "*")],
        [4, 3, 3, 1, 0]
    );
}

#[test]
fn a_page_says_up_to_where_it_is_complete() {
    let (connection, mut journal) = fresh();
    for topic in ["a", "b", "a", "b", "b"] {
        append(&connection, &mut journal, topic);
    }
    assert_eq!((all(&connection, 0, "a", 1).upto, all(&connection, 0, "a", 9).upto), (1, 5));
    assert_eq!((all(&connection, 0, "a*", 2).upto, all(&connection, 0, "a*", 9).upto), (3, 5));
    assert_eq!(all(&connection, 0, "none", 9).upto, 5);
    let long = append_many(&connection, &mut journal, MAX_PAGE_LOOKED_AT);
    // A topic that has been quiet for long takes one page.
    assert_eq!((all(&connection, 5, "a", 9).upto, since(&connection, 5, &[], 9).unwrap().upto), (long, long));
    journal.commit();
    journal.save(&connection).unwrap();
    journal.is_kept(None);
    assert_eq!((all(&connection, 2, "a", 9).upto, all(&connection, 2, "a", 9).events.len()), (long, 1));
    let page = all(&connection, 5, "none.*", 9);
    assert!(page.events.is_empty() && page.upto < long, "a long search is cut into pages: {}", page.upto);
    assert_eq!(all(&connection, page.upto, "none.*", 9).upto, long);
}

fn append_many(connection: &Connection, journal: &mut Journal, count: u64) -> u64 {
    connection.execute_batch("BEGIN").unwrap();
    for _ in 0..=count {
        append(connection, journal, "many");
    }
    connection.execute_batch("COMMIT").unwrap();
    journal.head()
}

#[test]
fn a_time_has_its_place_among_the_numbers() {
    let (connection, mut journal) = fresh();
    let time = |text: &str| serde_json::from_str::<Timestamp>(&format!("\"2026-11-21T02:53:{text}Z\"")).unwrap();
    let before = |connection: &Connection, text: &str| last_before(connection, time(text)).unwrap();
    assert_eq!(before(&connection, "37"), 0);
    for text in ["37", "37.5", "37.75", "39", "41"] {
        let mut event = Envelope::new("i", Topic::known("a"), json!({}));
        event.timestamp = time(text);
        journal.append(&connection, event, &mut None).unwrap();
    }
    let seen = ["36", "37", "37.2", "37.5", "37.6", "38", "39", "41", "42"].map(|text| before(&connection, text));
    assert_eq!(seen, [0, 0, 1, 1, 2, 3, 3, 4, 5]);
    connection.execute_batch("DELETE FROM _pando_event WHERE seq < 3").unwrap();
    assert_eq!(before(&connection, "36"), 2, "nothing older is left");
}

fn prune_all(connection: &Connection, journal: &mut Journal, keep: Retention) {
    while let Some(below) = journal.prunable(connection, &keep).unwrap() {
        journal.save(connection).unwrap();
        remove_below(connection, below).unwrap();
        journal.is_kept(Some(below));
    }
}

/// Prunes a journal of 5,000 events, loaded anew, and returns how many are kept.
fn kept(connection: &Connection, keep: Retention) -> u64 {
    let mut journal = Journal::load(connection, 1).unwrap();
    while journal.sizes.measure(connection, journal.oldest, journal.head).unwrap() {}
    prune_all(connection, &mut journal, keep);
    connection.query_row("SELECT count(*) FROM _pando_event", [], |row| row.get(0)).unwrap()
}

#[test]
fn the_journal_keeps_what_no_limit_excludes() {
    let (connection, mut journal) = fresh();
    for _ in 0..5_000 {
        append(&connection, &mut journal, "a");
    }
    journal.commit();
    let all = Retention::default();
    assert_eq!(kept(&connection, all), 5_000);
    assert_eq!(kept(&connection, Retention { max_events: 3_500, ..all }), 4_000);
    let bytes: u64 =
        connection.query_row("SELECT sum(length(envelope)) / 5 FROM _pando_event", [], |row| row.get(0)).unwrap();
    assert_eq!(kept(&connection, Retention { max_bytes: 3 * bytes, ..all }), 3_000);
    assert_eq!(kept(&connection, Retention { max_age_s: Some(60), ..all }), 3_000);
    let aged = |upto: u64| {
        connection.execute("UPDATE _pando_event SET at = at - 100 WHERE seq <= ?1", [upto]).unwrap();
        kept(&connection, Retention { max_age_s: Some(60), ..all })
    };
    assert_eq!(aged(2_999), 2_001, "what is old goes, and nothing else");
    assert_eq!(aged(6_000), 1, "the last one stays");
}

#[test]
fn a_chunk_goes_as_soon_as_the_others_are_enough_and_the_last_one_stays() {
    let keep = |max_events| Retention { max_events, ..Retention::default() };
    for (events, max_events, prunable) in [
        (PRUNE_CHUNK - 1, 0, None),
        (PRUNE_CHUNK, 0, Some(PRUNE_CHUNK)),
        (PRUNE_CHUNK + 1, 0, Some(PRUNE_CHUNK + 1)),
        (2 * PRUNE_CHUNK - 1, PRUNE_CHUNK, None),
        (2 * PRUNE_CHUNK, PRUNE_CHUNK, Some(PRUNE_CHUNK + 1)),
    ] {
        let (connection, mut journal) = fresh();
        append_many(&connection, &mut journal, events - 1);
        journal.commit();
        assert_eq!(journal.prunable(&connection, &keep(max_events)).unwrap(), prunable, "{events}");
    }
}

#[test]
fn a_few_large_events_exceed_a_limit_as_many_small_ones_do() {
    const MIB: usize = 1 << 20;
    let (connection, mut journal) = fresh();
    let large = json!("x".repeat(MIB));
    for _ in 0..20 {
        journal.append(&connection, Envelope::new("i", Topic::known("a"), large.clone()), &mut None).unwrap();
        journal.commit();
    }
    let limit = Retention { max_bytes: 8 << 20, ..Retention::default() };
    // Three and what is around them are a chunk; the chunks that are kept hold at least the limit.
    assert_eq!(kept(&connection, limit), 9);
    prune_all(&connection, &mut journal, Retention { max_bytes: 1, ..limit });
    assert_eq!(journal.oldest, 19, "two are left of the last chunk");
}

#[test]
fn a_term_that_begins_measures_what_is_there() {
    let (connection, mut journal) = fresh();
    append_many(&connection, &mut journal, 2 * PRUNE_CHUNK);
    let mut journal = Journal::load(&connection, 2).unwrap();
    let keep = Retention { max_bytes: 1, ..Retention::default() };
    assert_eq!(journal.prunable(&connection, &keep).unwrap(), Some(PRUNE_CHUNK + 1));
}

#[test]
fn a_commit_is_measured_from_its_first_event() {
    let (connection, mut journal) = fresh();
    append(&connection, &mut journal, "a");
    assert_eq!(journal.sizes.keep_from(1), None);
    journal.commit();
    assert_eq!(journal.sizes.keep_from(1), Some(1));
    append_many(&connection, &mut journal, PRUNE_CHUNK - 2);
    journal.commit();
    assert_eq!(journal.sizes.keep_from(1), Some(1), "it belongs to the first chunk");
    append(&connection, &mut journal, "a");
    append(&connection, &mut journal, "a");
    journal.commit();
    assert_eq!(journal.sizes.keep_from(1), Some(PRUNE_CHUNK + 1));
}

#[test]
fn last_numbers_are_written_down_after_so_many_events() {
    let (connection, mut journal) = fresh();
    for head in 1..=2 * SAVE_EVERY {
        append(&connection, &mut journal, "a");
        assert_eq!(journal.is_savable(), head % SAVE_EVERY == 0, "{head}");
        if journal.is_savable() {
            journal.save(&connection).unwrap();
            journal.is_kept(None);
        }
    }
}

#[test]
fn topics_are_dropped_from_memory_when_they_are_too_many() {
    let (_connection, mut journal) = fresh();
    let mut kept = |count: usize| {
        journal.last.extend((0..count).map(|at| (format!("t{at}").into(), 1)));
        journal.is_kept(None);
        journal.last.len()
    };
    assert_eq!((kept(1), kept(MAX_TOPICS), kept(MAX_TOPICS + 1)), (1, MAX_TOPICS, 0));
}

#[test]
fn a_journal_that_begins_anew_is_empty_and_remembers_topics() {
    let (connection, mut journal) = fresh();
    append(&connection, &mut journal, "rare");
    append_many(&connection, &mut journal, 10);
    journal.commit();
    journal.begin_anew(&connection, 100).unwrap();
    assert_eq!(bounds(&connection).unwrap(), (0, 0));
    assert_eq!((journal.head(), journal.oldest), (100, 101));
    assert_eq!(append(&connection, &mut journal, "rare"), (101, 1));
    journal.commit();
    assert_eq!(journal.sizes.keep_from(1), Some(101), "what is gone takes no room");
}

#[test]
fn a_page_ends_early_when_it_is_large() {
    let (connection, mut journal) = fresh();
    let large = json!("x".repeat(MAX_PAGE_BYTES / 3));
    for _ in 0..5 {
        journal.append(&connection, Envelope::new("i", Topic::known("a"), large.clone()), &mut None).unwrap();
    }
    let page = all(&connection, 0, "*", 100);
    assert_eq!((page.events.len(), page.upto), (3, 3));
    assert_eq!(all(&connection, 5, "*", 100).resync, None, "at the end nothing is missing");
}

#[test]
fn what_was_pruned_or_never_was_is_said() {
    let (connection, mut journal) = fresh();
    append(&connection, &mut journal, "once");
    for _ in 0..2 * PRUNE_CHUNK {
        append(&connection, &mut journal, "a");
    }
    journal.commit();
    let keep = Retention { max_events: 10, ..Retention::default() };
    prune_all(&connection, &mut journal, keep);
    let page = all(&connection, 5, "*", 1);
    assert_eq!(page.events[0].seq, Some(PRUNE_CHUNK + 1));
    let resync = page.resync.unwrap();
    assert_eq!((resync.from, resync.to), (6, PRUNE_CHUNK));
    assert_eq!(all(&connection, PRUNE_CHUNK, "*", 1).resync, None);
    let beyond = all(&connection, 9_999, "*", 1).resync.unwrap();
    assert_eq!((beyond.from, beyond.to), (2 * PRUNE_CHUNK + 2, 9_999));
    let mut journal = Journal::load(&connection, 1).unwrap();
    assert_eq!(append(&connection, &mut journal, "once").1, 1, "prev outlives its event");
}
