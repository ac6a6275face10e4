//! The typed handle: what a user of SQLite expects, and every value unchanged.

use pando_ipc::fault::Code;
use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::{Batch, Db, DbOptions, Deliver, Param, ReadError, Remote, SqlValue, WriteError};

type RouteSender = watch::Sender<Option<Arc<dyn Deliver>>>;

/// The handle of a primary, or of a secondary behind the wire.
fn handle(bench: &Bench, writer: &Writer, local: bool) -> (Db, RouteSender) {
    let deliver: Arc<dyn Deliver> = if local {
        Arc::new(writer.clone())
    } else {
        let wire = delivery::OverTheWire::new(writer.clone(), Writes::new());
        Arc::new(Remote::new(Arc::new(wire), Writes::new()))
    };
    let (sender, route) = watch::channel(Some(deliver));
    let options = DbOptions { timeout: Duration::from_secs(20), ..DbOptions::default() };
    (Db::new(bench.readers(), route, Writes::new(), "inst-B", options), sender)
}

#[tokio::test]
async fn what_is_read_has_the_names_of_the_schema_that_is_there() {
    for local in [true, false] {
        let bench = Bench::new();
        let writer = bench.writer();
        apply(&writer, ddl(&["CREATE TABLE t (a, b, c)"])).await;
        let (db, _route) = handle(&bench, &writer, local);
        let read = async || db.query("SELECT * FROM t", (), |row| Ok(row.to_json().to_string())).await.unwrap();
        let write = async || {
            let ack = db.execute("INSERT INTO t VALUES (1, 2, 3) RETURNING *", ()).await.unwrap();
            ack.results.returned.unwrap().map(|row| Ok(row.to_json().to_string())).unwrap()
        };
        let empty = async || db.query("SELECT * FROM t WHERE 0", (), |_| Ok(())).await.unwrap().len();
        assert_eq!((empty().await, write().await, read().await.len()), (0, vec![r#"{"a":1,"b":2,"c":3}"#.into()], 1));
        apply(&writer, ddl(&["ALTER TABLE t DROP COLUMN b", "ALTER TABLE t ADD COLUMN d"])).await;
        assert_eq!(read().await, [r#"{"a":1,"c":3,"d":null}"#]);
        assert_eq!(write().await, [r#"{"a":1,"c":2,"d":3}"#]);
        apply(&writer, ddl(&["ALTER TABLE t DROP COLUMN d", "DELETE FROM t WHERE c = 2"])).await;
        assert_eq!((read().await, empty().await), (vec![r#"{"a":1,"c":3}"#.to_owned()], 0));
    }
}

#[tokio::test]
async fn who_waits_for_ever_gets_an_answer() {
    for local in [true, false] {
        let bench = Bench::new();
        let writer = bench.writer();
        let (db, _route) = handle(&bench, &writer, local);
        let limits = QueryLimits { time: Duration::MAX, ..QueryLimits::default() };
        let db = db.with_options(DbOptions { timeout: Duration::MAX, limits });
        let ack = db.execute("INSERT INTO sessions (id, title) VALUES ('s', '')", ()).await.unwrap();
        assert_eq!(
            db.read_at(ack.seq).await.unwrap().query("SELECT id FROM sessions", (), |_| Ok(())).await.unwrap().len(),
            1
        );
    }
}

#[tokio::test]
async fn primary_and_secondary_speak_the_same_types() {
    for local in [true, false] {
        let bench = Bench::new();
        let writer = bench.writer();
        apply(
            &writer,
            ddl(&["CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, paid BOOLEAN, score REAL, raw BLOB)"]),
        )
        .await;
        let (db, _route) = handle(&bench, &writer, local);
        let insert = "INSERT INTO t (name, paid, score, raw) VALUES (?1, ?2, ?3, ?4) RETURNING id AS made, name";
        let ack = db.execute(insert, ("Ada", true, None::<f64>, vec![0_u8, 255])).await.unwrap();
        assert_eq!((ack.results.rows_affected, ack.results.last_insert_rowid), (1, 1));
        let made = ack.results.returned.unwrap().map(|row| Ok((row.get::<i64>("made")?, row.get::<String>("name")?)));
        assert_eq!(made.unwrap(), [(1, "Ada".to_owned())]);
        let named = crate::Params::named([("name", "Bo")]);
        assert_eq!(
            db.execute("INSERT INTO t (name) VALUES (:name)", named).await.unwrap().results.last_insert_rowid,
            2
        );
        let read = db.query("SELECT name, paid, score, raw FROM t ORDER BY id", (), |row| {
            Ok((
                row.get::<String>(0)?,
                row.get::<Option<bool>>("paid")?,
                row.get::<Option<f64>>(2)?,
                row.get::<Option<Vec<u8>>>(3)?,
            ))
        });
        let expected = [("Ada".to_owned(), Some(true), None, Some(vec![0, 255])), ("Bo".to_owned(), None, None, None)];
        assert_eq!(read.await.unwrap(), expected);
        let one = |id: i64| db.query_one("SELECT name FROM t WHERE id = ?1", [id], |row| row.get::<String>(0));
        assert_eq!((one(2).await.unwrap(), one(3).await.unwrap()), (Some("Bo".to_owned()), None));
        let wrong = db.query("SELECT name FROM t", (), |row| row.get::<i64>(0)).await.unwrap_err();
        assert_eq!(wrong.to_string(), "column name holds text of 3 bytes, not i64");
    }
}

#[tokio::test]
async fn a_batch_uses_what_its_earlier_statements_made() {
    for local in [true, false] {
        let bench = Bench::new();
        let writer = bench.writer();
        apply(&writer, ddl(&["CREATE TABLE o (id INTEGER PRIMARY KEY, no TEXT)", "CREATE TABLE l (o, no, sku)"])).await;
        let (db, _route) = handle(&bench, &writer, local);
        let mut batch = Batch::new();
        let orders = batch.execute("INSERT INTO o (no) VALUES ('a'), ('b') RETURNING id, no", ());
        batch.execute("INSERT INTO l VALUES (?1, ?2, 'x')", (orders.last_insert_rowid(), orders.returned_at(1, "no")));
        let by_name = crate::Params::named([("o", orders.returned("id")), ("no", orders.returned("NO"))]);
        batch.execute("INSERT INTO l VALUES (:o, :no, 'y')", by_name);
        let ack = db.transaction(batch).await.unwrap();
        assert_eq!(ack.results.len(), 3);
        let lines =
            db.query("SELECT o || no || sku AS line FROM l", (), |row| row.get::<String>("line")).await.unwrap();
        assert_eq!(lines, ["2bx", "1ay"]);
    }
}

#[tokio::test]
async fn a_batch_that_refers_to_nothing_is_refused_as_a_whole() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE t (id INTEGER PRIMARY KEY, v)"])).await;
    let (db, _route) = handle(&bench, &writer, false);
    let returned = |statement, row, column: &str| Param::Returned { statement, row, column: column.into() };
    for (first, param, why) in [
        ("INSERT INTO t (v) VALUES (1)", returned(0, 0, "id"), "statement 0 returns nothing"),
        (
            "INSERT INTO t (v) VALUES (1) RETURNING id",
            returned(0, 0, "v"),
            "statement 0: no column \"v\"; there are id",
        ),
        ("INSERT INTO t (v) VALUES (1) RETURNING id", returned(0, 1, "id"), "statement 0 returned 1 rows"),
        ("UPDATE t SET v = 1", Param::RowId { statement: 0 }, "statement 0 inserted no row"),
        ("INSERT INTO t (v) VALUES (1)", Param::RowId { statement: 1 }, "statement 1 does not come before this one"),
    ] {
        let mut batch = Batch::new();
        batch.execute(first, ());
        batch.execute("INSERT INTO t (v) VALUES (?1)", [param]);
        let refused = db.transaction(batch).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("dbproxy: INVALID_PARAMS (exec): statements[1].params[0]: {why}"));
    }
    let query = db.query("SELECT ?1", [Param::RowId { statement: 0 }], |_| Ok(())).await.unwrap_err();
    assert!(query.to_string().ends_with("params: no statement comes before this one"), "{query}");
    assert_eq!(bench.value("SELECT count(*) FROM t").await, 0);
}

#[tokio::test]
async fn a_read_bound_to_an_event_waits_for_it_or_says_how_far_it_came() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = handle(&bench, &writer, true);
    let (read, ack) = futures::future::join(db.read_at(1), db.write(session("a"))).await;
    let (read, ack) = (read.unwrap(), ack.unwrap());
    assert!(read.seq() >= ack.seq);
    assert_eq!(read.query_one("SELECT id FROM sessions", (), |row| row.get::<String>(0)).await.unwrap().unwrap(), "a");
    let short = db.with_options(DbOptions { timeout: Duration::from_millis(20), ..DbOptions::default() });
    assert_eq!(short.read_at(9).await.unwrap_err(), ReadError::Behind { wanted: 9, head: 2 });
}

#[tokio::test]
async fn a_batch_without_statements_is_refused() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = handle(&bench, &writer, true);
    let refused = db.transaction(Batch::new()).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused(fault) if !fault.is(Code::Conflict)), "{refused:?}");
}

fn value() -> impl Strategy<Value = SqlValue> {
    let reals = prop_oneof![any::<f64>(), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(f64::NAN), Just(-0.0)];
    prop_oneof![
        Just(SqlValue::Null),
        any::<i64>().prop_map(SqlValue::Integer),
        prop_oneof![Just(i64::MAX), Just(i64::MIN), Just((1 << 53) + 1)].prop_map(SqlValue::Integer),
        reals.prop_map(SqlValue::Real),
        "[\\x00-\\x7fé\u{1F980}]{0,12}".prop_map(SqlValue::Text),
        any::<Vec<u8>>().prop_map(SqlValue::Blob),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_value_comes_back_unchanged_from_both_ends(values in prop::collection::vec(value(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let writer = bench.writer();
            apply(&writer, ddl(&["CREATE TABLE t (id INTEGER PRIMARY KEY, v)"])).await;
            for local in [true, false] {
                let (db, _route) = handle(&bench, &writer, local);
                let mut batch = Batch::new();
                for value in &values {
                    batch.execute("INSERT INTO t (v) VALUES (?1) RETURNING v", [value.clone()]);
                }
                let ack = db.transaction(batch).await.unwrap();
                let returned = ack.results.iter().map(|one| one.returned.as_ref().unwrap().rows[0][0].clone());
                let stored = db.query("SELECT v FROM t ORDER BY id", (), |row| row.get::<SqlValue>(0)).await.unwrap();
                let expected: Vec<_> = values.iter().map(|value| match value {
                    // So SQLite itself.
                    SqlValue::Real(real) if real.is_nan() => SqlValue::Null,
                    value => value.clone(),
                }).collect();
                assert_eq!(returned.collect::<Vec<_>>(), expected);
                assert_eq!(stored, expected);
                db.execute("DELETE FROM t", ()).await.unwrap();
            }
        });
    }
}
