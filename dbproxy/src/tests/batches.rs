//! What is queued together is committed together, and no write takes the others' time more than once.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;

use futures::future::{BoxFuture, FutureExt, join_all};
use pando_ipc::fault::Code;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::*;

/// Sessions of this name keep the writer, once they are committed, until the test opens the gate.
const GATE: &str = "gate";

/// A writer that tells how many sessions each commit made.
struct Gated {
    bench: Bench,
    writer: Writer,
    commits: Arc<Mutex<Vec<usize>>>,
    entered: tokio::sync::mpsc::UnboundedReceiver<()>,
    open: mpsc::Sender<()>,
    /// How often the write `count` was run.
    runs: Arc<AtomicUsize>,
}

type Sent = BoxFuture<'static, Result<Ack, Fault>>;

impl Gated {
    fn new(tuning: Tuning) -> Self {
        let bench = Bench::new();
        let mut options = bench.options();
        let (commits, runs) = (Arc::<Mutex<Vec<usize>>>::default(), Arc::<AtomicUsize>::default());
        let ((enter, entered), (open, opened)) = (tokio::sync::mpsc::unbounded_channel(), mpsc::channel());
        let (seen, opened) = (Arc::clone(&commits), Mutex::new(opened));
        options.on_commit = Box::new(move |events| {
            let made = events.iter().filter(|event| event.topic() == "db.session.created");
            let payloads: Vec<Value> = made.map(|event| event.envelope().payload.read().unwrap()).collect();
            let key = |payload: &Value| payload["payload"]["key"].as_str().unwrap().to_owned();
            let keys: Vec<String> = payloads.iter().map(key).collect();
            seen.lock().unwrap().push(keys.len());
            if keys.iter().any(|key| key.starts_with(GATE)) {
                enter.send(()).unwrap();
                opened.lock().unwrap().recv().unwrap();
            }
        });
        let counted = Arc::clone(&runs);
        let count = move |tx: &crate::Tx<'_>, id: String| {
            counted.fetch_add(1, Relaxed);
            tx.execute("INSERT INTO sessions (id, title) VALUES (?1, '')", [id]).map(drop)
        };
        options.writes.register("count", count).unwrap();
        let writer = Writer::open_with(&bench.path(), options, tuning).unwrap();
        Self { bench, writer, commits, entered, open, runs }
    }

    fn send(&self, request: WriteRequest) -> Sent {
        let writer = self.writer.clone();
        let mut sent = async move { writer.submit(request).await }.boxed();
        assert!((&mut sent).now_or_never().is_none(), "it is queued, not answered");
        sent
    }

    /// Queues writes while the writer is kept, and lets it go. Returns how many sessions each of its commits made.
    async fn commits(&self, works: impl IntoIterator<Item = Work>) -> Vec<usize> {
        self.commits.lock().unwrap().clear();
        let sent: Vec<_> = works.into_iter().map(|work| self.send(request(&fresh_op(), work))).collect();
        self.open.send(()).unwrap();
        join_all(sent).await;
        self.commits.lock().unwrap().clone()
    }

    /// Sends the write that keeps the writer, and waits until it does.
    async fn keep(&mut self) -> Sent {
        let gate = self.send(request(&fresh_op(), session(GATE)));
        self.entered.recv().await.unwrap();
        gate
    }
}

fn sessions(count: usize) -> impl Iterator<Item = Work> {
    (0..count).map(|at| session(&format!("s{at}")))
}

/// Makes a table that refuses what refers to nobody when the transaction is committed.
async fn late_refusals(writer: &Writer) -> Work {
    let child = "CREATE TABLE child (s REFERENCES sessions DEFERRABLE INITIALLY DEFERRED)";
    apply(writer, ddl(&[child])).await;
    exec(&["INSERT INTO child VALUES ('nobody')"])
}

#[tokio::test]
async fn what_is_queued_is_committed_together() {
    let mut gated = Gated::new(Tuning { batch_time: Duration::from_secs(60), ..Tuning::default() });
    let _gate = gated.keep().await;
    assert_eq!(gated.commits(sessions(10)).await, [10]);
}

#[tokio::test]
async fn a_transaction_that_took_its_time_takes_no_more_writes() {
    let mut gated = Gated::new(Tuning { batch_time: Duration::ZERO, ..Tuning::default() });
    let _gate = gated.keep().await;
    assert_eq!(gated.commits(sessions(3)).await, [1, 1, 1]);
}

#[tokio::test]
async fn only_those_beside_a_write_that_commit_refused_are_committed_alone() {
    let mut gated = Gated::new(Tuning { batch_time: Duration::from_secs(60), ..Tuning::default() });
    let refused = late_refusals(&gated.writer).await;
    let _gate = gated.keep().await;
    let mut beside: Vec<_> = sessions(2).map(|work| gated.send(request(&fresh_op(), work))).collect();
    beside.push(gated.send(request(&fresh_op(), refused)));
    beside.push(gated.send(request(&fresh_op(), session("gate-2"))));
    gated.open.send(()).unwrap();
    gated.entered.recv().await.unwrap();
    assert_eq!(gated.commits.lock().unwrap()[1..], [1, 1, 1]);
    let later = (0..5).map(|at| session(&format!("later{at}")));
    assert_eq!(gated.commits(later).await, [5]);
    let refused: Vec<_> = join_all(beside).await.iter().map(Result::is_err).collect();
    assert_eq!(refused, [false, false, true, false]);
}

#[tokio::test]
async fn a_write_that_commit_refused_makes_no_other_run_more_than_twice() {
    let mut gated = Gated::new(Tuning { batch_time: Duration::from_secs(60), ..Tuning::default() });
    let refused = late_refusals(&gated.writer).await;
    let _gate = gated.keep().await;
    let counted = (0..10).map(|at| Work::Named { method: "count".into(), params: json!(format!("c{at}")) });
    gated.commits(counted.chain([refused])).await;
    assert_eq!(gated.runs.load(Relaxed), 20);
    assert_eq!(gated.bench.value("SELECT count(*) FROM sessions").await, 11);
}

#[tokio::test]
async fn a_change_of_the_schema_that_fails_halfway_leaves_nothing() {
    let mut gated = Gated::new(Tuning { batch_time: Duration::from_secs(60), ..Tuning::default() });
    let _gate = gated.keep().await;
    let halfway = ddl(&["CREATE TABLE half (a)", "CREATE TABLE sessions (a)"]);
    assert_eq!(gated.commits([session("a"), halfway, session("b")]).await, [2]);
    assert_eq!(gated.bench.value("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").await, 0);
}

/// Runs in a process of its own, whose files cannot grow.
#[tokio::test]
async fn commits_without_room() {
    if std::env::var_os(WITHOUT_ROOM).is_none() {
        return;
    }
    let mut gated = Gated::new(Tuning::default());
    let before = gated.writer.submit(request("before", session("a"))).await.unwrap();
    let gate = gated.keep().await;
    let sent = [("before", "a"), ("new", "b"), ("new", "b")];
    let sent = sent.map(|(op, id)| gated.send(request(op, session(id))));
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum: None }).unwrap();
    gated.open.send(()).unwrap();
    gate.await.unwrap();
    let [replayed, failed, its_copy] = join_all(sent).await.try_into().unwrap();
    assert_eq!(replayed, Ok(Ack { replayed: true, ..before }), "that was committed earlier");
    for fault in [failed, its_copy].map(Result::unwrap_err) {
        assert!(fault.is(Code::Storage), "certainly not applied: {fault}");
    }
    setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    assert!(!gated.writer.submit(request("new", session("b"))).await.unwrap().replayed);
    assert_eq!(gated.bench.value("SELECT group_concat(id) FROM sessions").await, "a,b,gate");
}

/// Set for the process whose files cannot grow.
const WITHOUT_ROOM: &str = "PANDO_TEST_WITHOUT_ROOM";

#[test]
fn a_failed_commit_fails_what_it_held_and_nothing_that_was_committed_before() {
    let mut command = std::process::Command::new("sh");
    // The system ends a process whose file grows beyond the limit unless it ignores that signal; that is inherited.
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::batches::commits_without_room", "--nocapture"]).env(WITHOUT_ROOM, "1");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
