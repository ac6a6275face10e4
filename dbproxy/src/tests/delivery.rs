//! Delivery: writes wait for a primary, follow it, and say at their deadline what is known.

use futures::future::BoxFuture;
use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use tokio::sync::watch;

use super::*;
use crate::{Caller, Db, DbOptions, Deliver, DeliverError, Remote, WriteError, wire};

/// What the network does to one delivery.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    LostBefore,
    LostAfter,
    Busy,
}

/// A deliverer with weather before a real writer.
struct Stormy {
    inner: Arc<dyn Deliver>,
    weather: Mutex<Vec<Weather>>,
}

impl Deliver for Stormy {
    fn deliver(&self, request: WriteRequest) -> BoxFuture<'_, Result<Ack, DeliverError>> {
        let weather = self.weather.lock().unwrap().pop();
        Box::pin(async move {
            match weather {
                None => self.inner.deliver(request).await,
                Some(Weather::LostBefore) => Err(DeliverError::NotSent("no route".into())),
                Some(Weather::Busy) => Err(DeliverError::Refused(Fault::new(Code::BusyQueue, "full"))),
                Some(Weather::LostAfter) => {
                    drop(self.inner.deliver(request).await);
                    Err(DeliverError::Unknown("connection lost".into()))
                }
            }
        })
    }
}

/// Calls a writer through the JSON of the wire, as a primary's handlers do.
pub(super) struct OverTheWire {
    writer: Writer,
    writes: Writes,
}

impl OverTheWire {
    pub(super) fn new(writer: Writer, writes: Writes) -> Self {
        Self { writer, writes }
    }
}

impl Caller for OverTheWire {
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Json,
        _deadline: tokio::time::Instant,
    ) -> BoxFuture<'a, Result<Json, DeliverError>> {
        Box::pin(async move {
            let (request, answer) = match method {
                wire::EXEC => (wire::parse_exec(&params, "peer").unwrap(), None),
                wire::OUTCOME => (wire::parse_outcome(&params, "peer").unwrap(), None),
                wire::WRITE => {
                    let (request, answer) =
                        wire::parse_write(&params, "peer", &self.writes).map_err(DeliverError::Refused)?;
                    (request, Some(answer))
                }
                _ => match wire::parse_publish(&params, "peer").unwrap() {
                    wire::Publication::Durable(request) => (request, None),
                    wire::Publication::Ephemeral(event) => panic!("{event:?}"),
                },
            };
            let ack = self.writer.submit(request).await.map_err(DeliverError::Refused)?;
            let result = match (method, answer) {
                (_, Some(answer)) => wire::write_result(&answer, &ack),
                (wire::EXEC, _) => wire::exec_result(&ack),
                (wire::OUTCOME, _) => wire::outcome_result(ack),
                _ => wire::publish_result(&ack).into(),
            };
            Ok(result)
        })
    }
}

type RouteSender = watch::Sender<Option<Arc<dyn Deliver>>>;

fn db(bench: &Bench, deliver: Option<Arc<dyn Deliver>>, timeout: Duration) -> (Db, RouteSender) {
    let (sender, route) = watch::channel(deliver);
    (Db::new(bench.readers(), route, Writes::new(), "inst-B", DbOptions { timeout, ..DbOptions::default() }), sender)
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_secondary_writes_over_the_wire_and_reads_its_own_writes() {
    let bench = Bench::new();
    let writer = bench.writer();
    let remote = Remote::new(Arc::new(OverTheWire::new(writer.clone(), Writes::new())), Writes::new());
    let (db, _route) = db(&bench, Some(Arc::new(remote)), LONG);
    for at in 0..50 {
        let ack = db.write(session(&format!("s{at}"))).await.unwrap();
        assert_eq!((ack.seq, ack.epoch, ack.durability), (2 * at + 2, 1, Durability::Os));
        assert_eq!(tree(&ack.results)["parent_session_id"], Value::Null);
        let seen = db.query_one("SELECT count(*) FROM sessions", (), |row| row.get::<u64>(0)).await.unwrap();
        assert_eq!(seen, Some(at + 1), "the write is seen after its ack");
    }
    let topic = pando_ipc::Topic::known("tool.end");
    assert_eq!(db.publish(topic, json!({"x": 1}), "s1").await.unwrap(), 101);
    let ack = db.execute("UPDATE sessions SET title = ?1 WHERE id = ?2", ["new", "s1"]).await.unwrap();
    assert_eq!(ack.results.rows_affected, 1);
    let event = bench.events.lock().unwrap()[101].clone();
    assert_eq!((event.instance_id.as_str(), event.topic.as_str()), ("inst-B", "db.session.updated"));
    assert_eq!(db.read_at(103).await.unwrap().seq(), 103);
}

#[tokio::test]
async fn a_write_waits_for_a_primary_and_follows_it() {
    let bench = Bench::new();
    let (db, route) = db(&bench, None, LONG);
    let mut write = Box::pin(db.write(session("a")));
    assert!(futures::poll!(&mut write).is_pending());
    let old = bench.writer();
    old.refuse_new();
    route.send_replace(Some(Arc::new(old.clone())));
    assert!(futures::poll!(&mut write).is_pending());
    old.close().await;
    let new = bench.writer();
    route.send_replace(Some(Arc::new(new.clone())));
    assert_eq!(write.await.unwrap().epoch, 2);
}

#[tokio::test]
async fn at_its_deadline_a_write_says_what_is_known() {
    let bench = Bench::new();
    let writer = bench.writer();
    let short = Duration::from_millis(40);
    let (nobody, _route) = db(&bench, None, short);
    assert!(matches!(nobody.write(session("a")).await, Err(WriteError::NotSent { .. })));
    let storm = |weather| -> Arc<dyn Deliver> {
        Arc::new(Stormy { inner: Arc::new(writer.clone()), weather: Mutex::new(vec![weather; 10_000]) })
    };
    let (unreachable, _route) = db(&bench, Some(storm(Weather::LostBefore)), short);
    assert!(matches!(unreachable.write(session("a")).await, Err(WriteError::NotSent { .. })));
    let (busy, _route) = db(&bench, Some(storm(Weather::Busy)), short);
    assert!(matches!(busy.write(session("a")).await, Err(WriteError::NotSent { .. })));
    let (deaf, route) = db(&bench, Some(storm(Weather::LostAfter)), short);
    let unknown = deaf.write(session("a")).await.unwrap_err();
    let WriteError::Unknown { op_id, .. } = unknown else { panic!("{unknown:?}") };
    route.send_replace(Some(Arc::new(writer.clone())));
    let told = deaf.with_options(DbOptions::default()).write_as(&op_id, session("a")).await.unwrap();
    assert!(told.replayed, "the op id tells what became of it");
    drop(route);
    let (gone, route) = db(&bench, None, LONG);
    drop(route);
    assert!(matches!(gone.write(session("b")).await, Err(WriteError::NotSent { .. })));
}

#[tokio::test]
async fn what_no_message_has_room_for_is_refused_alike_on_the_primary_and_before_it_is_sent() {
    let bench = Bench::new();
    let writer = bench.writer();
    let remote = Remote::new(Arc::new(OverTheWire::new(writer.clone(), Writes::new())), Writes::new());
    for route in [Arc::new(remote) as Arc<dyn Deliver>, Arc::new(writer.clone())] {
        let (db, _route) = db(&bench, Some(route), LONG);
        let refused = db.execute("SELECT ?1", [vec![7_u8; 4 << 20]]).await.unwrap_err();
        assert!(matches!(&refused, WriteError::Refused(fault) if fault.is(Code::TooLarge)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_final() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = db(&bench, Some(Arc::new(writer.clone())), LONG);
    db.write(session("a")).await.unwrap();
    let refused = db.write(session("a")).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Refused(fault) if fault.is(Code::Conflict)), "{refused:?}");
}
