//! What is prepared before an election writes nothing until then, and is not used where it does not fit any more.

use rusqlite::ErrorCode;
use rusqlite::limits::Limit;

use super::*;
use crate::{RecentStatements, Standby, schema, standby};

fn prepared(bench: &Bench) -> Standby {
    Standby::prepare(&bench.path()).unwrap()
}

/// Leads with what was prepared, and tells whether that was used: then the triggers are those of the preparation.
fn elected(bench: &Bench, standby: Standby) -> (Writer, bool) {
    let fits = standby.is_current();
    (Writer::open_prepared(&bench.path(), Some(standby), bench.options()).unwrap(), fits)
}

#[tokio::test]
async fn who_was_prepared_leads_in_the_next_epoch_and_goes_on_where_the_last_one_was() {
    let bench = Bench::new();
    let first = bench.writer();
    apply(&first, session("s-1")).await;
    let standby = prepared(&bench);
    // The database moves on while somebody waits.
    let again = request("op-2", session("s-2"));
    first.submit(again.clone()).await.unwrap();
    first.close().await;
    let (second, was_used) = elected(&bench, standby);
    assert!(was_used);
    assert_eq!(second.epoch(), 2);
    assert!(second.submit(again).await.unwrap().replayed);
    apply(&second, session("s-3")).await;
    assert_eq!(bench.seen(), ["db.session.created s-1", "db.session.created s-2", "db.session.created s-3"]);
    assert_eq!(bench.check_journal().await, 6);
    second.close().await;
}

#[tokio::test]
async fn a_term_that_was_prepared_compiles_none_of_what_it_runs_first() {
    let bench = Bench::new();
    let first = bench.writer();
    apply(&first, session("s-1")).await;
    let (mut standby, recent, client) = (prepared(&bench), RecentStatements::default(), uuid::Uuid::now_v7());
    // Ever new statements do not displace what each term runs.
    for number in 0..200 {
        let work = exec(&[&format!("DELETE FROM sessions WHERE id = 'gone-{number}'")]);
        (0..2).for_each(|_| recent.note(&work, &Writes::new()));
        standby = standby.kept_current().unwrap();
        standby.warm(&recent);
    }
    (0..2).for_each(|_| recent.note(&session("s-1"), &Writes::new()));
    standby.warm(&recent);
    let longest = "PRAGMA synchronous = FULL".len();
    // From now on nothing longer can be compiled, nor compiled anew.
    standby.connections()[0].set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, i32::try_from(longest).unwrap()).unwrap();
    let counted = |counter: u64, work| request(&format!("{client}-{counter}"), work);
    first.submit(counted(0, session("s-2"))).await.unwrap();
    first.close().await;
    let (second, was_used) = elected(&bench, standby);
    assert!(was_used);
    assert!(second.submit(counted(0, session("s-2"))).await.unwrap().replayed);
    second.submit(counted(1, session("s-3"))).await.unwrap();
    let topic = pando_ipc::Topic::new("app.note").unwrap();
    let (session_id, project_id) = (String::new(), String::new());
    apply(&second, Work::Publish { topic, payload: json!(1).into(), session_id, project_id }).await;
    submit(&second, exec(&["DELETE FROM sessions WHERE id = 's-1'"])).await.unwrap_err();
    second.close().await;
}

#[test]
fn a_term_that_was_prepared_waits_for_the_disk_as_one_that_was_not() {
    let bench = Bench::new();
    drop(schema::open(&bench.path(), Durability::Disk).unwrap());
    for (durability, synchronous) in [(Durability::Disk, 2), (Durability::Os, 1)] {
        for standby in [Some(prepared(&bench)), None] {
            let (begun, _) = standby::open(&bench.path(), standby, durability).unwrap();
            let found = begun.opened.connection.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0));
            assert_eq!(found.unwrap(), synchronous);
        }
    }
}

#[tokio::test]
async fn a_standby_writes_nothing() {
    let bench = Bench::new();
    assert!(Standby::prepare(&bench.path()).is_err(), "without a database there is nothing to prepare");
    assert!(!bench.path().exists());
    let first = bench.writer();
    apply(&first, session("s-1")).await;
    let epoch = bench.value("SELECT value FROM _pando_meta WHERE key = 'epoch'").await;
    let standby = prepared(&bench);
    let by = [ErrorCode::ConstraintViolation, ErrorCode::ReadOnly];
    for (connection, by) in standby.connections().into_iter().zip(by) {
        let change = "UPDATE _pando_meta SET value = 7 WHERE key = 'epoch'";
        for script in
            [change.to_owned(), format!("BEGIN; {change}; COMMIT"), format!("SAVEPOINT s; {change}; RELEASE s")]
        {
            let refused = connection.execute_batch(&script).unwrap_err();
            assert_eq!(refused.sqlite_error_code(), Some(by), "{refused}");
            drop(connection.execute_batch("ROLLBACK"));
        }
    }
    // Nothing of it is seen, and nothing is in the way of those who write.
    assert_eq!(bench.value("SELECT value FROM _pando_meta WHERE key = 'epoch'").await, epoch);
    apply(&first, session("s-2")).await;
    assert!(standby.kept_current().is_some());
    first.close().await;
}

#[test]
fn a_standby_that_is_closed_last_moves_nothing() {
    let bench = Bench::new();
    let opened = schema::open(&bench.path(), Durability::Os).unwrap();
    opened.connection.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(100000))").unwrap();
    let standby = prepared(&bench);
    // As when it dies.
    drop(opened);
    let before = std::fs::metadata(bench.path()).unwrap().len();
    drop(standby);
    assert_eq!(std::fs::metadata(bench.path()).unwrap().len(), before);
    assert!(std::fs::metadata(bench.path().with_extension("db-wal")).unwrap().len() > 100_000);
}

#[tokio::test]
async fn a_schema_or_a_wish_that_came_meanwhile_makes_it_unfit_and_is_followed() {
    let changes = [
        ddl(&["CREATE TABLE later (id INTEGER PRIMARY KEY)"]),
        named("Track", &json!({"table": "sessions", "columns": ["title"]})),
    ];
    for change in changes {
        let bench = Bench::new();
        let first = bench.writer();
        apply(&first, ddl(&["CREATE TABLE gone (id INTEGER PRIMARY KEY)"])).await;
        let standby = prepared(&bench);
        assert!(standby.is_current());
        apply(&first, change).await;
        apply(&first, ddl(&["DROP TABLE gone", "CREATE TABLE IF NOT EXISTS later (id INTEGER PRIMARY KEY)"])).await;
        first.close().await;
        bench.forget();
        let (second, was_used) = elected(&bench, standby);
        assert!(!was_used);
        apply(&second, exec(&["INSERT INTO later VALUES (7)"])).await;
        let told = bench.events.lock().unwrap()[0].payload.read::<Value>().unwrap()["payload"]["tables"].clone();
        assert_eq!(told, json!({"later": {"created": 1}}));
        second.close().await;
    }
}

#[tokio::test]
async fn another_file_in_its_place_makes_it_unfit() {
    let bench = Bench::new();
    let first = bench.writer();
    apply(&first, session("s-1")).await;
    let (standby, database) = (prepared(&bench), first.database());
    first.close().await;
    std::fs::rename(bench.path(), bench.dir.path().join("away.db")).unwrap();
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(schema::beside(&bench.path(), suffix)).unwrap();
    }
    let (second, was_used) = elected(&bench, standby);
    assert!(!was_used);
    assert_ne!(second.database(), database);
    assert_eq!(second.epoch(), 1);
    second.close().await;
}
