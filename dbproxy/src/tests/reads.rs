//! Local reads: only reading, limited, and never of a stale file.

use std::pin::pin;
use std::task::Poll;

use pando_ipc::fault::Code;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::{ReadError, SqlValue};

#[tokio::test]
async fn a_query_cannot_write_by_any_route() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let readers = bench.readers();
    for sql in [
        "DELETE FROM sessions",
        "INSERT INTO sessions (id, title) VALUES ('b', '') RETURNING id",
        "WITH x AS (SELECT 1) UPDATE sessions SET title = 'x' RETURNING id",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "SELECT * FROM pragma_database_list",
        "ATTACH '/tmp/never.db' AS other",
        "VACUUM",
        "VACUUM INTO '/tmp/never.db'",
        "BEGIN IMMEDIATE",
        "BEGIN",
        "SELECT load_extension('x')",
        "REINDEX",
        "ANALYZE",
        "SELECT 1; DELETE FROM sessions",
        "",
    ] {
        let error = readers.query(sql, (), QueryLimits::default()).await.expect_err(sql);
        let ReadError::Refused(fault) = &error else { panic!("{sql}: {error:?}") };
        assert!(fault.is(Code::Forbidden) || fault.code == -32602, "{sql}: {fault}");
    }
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 1);
    assert_eq!(bench.value("SELECT count(*) FROM pragma_table_info('sessions')").await, 10);
}

#[tokio::test]
async fn rows_bytes_and_time_of_a_query_are_limited() {
    let bench = Bench::new();
    let _writer = bench.writer();
    let readers = bench.readers();
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n";
    let limits = QueryLimits { rows: 5, bytes: 1_000, time: Duration::from_millis(50) };
    for (sql, code) in [
        (endless.to_owned(), Code::TooLarge),
        (format!("{endless} LIMIT 5"), Code::Sql),
        ("SELECT hex(zeroblob(1000))".to_owned(), Code::TooLarge),
        (format!("{endless} WHERE x < 0"), Code::Deadline),
    ] {
        match readers.query(sql.clone(), (), limits).await {
            Ok(result) => assert_eq!((code, result.rows.len()), (Code::Sql, 5), "{sql}"),
            Err(error) => assert!(Fault::from(error.clone()).is(code), "{sql}: {error}"),
        }
    }
}

#[tokio::test]
async fn readers_wait_for_a_database_and_follow_a_replaced_one() {
    let bench = Bench::new();
    let readers = bench.readers();
    let error = readers.head().await.unwrap_err();
    assert!(matches!(error, ReadError::NotReady { .. }), "{error:?}");
    assert!(Fault::from(error).is_retryable());
    std::fs::write(bench.path(), "").unwrap();
    assert!(matches!(readers.head().await, Err(ReadError::NotReady { .. })));
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    assert_eq!(readers.head().await.unwrap(), crate::Head { seq: 2, epoch: 1 });
    let first = readers.database().await.unwrap();
    assert_eq!(first, writer.database());
    writer.close().await;
    for suffix in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(crate::schema::beside(&bench.path(), suffix)));
    }
    let writer = bench.writer();
    assert_eq!(readers.head().await.unwrap().seq, 0);
    assert_eq!(readers.database().await.unwrap(), writer.database());
    assert_ne!(writer.database(), first);
}

#[tokio::test]
async fn a_wait_ends_when_the_event_is_there_or_says_how_far_it_came() {
    let bench = Bench::new();
    let writer = bench.writer();
    let readers = bench.readers();
    let behind = readers.wait_for(1, Instant::now() + Duration::from_millis(20)).await;
    assert_eq!(behind, Err(ReadError::Behind { wanted: 1, head: 0 }));
    let wait = readers.wait_for(4, Instant::now() + Duration::from_secs(20));
    let write = async {
        apply(&writer, session("a")).await;
        apply(&writer, session("b")).await;
    };
    assert_eq!(futures::future::join(wait, write).await.0, Ok(4));
}

/// Returns a runtime with one thread for what blocks, and what holds that thread until it is dropped.
fn without_blocking_threads(mut builder: Builder) -> (Runtime, std::sync::mpsc::Sender<()>) {
    let runtime = builder.max_blocking_threads(1).enable_all().build().unwrap();
    let (held, free) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || free.recv().unwrap_or_default());
    (runtime, held)
}

#[test]
fn a_small_read_waits_for_no_other_thread_and_a_long_one_goes_on_there() {
    let bench = Bench::new();
    let opener = Runtime::new().unwrap();
    let _writer = opener.block_on(async { bench.writer() });
    let readers = bench.readers();
    let count = |rows: u32| {
        let sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?1) SELECT count(*) FROM n";
        let found = readers.query(sql, [rows], QueryLimits::default());
        async move { found.await.unwrap().rows }
    };
    let counted = |rows: i64| vec![vec![SqlValue::Integer(rows)]];
    opener.block_on(count(1));

    let (runtime, held) = without_blocking_threads(Builder::new_multi_thread());
    runtime.block_on(async {
        assert_eq!(futures::poll!(pin!(count(2))), Poll::Ready(counted(2)));
        let mut long = pin!(count(1_000_000));
        assert_eq!(futures::poll!(&mut long), Poll::Pending, "it takes longer than the others here should wait");
        let mut next = pin!(count(2));
        assert_eq!(futures::poll!(&mut next), Poll::Pending, "what took long before is handed over at once");
        drop(held);
        assert_eq!(long.await, counted(1_000_000));
        assert_eq!(next.await, counted(2));
    });

    let (runtime, held) = without_blocking_threads(Builder::new_current_thread());
    runtime.block_on(async {
        let mut small = pin!(count(3));
        assert_eq!(futures::poll!(&mut small), Poll::Pending, "everything else would wait for it");
        drop(held);
        assert_eq!(small.await, counted(3));
    });
}

#[test]
fn a_read_that_meets_a_lock_waits_for_it_on_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (7)").unwrap();
    let readers = Readers::open(&path, 1);
    let read = || readers.query("SELECT a FROM t", (), QueryLimits::default());
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        read().await.unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let mut reading = pin!(read());
        assert_eq!(futures::poll!(&mut reading), Poll::Pending);
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(reading.await.unwrap().rows, [[SqlValue::Integer(7)]]);
    });
}

#[test]
fn who_reads_or_writes_on_and_on_gives_way_to_others() {
    let bench = Bench::new();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let writer = bench.writer();
        let readers = bench.readers();
        readers.query("SELECT 1", (), QueryLimits::default()).await.unwrap();
        let reads = async {
            for _ in 0..1_000 {
                readers.query("SELECT 1", (), QueryLimits::default()).await.unwrap();
            }
        };
        assert_eq!(futures::poll!(&mut pin!(reads)), Poll::Pending);
        tokio::task::yield_now().await;
        let writes = async {
            for _ in 0..1_000 {
                writer.submit_here(request(&fresh_op(), session(&fresh_op()))).await.unwrap();
            }
        };
        assert_eq!(futures::poll!(&mut pin!(writes)), Poll::Pending);
        writer.close().await;
    });
}
