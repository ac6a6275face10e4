//! What is remembered of op ids, and what is forgotten.

use super::prune::{raise, seconds};
use super::*;

const KEEP: Keep = Keep { ops: KEPT_OPS, ops_at_most: MAX_OPS, ops_for: KEPT_OPS_FOR, clients_for: KEPT_CLIENTS_FOR };

fn fresh() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../../migrations/0001_pando.sql")).unwrap();
    connection
}

fn migrated() -> Connection {
    let connection = fresh();
    connection.execute_batch(include_str!("../../migrations/0003_op_clients.sql")).unwrap();
    connection.execute_batch(include_str!("../../migrations/0005_fewer_pages.sql")).unwrap();
    connection.execute_batch(include_str!("../../migrations/0006_ops_with_events.sql")).unwrap();
    connection
}

fn insert(connection: &Connection, op: &OpId, at: i64) {
    let rest = "fingerprint, at, epoch, seq, results) VALUES (?1, ?2, -1, ?3, 1, 1, '[7]')";
    match op {
        OpId::Counted { client, counter } => {
            let sql = format!("INSERT INTO _pando_op (client, counter, {rest}");
            connection.execute(&sql, params![client.as_bytes(), counter, at]).unwrap();
        }
        OpId::Named { scope, name } => {
            let sql = format!("INSERT INTO _pando_op_named (scope, name, {rest}");
            connection.execute(&sql, params![scope, name, at]).unwrap();
        }
    }
}

fn count(connection: &Connection) -> u64 {
    let sql = "SELECT (SELECT count(*) FROM _pando_op) + (SELECT count(*) FROM _pando_op_named)";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn counted(client: Uuid, counter: u64) -> OpId {
    OpId::Counted { client, counter }
}

#[test]
fn an_op_is_forgotten_when_it_is_old_and_many_came_after_it_and_that_is_remembered() {
    let connection = migrated();
    let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
    for n in 1..=100 {
        let op = if n % 2 == 0 { counted(client, n) } else { OpId::parse(&format!("req-{n}")) };
        insert(&connection, &op, if n <= 60 { now - 7_200 } else { now - 1_800 });
    }
    let mut ops = Ops::default();
    let mut kept = |keep| {
        ops.prune(&connection, Keep { ops: keep, ..KEEP }, 0).unwrap();
        count(&connection)
    };
    assert_eq!(kept(50), 100);
    assert_eq!(kept(35), 70, "60 are old enough, 15 of each kind are too many");
    assert_eq!(kept(5), 40, "the young ones stay");
    let mut find = |op: &OpId| ops.find(&connection, op, 0).unwrap();
    let stored = Stored { fingerprint: u64::MAX, epoch: 1, seq: 1, results: Some(Json::of(&[7])) };
    assert_eq!(find(&OpId::parse("req-61")), Found::Stored(stored));
    assert_eq!(find(&OpId::parse("req-59")), Found::New);
    assert_eq!(
        maybe_forgotten(&connection, &OpId::parse("req-59")).unwrap(),
        Some(u64::try_from(now - 7_200).unwrap())
    );
    assert_eq!(maybe_forgotten(&connection, &OpId::parse(&Uuid::now_v7().to_string())).unwrap(), None);
    let earlier = uuid::Timestamp::from_unix(uuid::NoContext, u64::try_from(now - 7_300).unwrap(), 0);
    assert!(maybe_forgotten(&connection, &OpId::parse(&Uuid::new_v7(earlier).to_string())).unwrap().is_some());
    assert_eq!(find(&counted(client, 60)), Found::Forgotten);
    assert_eq!(find(&counted(client, 59)), Found::Forgotten);
    assert_eq!(find(&counted(client, 61)), Found::New);
    assert_eq!(find(&counted(Uuid::now_v7(), 0)), Found::New);
}

#[test]
fn young_ops_are_forgotten_when_they_are_far_too_many() {
    let connection = migrated();
    let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
    (0..50).for_each(|counter| insert(&connection, &counted(client, counter), now));
    let mut ops = Ops::default();
    ops.prune(&connection, Keep { ops: 5, ops_at_most: 20, ..KEEP }, 0).unwrap();
    assert_eq!(count(&connection), 20);
    assert_eq!(ops.find(&connection, &counted(client, 29), 0).unwrap(), Found::Forgotten);
    assert!(matches!(ops.find(&connection, &counted(client, 30), 0).unwrap(), Found::Stored(_)));
}

#[test]
fn what_was_rolled_back_is_new_again() {
    let connection = migrated();
    let mut ops = Ops::default();
    let request = |counter| {
        let op = counted(Uuid::from_u128(7), counter);
        WriteRequest::new(op, "i".to_owned(), std::time::Instant::now(), crate::write::Work::Settle).unwrap()
    };
    let store = |ops: &mut Ops, counter| ops.store(&connection, &request(counter), 1, 1, None).unwrap();
    store(&mut ops, 1);
    ops.commit();
    let mark = ops.mark();
    connection.execute_batch("BEGIN").unwrap();
    store(&mut ops, 2);
    connection.execute_batch("ROLLBACK").unwrap();
    ops.roll_back(mark);
    store(&mut ops, 3);
    let mut is_stored =
        |counter| matches!(ops.find(&connection, &request(counter).op_id, 0).unwrap(), Found::Stored(_));
    assert_eq!([1, 2, 3].map(&mut is_stored), [true, false, true]);
}

#[test]
fn what_was_stored_before_the_savepoint_stays() {
    let connection = migrated();
    let mut ops = Ops::default();
    let client = Uuid::now_v7();
    let store = |ops: &mut Ops, counter| {
        let op = counted(client, counter);
        let request =
            WriteRequest::new(op, "i".to_owned(), std::time::Instant::now(), crate::write::Work::Settle).unwrap();
        ops.store(&connection, &request, 1, 1, None).unwrap();
    };
    ops.find(&connection, &counted(client, 1), 0).unwrap();
    store(&mut ops, 1);
    let mark = ops.mark();
    store(&mut ops, 2);
    ops.roll_back(mark);
    assert_eq!(ops.clients[&client].rows.keys().collect::<Vec<_>>(), [&1]);
    ops.commit();
    assert_eq!(ops.mark().0, 0, "nothing can be taken back any more");
}

#[test]
fn clients_without_writes_are_dropped_from_memory_when_they_are_too_many() {
    let connection = migrated();
    let mut ops = Ops::default();
    let writer = Uuid::now_v7();
    insert(&connection, &counted(writer, 1), 0);
    let ask = |ops: &mut Ops, count: usize| {
        for _ in 0..count {
            ops.find(&connection, &counted(Uuid::now_v7(), 0), 0).unwrap();
        }
        ops.commit();
        ops.clients.len()
    };
    assert_eq!(ask(&mut ops, 1), 2, "with the one that has written");
    assert_eq!(ask(&mut ops, MAX_CLIENTS - 2), MAX_CLIENTS);
    assert_eq!(ask(&mut ops, 2), 1);
    assert!(ops.clients.contains_key(&writer));
}

#[test]
fn who_follows_for_long_reads_anew_what_is_left() {
    let connection = migrated();
    let client = Uuid::now_v7();
    let fill = format!(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {FOLLOWED_ROWS})
         INSERT INTO _pando_op (client, counter, fingerprint, at, epoch, seq) SELECT ?1, x, 0, 0, 1, 1 FROM n"
    );
    connection.execute(&fill, [client.as_bytes()]).unwrap();
    let mut ops = Ops::default();
    let mut follow = || {
        ops.follow(&connection).unwrap();
        (ops.rows, ops.clients[&client].rows.len())
    };
    assert_eq!(follow(), (FOLLOWED_ROWS, FOLLOWED_ROWS));
    connection.execute("DELETE FROM _pando_op WHERE counter <= 100", []).unwrap();
    insert(&connection, &counted(client, 1_000_000), 0);
    let more = FOLLOWED_ROWS + 1;
    assert_eq!(follow(), (more, more), "only what is new is read");
    assert_eq!(follow(), (more - 100, more - 100));
}

#[test]
fn a_client_that_has_answers_to_nothing_leaves_no_note() {
    let connection = migrated();
    let client = Uuid::now_v7();
    insert(&connection, &counted(client, 1), Timestamp::now().unix_seconds());
    let mut ops = Ops::default();
    ops.find(&connection, &counted(client, 2), 0).unwrap();
    ops.prune(&connection, KEEP, 0).unwrap();
    let notes: u64 = connection.query_row("SELECT count(*) FROM _pando_client", [], |row| row.get(0)).unwrap();
    assert_eq!(notes, 0);
}

#[test]
fn a_client_is_remembered_for_longer_than_its_id_is_used() {
    assert!(KEPT_CLIENTS_FOR >= 2 * crate::client::RENEWED_AFTER);
    let id = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 123_000_000);
    assert_eq!(made(&Uuid::new_v7(id)), 1_700_000_000_123);
}

#[test]
fn who_followed_knows_what_was_stored_and_what_was_removed_since() {
    let connection = migrated();
    let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
    let mut writer = Ops::default();
    (0..10).for_each(|counter| insert(&connection, &counted(client, counter), now));
    let mut follower = Ops::default();
    follower.follow(&connection).unwrap();
    // All that its client has the answer to goes, and more comes.
    writer.find(&connection, &counted(client, 10), 10).unwrap();
    writer.prune(&connection, KEEP, 0).unwrap();
    assert_eq!(count(&connection), 1, "the last row stays, so that numbers only grow");
    (10..13).for_each(|counter| insert(&connection, &counted(client, counter), now));
    let other = Uuid::now_v7();
    insert(&connection, &counted(other, 0), now);
    for ops in [&mut follower, &mut Ops::default()] {
        let mut find = |client, counter| ops.find(&connection, &counted(client, counter), 0).unwrap();
        assert!((0..9).all(|counter| find(client, counter) == Found::Forgotten));
        assert!((9..13).all(|counter| matches!(find(client, counter), Found::Stored(_))));
        assert!(matches!(find(other, 0), Found::Stored(_)));
        assert_eq!((find(client, 13), find(other, 1)), (Found::New, Found::New));
    }
}

/// Appends an event that keeps an op.
fn keep(connection: &Connection, client: Uuid, counter: u64, seq: u64) {
    let sql = "INSERT INTO _pando_event VALUES (?1, 1, 'a', 0, 5, '{}', ?2, ?3, -1, '[7]')";
    connection.execute(sql, params![seq, client.as_bytes(), counter]).unwrap();
}

/// Returns how each of these ops is known: by its place, as forgotten, or not at all.
fn known(ops: &mut Ops, connection: &Connection, client: Uuid, counters: std::ops::Range<u64>) -> Vec<String> {
    let look = |counter| match ops.find(connection, &counted(client, counter), 0).unwrap() {
        Found::Stored(Stored { fingerprint: u64::MAX, seq, results: Some(_), .. }) => {
            match ops.clients[&client].rows[&counter] {
                Place::Row(_) => format!("row of {seq}"),
                Place::Event(event) => format!("event {event}"),
            }
        }
        Found::Stored(other) => panic!("{other:?}"),
        Found::Forgotten => "forgotten".to_owned(),
        Found::New => "new".to_owned(),
    };
    counters.map(look).collect()
}

#[test]
fn what_events_keep_is_forgotten_or_moved_and_whoever_looks_sees_the_same() {
    let connection = migrated();
    let (client, silent) = (Uuid::now_v7(), Uuid::now_v7());
    (1..=4).for_each(|seq| keep(&connection, client, seq, seq));
    keep(&connection, silent, 0, 5);
    // One is elected after the first pruning, one after the second.
    let (mut writer, mut first, mut second) = (Ops::default(), Ops::default(), Ops::default());
    first.follow(&connection).unwrap();
    second.follow(&connection).unwrap();
    assert_eq!(known(&mut writer, &connection, client, 1..6), ["event 1", "event 2", "event 3", "event 4", "new"]);
    assert_eq!(ops_kept_by_events(&connection).unwrap(), 5);
    writer.find(&connection, &counted(client, 5), 3).unwrap();
    writer.prune(&connection, KEEP, 5).unwrap();
    assert_eq!((count(&connection), ops_kept_by_events(&connection).unwrap()), (3, 0));
    // Once more, and what was moved before is answered by now: it is the last row of all, and no obstacle.
    connection.execute("DELETE FROM _pando_op WHERE client = ?1", [silent.as_bytes()]).unwrap();
    keep(&connection, client, 5, 6);
    keep(&connection, client, 6, 7);
    let before = ["forgotten", "forgotten", "row of 3", "row of 4", "event 6", "event 7", "new"];
    for ops in [&mut first, &mut Ops::default()] {
        assert_eq!(known(ops, &connection, client, 1..8), before);
    }
    second.follow(&connection).unwrap();
    (5..7).for_each(|counter| writer.note(client, counter, Place::Event(counter + 1)));
    assert_eq!(known(&mut writer, &connection, client, 1..8), before);
    writer.find(&connection, &counted(client, 7), 6).unwrap();
    writer.prune(&connection, KEEP, 7).unwrap();
    // The journal may keep nothing at all.
    connection.execute("DELETE FROM _pando_event", []).unwrap();
    let after = ["forgotten", "forgotten", "forgotten", "row of 4", "forgotten", "row of 7", "new"];
    for ops in [&mut second, &mut Ops::default(), &mut writer] {
        assert_eq!(known(ops, &connection, client, 1..8), after);
    }
}

#[test]
fn a_copy_keeps_its_ops_though_its_events_go() {
    let connection = migrated();
    let client = Uuid::now_v7();
    keep(&connection, client, 1, 9);
    move_ops(&connection, 9).unwrap();
    connection.execute("DELETE FROM _pando_event", []).unwrap();
    keep(&connection, client, 2, 1_000);
    assert_eq!(known(&mut Ops::default(), &connection, client, 1..4), ["row of 9", "event 1000", "new"]);
    // A copy may have an older schema.
    let former = fresh();
    move_ops(&former, 9).unwrap();
    assert_eq!(ops_kept_by_events(&former).unwrap(), 0);
}

#[test]
fn what_a_client_has_the_answer_to_is_forgotten_in_small_steps() {
    let connection = migrated();
    let (client, now) = (Uuid::now_v7(), Timestamp::now().unix_seconds());
    for counter in 0..2_500 {
        insert(&connection, &counted(client, counter), now);
    }
    let mut ops = Ops::default();
    ops.find(&connection, &counted(client, 2_500), 2_400).unwrap();
    let mut left = Vec::new();
    for _ in 0..4 {
        ops.prune(&connection, KEEP, 0).unwrap();
        left.push(count(&connection));
    }
    assert_eq!(left, [1_500, 500, 100, 100]);
    for ops in [&mut ops, &mut Ops::default()] {
        assert_eq!(ops.find(&connection, &counted(client, 2_399), 0).unwrap(), Found::Forgotten);
        assert!(matches!(ops.find(&connection, &counted(client, 2_400), 0).unwrap(), Found::Stored(_)));
        assert_eq!(ops.find(&connection, &counted(client, 2_500), 0).unwrap(), Found::New);
    }
}

#[test]
fn a_forgotten_client_is_not_taken_for_a_new_one() {
    let connection = migrated();
    let old = Uuid::now_v7();
    raise(&connection, &old, 7, Timestamp::now().unix_seconds() - 2 * seconds(KEPT_CLIENTS_FOR)).unwrap();
    let mut ops = Ops::default();
    assert_eq!(ops.find(&connection, &counted(old, 7), 0).unwrap(), Found::New);
    ops.prune(&connection, KEEP, 0).unwrap();
    let rows: u64 = connection.query_row("SELECT count(*) FROM _pando_client", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
    for ops in [&mut ops, &mut Ops::default()] {
        assert_eq!(ops.find(&connection, &counted(old, 7), 0).unwrap(), Found::Forgotten);
    }
    let later = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, made(&old) / 1_000 + 1, 0));
    assert_eq!(ops.find(&connection, &counted(later, 0), 0).unwrap(), Found::New);
}

#[test]
fn a_client_whose_clock_is_ahead_keeps_nobody_out() {
    let connection = migrated();
    let ahead =
        Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, made(&Uuid::now_v7()) / 1_000 + 86_400 * 365, 0));
    raise(&connection, &ahead, 7, Timestamp::now().unix_seconds() - 2 * seconds(KEPT_CLIENTS_FOR)).unwrap();
    let mut ops = Ops::default();
    ops.prune(&connection, KEEP, 0).unwrap();
    let until = meta(&connection, CLIENTS_FORGOTTEN).unwrap().unwrap();
    assert!(until <= made(&Uuid::now_v7()) + 1_000, "{until}");
    let later = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, until / 1_000 + 1, 0));
    assert_eq!(ops.find(&connection, &counted(later, 0), 0).unwrap(), Found::New);
}

#[test]
fn nobody_has_the_answer_to_what_is_still_to_come() {
    let connection = migrated();
    let (mut ops, client) = (Ops::default(), Uuid::now_v7());
    assert_eq!(ops.find(&connection, &counted(client, 1), u64::MAX).unwrap(), Found::New);
    ops.prune(&connection, KEEP, 0).unwrap();
    assert_eq!(ops.find(&connection, &counted(client, 0), 0).unwrap(), Found::Forgotten);
    assert_eq!(ops.find(&connection, &counted(client, 2), 0).unwrap(), Found::New);
}

#[test]
fn op_ids_of_the_first_schema_are_found_after_the_migration() {
    let connection = fresh();
    let client = Uuid::now_v7();
    for op in [format!("{client}-12"), "req-1".to_owned(), format!("{client}")] {
        let sql = "INSERT INTO _pando_op (op_id, fingerprint, at, epoch, seq, results) VALUES (?1, 5, 0, 1, 1, 'null')";
        connection.execute(sql, [op]).unwrap();
    }
    connection.execute_batch(include_str!("../../migrations/0003_op_clients.sql")).unwrap();
    connection.execute_batch(include_str!("../../migrations/0005_fewer_pages.sql")).unwrap();
    connection.execute_batch(include_str!("../../migrations/0006_ops_with_events.sql")).unwrap();
    for op in [counted(client, 12), OpId::parse("req-1"), OpId::parse(&client.to_string())] {
        let found = Ops::default().find(&connection, &op, 0).unwrap();
        assert!(matches!(found, Found::Stored(Stored { fingerprint: 5, .. })), "{op}: {found:?}");
    }
}

#[test]
fn op_ids_of_the_fifth_schema_are_found_after_the_migration() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../../../../tests/golden/schema-5.sql")).unwrap();
    connection.execute_batch(include_str!("../../migrations/0006_ops_with_events.sql")).unwrap();
    let client = Uuid::parse_str("0192f0c1-e5a0-7000-8000-00000000000a").unwrap();
    keep(&connection, client, 13, 2);
    assert_eq!(known(&mut Ops::default(), &connection, client, 2..4), ["forgotten", "new"]);
    assert_eq!(known(&mut Ops::default(), &connection, client, 12..15), ["row of 1", "event 2", "new"]);
}
