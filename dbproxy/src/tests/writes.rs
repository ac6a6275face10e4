//! One writer: exactly once, alone in failure, honest at the end.

use std::sync::mpsc;

use futures::future::maybe_done;
use pando_ipc::Topic;
use pando_ipc::fault::Code;
use uuid::Uuid;

use super::*;
use crate::journal::Retention;
use crate::{Fenced, Params, SqlValue, Standby};

#[tokio::test]
async fn a_retried_write_applies_once_and_gets_the_same_answer() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE n (v)"])).await;
    let insert = || request("once", exec(&["INSERT INTO n VALUES (1) RETURNING v"]));
    let first = writer.submit(insert()).await.unwrap();
    let again = writer.submit(insert()).await.unwrap();
    assert!(!first.replayed && again.replayed);
    assert_eq!(Ack { replayed: false, ..again }, first);
    writer.close().await;
    let writer = bench.writer();
    let late = writer.submit(insert()).await.unwrap();
    assert_eq!((late.seq, late.epoch, late.results), (first.seq, first.epoch, first.results));
    assert_eq!(bench.value("SELECT count(*) FROM n").await, 1);
    bench.check_journal().await;
}

#[tokio::test]
async fn copies_of_a_write_in_one_batch_apply_once() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE n (v)"])).await;
    let insert = || request("once", exec(&["INSERT INTO n VALUES (1)"]));
    let copies = (0..40).map(|_| writer.submit(insert()));
    let acks = futures::future::join_all(copies).await;
    assert_eq!(acks.iter().filter(|ack| !ack.as_ref().unwrap().replayed).count(), 1);
    assert_eq!(bench.value("SELECT count(*) FROM n").await, 1);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_refused() {
    let bench = Bench::new();
    let writer = bench.writer();
    writer.submit(request("key", session("a"))).await.unwrap();
    let fault = writer.submit(request("key", session("b"))).await.unwrap_err();
    assert!(fault.is(Code::KeyReused) && !fault.is_retryable(), "{fault}");
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 1);
}

/// Sends all at once and checks which fail; the journal must be dense, with the others' events alone.
async fn check_alone(writer: &Writer, bench: &Bench, works: Vec<Work>, failing: &[usize]) -> Vec<Fault> {
    let results = futures::future::join_all(works.into_iter().map(|work| submit(writer, work))).await;
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).map(|(at, _)| at).collect();
    assert_eq!(failed, failing, "{results:?}");
    bench.check_journal().await;
    results.into_iter().filter_map(Result::err).collect()
}

#[tokio::test]
async fn a_bad_write_in_a_batch_fails_alone() {
    let bench = Bench::new();
    let writer = bench.writer();
    let works = vec![
        session("a"),
        session("a"),
        exec(&["INSERT INTO sessions (id, title) VALUES ('half', '')", "INSERT INTO nowhere VALUES (1)"]),
        session("b"),
        message("m", "nobody"),
        session("c"),
    ];
    let faults = check_alone(&writer, &bench, works, &[1, 2, 4]).await;
    assert_eq!(faults[0].message, "dbproxy: CONFLICT (CreateSession): UNIQUE constraint failed: sessions.id");
    assert!(faults[0].is(Code::Conflict));
    assert_eq!(faults[1].message, "dbproxy: INVALID_PARAMS (exec): no such table: nowhere");
    assert!(faults[1].is(Code::Sql));
    assert_eq!(faults[2].message, "dbproxy: CONFLICT (CreateMessage): FOREIGN KEY constraint failed");
    assert_eq!(bench.value("SELECT group_concat(id) FROM sessions").await, "a,b,c");
    assert_eq!(bench.seen(), ["db.session.created a", "db.session.created b", "db.session.created c"]);
}

#[tokio::test]
async fn a_write_that_rolls_the_whole_transaction_back_fails_alone() {
    let bench = Bench::new();
    let writer = bench.writer();
    let works = vec![
        session("a"),
        exec(&["INSERT OR ROLLBACK INTO sessions (id, title) VALUES ('a', '')"]),
        session("b"),
        exec(&[
            "INSERT INTO sessions (id, title) VALUES ('x', '')",
            "INSERT OR ROLLBACK INTO sessions (id, title) VALUES ('b', '')",
        ]),
        session("c"),
    ];
    let faults = check_alone(&writer, &bench, works, &[1, 3]).await;
    assert!(faults.iter().all(|fault| fault.is(Code::Conflict)), "{faults:?}");
    apply(&writer, ddl(&["CREATE TRIGGER no BEFORE DELETE ON sessions BEGIN SELECT RAISE(ROLLBACK, 'keep it'); END"]))
        .await;
    let works = vec![session("d"), named("DeleteSession", &json!("a")), session("e")];
    let faults = check_alone(&writer, &bench, works, &[1]).await;
    assert_eq!(faults[0].message, "dbproxy: CONFLICT (DeleteSession): keep it");
    assert_eq!(bench.value("SELECT group_concat(id) FROM sessions").await, "a,b,c,d,e");
}

#[tokio::test]
async fn a_constraint_checked_at_commit_refuses_its_own_write_alone() {
    let bench = Bench::new();
    let writer = bench.writer();
    let child = "CREATE TABLE child (id PRIMARY KEY, s REFERENCES sessions DEFERRABLE INITIALLY DEFERRED)";
    apply(&writer, ddl(&[child])).await;
    let works = vec![
        session("a"),
        exec(&["INSERT INTO child VALUES (1, 'a')"]),
        exec(&["INSERT INTO child VALUES (2, 'nobody')"]),
        session("b"),
        exec(&["INSERT INTO child VALUES (3, 'later')", "INSERT INTO sessions (id, title) VALUES ('later', '')"]),
    ];
    let faults = check_alone(&writer, &bench, works, &[2]).await;
    assert!(faults[0].is(Code::Conflict));
    assert_eq!(bench.value("SELECT group_concat(id) FROM child").await, "1,3");
}

#[tokio::test]
async fn a_panicking_write_fails_alone_and_the_writer_lives_on() {
    let bench = Bench::new();
    let mut options = bench.options();
    options
        .writes
        .register("explode", |tx, title: String| -> Result<(), Fault> {
            tx.execute("INSERT INTO sessions (id, title) VALUES ('gone', ?1)", [title])?;
            panic!("a test asked for it");
        })
        .unwrap();
    options.durability = Some(Durability::Os);
    let writer = Writer::open(&bench.path(), options).unwrap();
    let works = vec![session("a"), named("explode", &json!("x")), session("b")];
    let faults = check_alone(&writer, &bench, works, &[1]).await;
    assert_eq!(faults[0].message, "dbproxy: INTERNAL (explode): the write panicked and was rolled back");
    apply(&writer, session("c")).await;
    assert_eq!(bench.value("SELECT group_concat(id) FROM sessions").await, "a,b,c");
}

#[tokio::test]
async fn an_endless_statement_is_interrupted_and_its_neighbours_are_applied() {
    let bench = Bench::new();
    let writer = bench.tuned(Tuning { write_time: Duration::from_millis(50), ..Tuning::default() });
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
                   INSERT INTO sessions (id, title) SELECT x, '' FROM n WHERE x < 0";
    let works = vec![session("a"), exec(&[endless]), session("b")];
    let faults = check_alone(&writer, &bench, works, &[1]).await;
    assert!(faults[0].is(Code::Deadline) && faults[0].message.starts_with("dbproxy: TIMEOUT (exec): "), "{faults:?}");
    let next = faults[0].data.as_ref().map(|data| &data["next"]);
    assert!(next.is_some_and(|next| next.as_str().unwrap_or("").contains("do less in one write")), "{faults:?}");
    assert_eq!(bench.value("SELECT group_concat(id) FROM sessions").await, "a,b");
}

#[tokio::test]
async fn an_expired_or_misdirected_write_is_not_applied() {
    let bench = Bench::new();
    let writer = bench.writer();
    let late = WriteRequest { deadline: Instant::now(), ..request("late", session("a")) };
    let fault = writer.submit(late.clone()).await.unwrap_err();
    assert!(fault.is(Code::Deadline) && fault.message.contains("not applied"), "{fault}");
    let elsewhere = request("elsewhere", session("a")).meant_for(Some(Uuid::new_v4()), 0);
    assert!(writer.submit(elsewhere).await.unwrap_err().is(Code::WrongDatabase));
    let here = request("here", session("a")).meant_for(Some(writer.database()), 1);
    writer.submit(here.clone()).await.unwrap();
    let later = request("later", session("b")).meant_for(Some(writer.database()), 2);
    let fault = writer.submit(later).await.unwrap_err();
    assert!(fault.is(Code::Fenced) && fault.is_retryable(), "a primary of an earlier term: {fault}");
    let replay = writer.submit(WriteRequest { deadline: Instant::now(), ..here }).await.unwrap();
    assert!(replay.replayed, "an applied write is told even when its deadline is over");
}

#[tokio::test]
async fn a_newer_term_fences_the_older_writer() {
    let bench = Bench::new();
    let old = bench.writer();
    apply(&old, session("a")).await;
    let new = Writer::open(&bench.path(), WriterOptions::new("inst-B", "/w")).unwrap();
    assert_eq!((new.epoch(), new.database()), (old.epoch() + 1, old.database()));
    let both = futures::future::join(submit(&old, session("b")), submit(&old, session("c"))).await;
    for fault in [both.0.unwrap_err(), both.1.unwrap_err()] {
        assert!(fault.is(Code::Fenced) && fault.is_retryable(), "{fault}");
    }
    let why = tokio::time::timeout(Duration::from_secs(5), old.fenced()).await.unwrap();
    assert_eq!(why, Fenced::NewerEpoch { own: old.epoch(), newer: new.epoch() });
    apply(&new, session("b")).await;
    old.close().await;
    assert_eq!(apply(&new, session("c")).await.seq, 6);
}

#[tokio::test]
async fn a_replaced_file_fences_the_writer() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    std::fs::rename(bench.path(), bench.dir.path().join("moved.db")).unwrap();
    assert!(submit(&writer, session("b")).await.unwrap_err().is(Code::Fenced));
    assert_eq!(writer.fenced().await, Fenced::Replaced);
}

#[tokio::test]
async fn a_log_that_is_removed_fences_the_writer_and_takes_nothing_along() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let (standby, readers) = (Standby::prepare(&bench.path()).unwrap(), bench.readers());
    readers.head().await.unwrap();
    std::fs::remove_file(bench.path().with_extension("db-wal")).unwrap();
    let fault = submit(&writer, session("b")).await.unwrap_err();
    assert!(fault.is(Code::Fenced) && fault.is_retryable(), "{fault}");
    assert_eq!(writer.fenced().await, Fenced::LogReplaced);
    // As an instance that steps down does.
    writer.close_for_successor().await;
    // What others have open is the former log.
    assert!(!standby.is_current());
    let next = Writer::open_prepared(&bench.path(), Some(standby), bench.options()).unwrap();
    apply(&next, session("b")).await;
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 2);
    assert_eq!(next.epoch(), 2);
    assert_eq!(readers.head().await.unwrap().seq, next.head());
    bench.check_journal().await;
    next.close().await;
}

#[tokio::test]
async fn a_log_that_is_removed_with_its_index_is_left_to_nobody() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    for extension in ["db-wal", "db-shm"] {
        std::fs::remove_file(bench.path().with_extension(extension)).unwrap();
    }
    submit(&writer, session("b")).await.unwrap_err();
    let before = std::fs::read(bench.path()).unwrap();
    writer.close_for_successor().await;
    // Somebody else may write by now, and nothing would keep the two apart.
    assert_eq!(std::fs::read(bench.path()).unwrap(), before);
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let bench = Bench::new();
    let (gate, opened) = mpsc::channel::<()>();
    let (entered, enter) = tokio::sync::oneshot::channel();
    let entered = Mutex::new(Some(entered));
    let opened = Mutex::new(opened);
    let mut options = bench.options();
    options.on_commit = Box::new(move |_| {
        if let Some(entered) = entered.lock().unwrap().take() {
            entered.send(()).unwrap();
            opened.lock().unwrap().recv().unwrap_err();
        }
    });
    let tuning = Tuning { queue_writes: 3, ..Tuning::default() };
    let writer = Writer::open_with(&bench.path(), options, tuning).unwrap();
    let mut first = Box::pin(submit(&writer, session("first")));
    tokio::select! { _ = &mut first => panic!("answered before the commit was seen"), _ = enter => {} }
    let mut queued: Vec<_> = (0..3).map(|at| Box::pin(submit(&writer, session(&format!("q{at}"))))).collect();
    for write in &mut queued {
        assert!(futures::poll!(write).is_pending());
    }
    let fault = submit(&writer, session("refused")).await.unwrap_err();
    assert!(fault.is(Code::BusyQueue) && fault.is_retryable(), "{fault}");
    assert!(fault.data.unwrap()["retry_after_ms"].as_u64() > Some(0));
    drop(gate);
    first.await.unwrap();
    for write in queued {
        write.await.unwrap();
    }
    apply(&writer, session("refused")).await;
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 5);
}

#[tokio::test]
async fn a_write_beyond_all_room_is_refused_for_good() {
    let bench = Bench::new();
    let writer = bench.writer();
    let huge = SqlValue::Text("x".repeat(crate::writer::MAX_WRITE_BYTES));
    let work = Work::Exec { statements: vec![Statement::new("SELECT ?", [huge])], ddl: false };
    let fault = submit(&writer, work).await.unwrap_err();
    assert!(fault.is(Code::TooLarge) && !fault.is_retryable(), "{fault}");
    // What a secondary could not send is refused here, too: each of these takes six bytes on the way.
    let escaped = |bytes: usize| Work::Exec {
        statements: vec![Statement::new("SELECT length(?)", [SqlValue::Text("\u{1}".repeat(bytes))])],
        ddl: false,
    };
    assert!(submit(&writer, escaped(1 << 20)).await.unwrap_err().is(Code::TooLarge));
    apply(&writer, escaped(512 << 10)).await;
}

#[tokio::test]
async fn a_write_whose_answer_would_not_fit_is_not_applied() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE t (v)"])).await;
    let insert = |bytes: usize| exec(&[&format!("INSERT INTO t VALUES (hex(zeroblob({}))) RETURNING v", bytes / 2)]);
    for bytes in [5 << 20, 4 << 20] {
        let fault = submit(&writer, insert(bytes)).await.unwrap_err();
        assert!(fault.is(Code::TooLarge) && !fault.is_retryable(), "{fault}");
    }
    assert_eq!(bench.value("SELECT count(*) FROM t").await, 0);
    apply(&writer, insert(3 << 20)).await;
    assert_eq!(bench.value("SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn a_row_id_is_told_of_a_row_that_was_inserted_and_of_no_other() {
    let bench = Bench::new();
    let writer = bench.writer();
    let schema = [
        "CREATE TABLE n (id INTEGER PRIMARY KEY, v UNIQUE, times DEFAULT 1)",
        "CREATE TABLE w (id PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE log (what)",
        "CREATE TRIGGER l AFTER INSERT ON n BEGIN INSERT INTO log VALUES (NEW.v), (NEW.v); END",
    ];
    apply(&writer, ddl(&schema)).await;
    let upsert = |v| format!("INSERT INTO n (v) VALUES ('{v}') ON CONFLICT (v) DO UPDATE SET times = times + 1");
    let statements = [
        "INSERT INTO n (id, v) VALUES (777, 'a')",
        &upsert("a"),
        "WITH x AS (SELECT 1) UPDATE n SET times = 7",
        "INSERT INTO w VALUES (1)",
        &upsert("b"),
        "WITH x (v) AS (VALUES ('c'), ('d')) INSERT INTO n (v) SELECT v FROM x",
        "DELETE FROM n",
    ];
    let ack = apply(&writer, exec(&statements)).await.typed::<Vec<crate::StatementResult>>().unwrap();
    let ids: Vec<i64> = ack.results.iter().map(|result| result.last_insert_rowid).collect();
    assert_eq!(ids, [777, 0, 0, 0, 778, 780, 0]);
}

#[tokio::test]
async fn a_fault_names_its_statement() {
    let bench = Bench::new();
    let writer = bench.writer();
    for (sql, code) in [("SELECT ?", None), ("nonsense", Some(Code::Sql))] {
        let fault = submit(&writer, exec(&["SELECT 1", sql])).await.unwrap_err();
        assert!(code.is_none_or(|code| fault.is(code)), "{fault}");
        assert_eq!(fault.data.unwrap()["statement"], 1);
    }
}

#[tokio::test]
async fn closing_answers_what_is_queued_and_refuses_the_rest() {
    let bench = Bench::new();
    let writer = bench.writer();
    let submitted = (0..300).map(|at| Box::pin(maybe_done(submit(&writer, session(&format!("s{at}"))))));
    let mut queued: Vec<_> = submitted.collect();
    for write in &mut queued {
        // It is in the queue after this, or answered already.
        let _pending = futures::poll!(write);
    }
    futures::future::join(futures::future::join_all(queued.iter_mut()), writer.clone().close()).await;
    assert!(queued.iter_mut().all(|write| write.as_mut().take_output().unwrap().is_ok()));
    let fault = submit(&writer, session("late")).await.unwrap_err();
    assert!(fault.is(Code::NotPrimary) && fault.is_retryable());
    assert_eq!(std::fs::metadata(bench.path().with_extension("db-wal")).map_or(0, |wal| wal.len()), 0);
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 300, "a reader opens what the writer left");
}

#[tokio::test]
async fn an_exec_tells_rows_ids_and_what_it_returns() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE t (id INTEGER PRIMARY KEY, v ANY)"])).await;
    let named = Params::named([("v", SqlValue::Integer(i64::MAX)), (":w", SqlValue::Blob(vec![1]))]);
    let statements = vec![
        Statement::new("INSERT INTO t (v) VALUES (?1), (?2)", [SqlValue::Null, SqlValue::Real(f64::INFINITY)]),
        Statement::new("/* c */ INSERT INTO t (v) VALUES (:v), (:w) RETURNING id, v", named),
        Statement::new("UPDATE t SET v = 'a' || char(0) WHERE id < ?", [2]),
        Statement::new("SELECT v FROM t ORDER BY id", ()),
        Statement::new("INSERT OR IGNORE INTO t (id) VALUES (1)", ()),
    ];
    let ack = apply(&writer, Work::Exec { statements, ddl: false }).await;
    let expected = json!([
        {"rows_affected": 2, "last_insert_rowid": 2},
        {"rows_affected": 2, "last_insert_rowid": 4, "columns": ["id", "v"],
         "rows": [[3, i64::MAX], [4, {"$blob": "AQ=="}]]},
        {"rows_affected": 1, "last_insert_rowid": 0},
        {"rows_affected": 0, "last_insert_rowid": 0, "columns": ["v"],
         "rows": [["a\u{0}"], [{"$real": "inf"}], [i64::MAX], [{"$blob": "AQ=="}]]},
        {"rows_affected": 0, "last_insert_rowid": 0},
    ]);
    assert_eq!(ack.results, expected);
}

#[tokio::test]
async fn an_event_is_published_once_and_in_the_journal() {
    let bench = Bench::new();
    let writer = bench.writer();
    let publish = || Work::Publish {
        topic: Topic::known("tool.end"),
        payload: json!({"z": 1, "a": [true]}).into(),
        session_id: "s".into(),
        project_id: "p".into(),
    };
    let ack = writer.submit(request("event", publish())).await.unwrap();
    assert_eq!((ack.seq, writer.submit(request("event", publish())).await.unwrap().seq), (1, 1));
    let page = bench.readers().since(0, &[Pattern::All], 10).await.unwrap();
    let event = &page.events[0];
    assert_eq!(
        (event.instance_id.as_str(), event.session_id.as_str(), event.project_id.as_str()),
        ("inst-A", "s", "p")
    );
    assert_eq!(event.payload.to_string(), r#"{"z":1,"a":[true]}"#);
    assert_eq!(page.events.len(), 1);
    assert_eq!(**bench.events.lock().unwrap().first().unwrap(), *event);
}

#[tokio::test]
async fn the_journal_is_pruned_beside_the_writes() {
    let bench = Bench::new();
    let tuning = Tuning { retention: Some(Retention { max_events: 100, ..Retention::default() }), ..Tuning::default() };
    let writer = bench.tuned(tuning);
    for round in 0..4 {
        let sent = (0..800).map(|at| submit(&writer, session(&format!("{round}-{at}"))));
        assert!(futures::future::join_all(sent).await.iter().all(Result::is_ok));
    }
    let kept = bench.value("SELECT count(*) FROM _pando_event").await.as_u64().unwrap();
    assert!((100..=1_200).contains(&kept), "{kept} events kept");
    assert_eq!(bench.value("SELECT max(seq) FROM _pando_event").await, 6_400);
    let page = bench.readers().since(0, &[Pattern::All], 1).await.unwrap();
    assert_eq!(page.resync.unwrap().from, 1);
    assert_eq!(page.events[0].prev, Some(page.events[0].seq.unwrap() - 2), "of the same topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_this_process_is_committed_on_the_spot_unless_it_takes_its_time() {
    let bench = Bench::new();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let own = Arc::clone(&threads);
    let mut options = bench.options();
    options.on_commit = Box::new(move |_| own.lock().unwrap().push(std::thread::current().id()));
    let writer = Writer::open(&bench.path(), options).unwrap();
    let here = std::thread::current().id();
    writer.submit_here(request("quick", session("a"))).await.unwrap();
    let slow = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000000)
                INSERT INTO sessions (id, title) SELECT max(x), '' FROM n";
    writer.submit_here(request("slow", exec(&[slow]))).await.unwrap();
    let on_the_spot: Vec<_> = threads.lock().unwrap().iter().map(|thread| *thread == here).collect();
    assert_eq!(on_the_spot, [true, false]);
    assert_eq!(
        bench.value("SELECT group_concat(id) FROM (SELECT id FROM sessions ORDER BY id DESC)").await,
        "a,3000000"
    );
    writer.clone().close().await;
    let refused = writer.submit_here(request("late", session("b"))).await.unwrap_err();
    assert!(refused.is(Code::NotPrimary), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_on_the_spot_and_queued_ones_do_not_disturb_each_other() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE counter (n INTEGER NOT NULL)"])).await;
    apply(&writer, exec(&["INSERT INTO counter VALUES (0)"])).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let writer = writer.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let add = request(&fresh_op(), exec(&["UPDATE counter SET n = n + 1"]));
                if task % 2 == 0 { writer.submit_here(add).await } else { writer.submit(add).await }.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(bench.value("SELECT n FROM counter").await, 400);
    assert_eq!(bench.check_journal().await, 401);
}
