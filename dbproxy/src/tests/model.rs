//! The write path against a model: loss, duplication, reordering, reconnection and takeovers, and each write applies exactly once or not at all.

use std::collections::{BTreeMap, HashMap};

use futures::future::BoxFuture;
use pando_ipc::Topic;
use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::{Batch, Caller, Db, DbOptions, Deliver, DeliverError, Outcome, Remote, WriteError};

/// The topic of the model's own events.
const TOLD: &str = "model.told";

/// What the network does to one call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    Fine,
    /// It does not leave.
    LostBefore,
    /// It is served, and its answer lost.
    LostAfter,
    /// It is served twice at once.
    Twice,
    Busy,
    /// The connection ends, and the call arrives some time later.
    Late,
    /// All that is late arrives, the last first, before this one.
    Arrives,
    /// A new primary takes over; the call is lost with the old one's connection.
    Takeover,
    /// The call goes to the former primary, which lives on.
    ToTheOld,
}

/// The network between one workdir's secondaries and its primaries.
struct Storm {
    bench: Bench,
    /// Newest last.
    primaries: Mutex<Vec<Writer>>,
    weather: Mutex<Vec<Weather>>,
    late: Mutex<Vec<(String, Json)>>,
}

impl Storm {
    fn new(weather: Vec<Weather>) -> Self {
        let bench = Bench::new();
        let first = bench.writer();
        Self { bench, primaries: Mutex::new(vec![first]), weather: Mutex::new(weather), late: Mutex::default() }
    }

    fn primary(&self) -> Writer {
        self.primaries.lock().unwrap().last().unwrap().clone()
    }

    async fn serve(&self, writer: Writer, method: &str, params: Json) -> Result<Json, DeliverError> {
        let deadline = tokio::time::Instant::now();
        delivery::OverTheWire::new(writer, Writes::new()).call_by(method, params, deadline).await
    }

    /// Lets all that is late arrive.
    async fn arrive(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        for (method, params) in late.into_iter().rev() {
            drop(self.serve(self.primary(), &method, params).await);
        }
    }
}

impl Caller for Storm {
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Json,
        _deadline: tokio::time::Instant,
    ) -> BoxFuture<'a, Result<Json, DeliverError>> {
        let weather = self.weather.lock().unwrap().pop().unwrap_or(Weather::Fine);
        let lost = || Err(DeliverError::Unknown("connection lost".into()));
        Box::pin(async move {
            match weather {
                Weather::Fine => self.serve(self.primary(), method, params).await,
                Weather::LostBefore => Err(DeliverError::NotSent("no route".into())),
                Weather::LostAfter => {
                    drop(self.serve(self.primary(), method, params).await);
                    lost()
                }
                Weather::Twice => {
                    let twice = [params.clone(), params].map(|params| self.serve(self.primary(), method, params));
                    let mut answers = futures::future::join_all(twice).await;
                    // Each counts its time from its own arrival: the first may come too late and the second not.
                    let told = answers.iter().position(Result::is_ok).unwrap_or(0);
                    answers.swap_remove(told)
                }
                Weather::Busy => {
                    Err(DeliverError::Refused(Fault::new(Code::BusyQueue, "full").with("retry_after_ms", 2)))
                }
                Weather::Late => {
                    self.late.lock().unwrap().push((method.to_owned(), params));
                    lost()
                }
                Weather::Arrives => {
                    self.arrive().await;
                    self.serve(self.primary(), method, params).await
                }
                Weather::Takeover => {
                    let next = self.bench.writer();
                    self.primaries.lock().unwrap().push(next);
                    lost()
                }
                Weather::ToTheOld => {
                    let old = self.primaries.lock().unwrap()[0].clone();
                    self.serve(old, method, params).await
                }
            }
        })
    }
}

/// One write of the model. Each also notes its own number in a log.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// Puts a key, which must not be there.
    Put(u8),
    /// Removes a key.
    Remove(u8),
    /// Is refused whatever happens.
    Bad,
    /// Publishes an event with its number.
    Tell,
}

fn work(number: usize, op: Op) -> Work {
    let mut batch = Batch::new();
    let number = i64::try_from(number).unwrap();
    let note = batch.execute("INSERT INTO log (op) VALUES (?1) RETURNING at", [number]);
    match op {
        Op::Put(key) => batch.execute("INSERT INTO held (key, at) VALUES (?1, ?2)", (key, note.returned("at"))),
        Op::Remove(key) => batch.execute("DELETE FROM held WHERE key = ?1", [key]),
        Op::Bad => batch.execute("INSERT INTO nowhere VALUES (?1)", [note.last_insert_rowid()]),
        Op::Tell => {
            let (topic, payload) = (Topic::known(TOLD), json!(number));
            return Work::Publish {
                topic,
                payload: payload.into(),
                session_id: String::new(),
                project_id: String::new(),
            };
        }
    };
    Work::Exec { statements: batch.into_statements(), ddl: false }
}

/// Where the write stands: in the log, or in the journal.
fn place(op: Op, ack: &Ack) -> (bool, i64) {
    let told = matches!(op, Op::Tell);
    (told, if told { i64::try_from(ack.seq).unwrap() } else { tree(&ack.results)[0]["rows"][0][0].as_i64().unwrap() })
}

fn weather() -> impl Strategy<Value = Weather> {
    prop_oneof![
        4 => Just(Weather::Fine),
        1 => Just(Weather::LostBefore),
        2 => Just(Weather::LostAfter),
        2 => Just(Weather::Twice),
        1 => Just(Weather::Busy),
        3 => Just(Weather::Late),
        2 => Just(Weather::Arrives),
        1 => Just(Weather::Takeover),
        1 => Just(Weather::ToTheOld),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..3_u8).prop_map(Op::Put),
        3 => (0..3_u8).prop_map(Op::Remove),
        1 => Just(Op::Bad),
        2 => Just(Op::Tell),
    ]
}

/// Applies the log to an empty model, in its order; every op that it holds must have been possible.
fn check_log(ops: &[Op], log: &[(i64, usize)], held: &[(u8, i64)]) {
    let mut model = HashMap::new();
    for (at, number) in log {
        match ops[*number] {
            Op::Put(key) => assert_eq!(model.insert(key, *at), None, "op {number} put a key that was there: {log:?}"),
            Op::Remove(key) => drop(model.remove(&key)),
            Op::Bad | Op::Tell => panic!("op {number} cannot be in the log: {log:?}"),
        }
    }
    let mut expected: Vec<_> = model.into_iter().collect();
    expected.sort_unstable();
    assert_eq!(held, expected, "{log:?}");
}

async fn check(ops: Vec<Op>, weather: Vec<Weather>, patience: Duration) {
    let storm = Arc::new(Storm::new(weather));
    let tables = ["CREATE TABLE log (at INTEGER PRIMARY KEY, op)", "CREATE TABLE held (key INTEGER PRIMARY KEY, at)"];
    apply(&storm.primary(), ddl(&tables)).await;
    let remote: Arc<dyn Deliver> = Arc::new(Remote::new(storm.clone(), Writes::new()));
    let (_sender, route) = watch::channel(Some(remote));
    let options = DbOptions { timeout: patience, ..DbOptions::default() };
    let clients: Vec<_> = (0..3)
        .map(|at| Db::new(storm.bench.readers(), route.clone(), Writes::new(), format!("inst-{at}"), options))
        .collect();
    let writes = ops.iter().enumerate().map(|(number, op)| clients[number % 3].write(work(number, *op)));
    let answers = futures::future::join_all(writes).await;
    // What nobody knows is asked for, in good weather; what is late still comes.
    storm.weather.lock().unwrap().clear();
    let mut applied = BTreeMap::new();
    for (number, answer) in answers.into_iter().enumerate() {
        let client = clients[number % 3].with_options(DbOptions::default());
        let ack = match answer {
            Ok(ack) => Some(ack),
            Err(WriteError::Unknown { op_id, .. }) => match client.outcome(&op_id).await.unwrap() {
                Outcome::Applied { ack: Ack { seq, epoch, durability, results, replayed } } => {
                    Some(Ack { seq, epoch, durability, results: results.into(), replayed })
                }
                Outcome::NotApplied => None,
                Outcome::Unknown { reason } => panic!("{number}: {reason}"),
            },
            Err(WriteError::Refused(_) | WriteError::NotSent { .. }) => None,
        };
        if let Some(ack) = ack {
            assert_eq!(applied.insert(place(ops[number], &ack), number), None, "two writes got one answer");
        }
    }
    storm.arrive().await;
    let readers = storm.bench.readers();
    let all = async |sql: &str| readers.query(sql, (), QueryLimits::default()).await.unwrap();
    let log = all("SELECT at, op FROM log ORDER BY at").await.map(|row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let held = all("SELECT key, at FROM held ORDER BY key").await.map(|row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let page = readers.since(0, &[Pattern::new(TOLD).unwrap()], 1_000).await.unwrap();
    let events = page.events.iter().map(|event| {
        (
            (true, i64::try_from(event.seq.unwrap()).unwrap()),
            usize::try_from(event.payload.read::<Value>().unwrap().as_u64().unwrap()).unwrap(),
        )
    });
    let found: BTreeMap<_, _> = log.iter().map(|(at, number)| ((false, *at), *number)).chain(events).collect();
    assert_eq!(applied, found, "what was told and what was applied");
    check_log(&ops, &log, &held);
    // What observers of two primaries see has no order between them.
    storm.bench.forget();
    storm.bench.check_journal().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does_each_write_applies_exactly_once_or_not_at_all(
        ops in prop::collection::vec(op(), 1..16),
        weather in prop::collection::vec(weather(), 0..60),
        patience in prop_oneof![3 => Just(Duration::from_secs(20)), 1 => Just(Duration::from_millis(30))],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(ops, weather, patience));
    }
}
