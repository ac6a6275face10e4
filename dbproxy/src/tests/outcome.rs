//! Op ids: whose they are, how long they are known, and what became of their writes.

use pando_ipc::fault::Code;
use tokio::sync::watch;

use super::*;
use crate::{Db, DbOptions, Deliver, Outcome, Remote, Retention, WriteError, wire};

fn remote(bench: &Bench, writer: &Writer) -> (Db, watch::Sender<Option<Arc<dyn Deliver>>>) {
    let wire = delivery::OverTheWire::new(writer.clone(), Writes::new());
    let remote: Arc<dyn Deliver> = Arc::new(Remote::new(Arc::new(wire), Writes::new()));
    let (sender, route) = watch::channel(Some(remote));
    (Db::new(bench.readers(), route, Writes::new(), "inst-B", DbOptions::default()), sender)
}

#[tokio::test]
async fn two_clients_that_count_alike_get_their_own_answers() {
    let bench = Bench::new();
    let writer = bench.writer();
    let create = async |source: &str, id: &str| {
        let meta = json!({"source_instance_id": source, "request_id": "req-1", "timestamp": "2026-11-21T03:04:15Z"});
        let params = json!({"meta": meta, "method": "CreateSession", "params": session_params(id)}).into();
        let (request, answer) = wire::parse_write(&params, "peer-1.1", &Writes::new()).unwrap();
        let ack = writer.submit(request).await?;
        Ok::<_, Fault>((tree(&wire::write_result(&answer, &ack))["id"].clone(), ack.replayed))
    };
    for replayed in [false, true] {
        assert_eq!(create("inst-A", "a").await.unwrap(), (json!("a"), replayed));
        assert_eq!(create("inst-B", "b").await.unwrap(), (json!("b"), replayed));
        assert_eq!(
            create("", "c").await.unwrap(),
            (json!("c"), replayed),
            "its connection stands for a client without a name"
        );
    }
    assert!(create("inst-A", "b").await.unwrap_err().is(Code::KeyReused));
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 3);
    let asked = wire::parse_outcome(&json!({"op_id": "req-1", "source_instance_id": "inst-A"}).into(), "cli").unwrap();
    assert_eq!(tree(&writer.submit(asked).await.unwrap().results)["ack"]["results"]["id"], "a");
    let asked = wire::parse_outcome(&json!({"op_id": "req-1"}).into(), "cli").unwrap();
    assert_eq!(writer.submit(asked).await.unwrap().results, json!({"outcome": "not_applied"}));
}

#[tokio::test]
async fn an_outcome_is_told_and_stays() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = remote(&bench, &writer);
    let first = db.write_as("mine", session("a")).await.unwrap();
    let Outcome::Applied { ack } = db.outcome("mine").await.unwrap() else { panic!("it was applied") };
    assert_eq!((ack.seq, ack.results["id"].as_str(), ack.replayed), (first.seq, Some("a"), true));
    for op_id in ["never", &format!("{}-0", uuid::Uuid::now_v7())] {
        assert_eq!(db.outcome(op_id).await.unwrap(), Outcome::NotApplied);
        let late = db.write_as(op_id, session("late")).await.unwrap_err();
        assert!(matches!(&late, WriteError::Refused(fault) if fault.is(Code::Abandoned)), "{late:?}");
        assert_eq!(db.outcome(op_id).await.unwrap(), Outcome::NotApplied);
    }
    writer.close().await;
    let writer = bench.writer();
    let (db, _route) = remote(&bench, &writer);
    assert!(
        matches!(db.write_as("never", session("late")).await, Err(WriteError::Refused(fault)) if fault.is(Code::Abandoned))
    );
    assert!(matches!(db.outcome("mine").await.unwrap(), Outcome::Applied { .. }));
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 1);
}

#[tokio::test]
async fn a_forgotten_op_is_never_run_again() {
    let bench = Bench::new();
    let forgetful = || Tuning { keep_ops: 10, keep_ops_for: Duration::ZERO, ..Tuning::default() };
    let mut writer = bench.tuned(forgetful());
    apply(&writer, ddl(&["CREATE TABLE n (v)"])).await;
    let insert = || exec(&["INSERT INTO n VALUES (1)"]);
    let counted = format!("{}-0", uuid::Uuid::now_v7());
    writer.submit(request(&counted, insert())).await.unwrap();
    writer.submit(request("req-1", insert())).await.unwrap();
    let asked = |op_id: &str| request(op_id, Work::Settle);
    // What is old is a matter of whole seconds.
    let kept = "SELECT (SELECT count(*) FROM _pando_op_named WHERE name = 'req-1') + (SELECT count(*) FROM _pando_op WHERE n = 1)";
    while bench.value(kept).await != 0 {
        let nothing = || exec(&["DELETE FROM n WHERE v = 0"]);
        let client = uuid::Uuid::now_v7();
        let counted = (0..500).map(|n| writer.submit(request(&format!("{client}-{n}"), nothing())));
        let others = (0..500).map(|_| submit(&writer, nothing()));
        let all = futures::future::join(futures::future::join_all(counted), futures::future::join_all(others)).await;
        assert!(all.0.iter().chain(&all.1).all(Result::is_ok));
    }
    for _ in 0..2 {
        let fault = writer.submit(request(&counted, insert())).await.unwrap_err();
        assert!(fault.is(Code::OutcomeUnknown) && !fault.is_retryable(), "{fault}");
        let outcome = tree(&writer.submit(asked(&counted)).await.unwrap().results);
        assert_eq!(outcome["outcome"], "unknown", "{outcome}");
        writer.close().await;
        writer = bench.tuned(forgetful());
    }
    assert_eq!(bench.value("SELECT count(*) FROM n").await, 2);
    let (db, _route) = remote(&bench, &writer);
    let unknown = db.write_as(&counted, insert()).await.unwrap_err();
    assert!(matches!(&unknown, WriteError::Unknown { op_id, .. } if *op_id == counted), "{unknown:?}");
    // An op id that a client chose is remembered for a while and no longer, and that is said.
    let outcome = db.outcome("req-1").await.unwrap();
    assert!(matches!(&outcome, Outcome::Unknown { reason } if reason.contains("forgotten up to")), "{outcome:?}");
    db.write_as("req-1", insert()).await.unwrap();
    assert_eq!(bench.value("SELECT count(*) FROM n").await, 3);
}

#[tokio::test]
async fn an_op_outlives_the_event_that_kept_it() {
    let bench = Bench::new();
    let shortest = Retention { max_events: 0, ..Retention::default() };
    let short = || Tuning { retention: Some(shortest), ..Tuning::default() };
    let writer = bench.tuned(short());
    apply(&writer, ddl(&["CREATE TABLE n (v)"])).await;
    let counted = format!("{}-0", uuid::Uuid::now_v7());
    let kept = request(&counted, exec(&["INSERT INTO n VALUES (1)"]));
    let first = writer.submit(kept.clone()).await.unwrap();
    assert_eq!(bench.value("SELECT count(*) FROM _pando_op").await, 0, "it is stored with its event");
    let again = async |writer: &Writer| {
        let answer = writer.submit(kept.clone()).await.unwrap();
        assert_eq!(answer, Ack { replayed: true, ..first.clone() });
    };
    again(&writer).await;
    let standby = crate::Standby::prepare(&bench.path()).unwrap();
    let (db, _route) = remote(&bench, &writer);
    while bench.value(&format!("SELECT count(*) FROM _pando_event WHERE seq = {}", first.seq)).await != 0 {
        let writes = (0..100).map(|_| db.write(exec(&["INSERT INTO n VALUES (2)"])));
        assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    }
    again(&writer).await;
    writer.close().await;
    for standby in [Some(standby), None] {
        let next = Writer::open_prepared(&bench.path(), standby, bench.options()).unwrap();
        again(&next).await;
        next.close().await;
    }
    assert_eq!(bench.value("SELECT count(*) FROM n WHERE v = 1").await, 1);
}

#[tokio::test]
async fn what_a_client_has_seen_is_not_kept() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = remote(&bench, &writer);
    let work = || exec(&["UPDATE sessions SET title = 'x' WHERE id = 'nobody'"]);
    for _ in 0..40 {
        let writes = (0..100).map(|_| db.write(work()));
        assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    }
    let kept = bench.value("SELECT count(*) FROM _pando_op").await.as_u64().unwrap();
    assert!(kept < 2_500, "{kept} of 4000 answers are kept");
    let below = bench.value("SELECT max(below) FROM _pando_client").await.as_u64().unwrap();
    assert!(below > 1_500 && below <= 4_000, "{below}");
}

/// Delivers like a network that keeps a copy of each request and then loses the connection.
struct Copying {
    writer: Writer,
    copies: Mutex<Vec<WriteRequest>>,
}

impl Deliver for Copying {
    fn deliver(&self, request: WriteRequest) -> futures::future::BoxFuture<'_, Result<Ack, crate::DeliverError>> {
        Box::pin(async move {
            let first = self.copies.lock().unwrap().is_empty();
            self.copies.lock().unwrap().push(request.clone());
            if first {
                return Err(crate::DeliverError::Unknown("connection lost".into()));
            }
            self.writer.deliver(request).await
        })
    }
}

#[tokio::test]
async fn a_refused_write_is_not_applied_by_a_copy_that_comes_late() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let copying = Arc::new(Copying { writer: writer.clone(), copies: Mutex::default() });
    let deliver: Arc<dyn Deliver> = copying.clone();
    let (_sender, route) = watch::channel(Some(deliver));
    let db = Db::new(bench.readers(), route, Writes::new(), "inst-B", DbOptions::default());
    let refused = db.write(session("a")).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused(fault) if fault.is(Code::Conflict)), "{refused:?}");
    apply(&writer, named("DeleteSession", &json!("a"))).await;
    let copy = copying.copies.lock().unwrap()[0].clone();
    assert!(writer.submit(copy).await.unwrap_err().is(Code::Abandoned));
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 0);
}
