//! SIGKILL at each step of a commit: what was acknowledged is there once, what was not is applied once when it is sent again.
//!
//! The child comes to a step by what the writer offers anyone: the code of a named write runs inside the transaction, the observer of commits between
//! COMMIT and the answers. There it says so and waits to be killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::*;
use crate::Tx;

const DATABASE: &str = "PANDO_TEST_STEP_DATABASE";
const STEP: &str = "PANDO_TEST_STEP";
const ROUNDS: u64 = 50;

/// A step: its name, and which of the ops that the child sends beside its first one are committed there.
struct Step {
    name: &'static str,
    committed: &'static [&'static str],
    lost: &'static [&'static str],
    /// Those that the child told to be acknowledged.
    acked: &'static [&'static str],
}

const BEFORE_BEGIN: Step = Step { name: "before BEGIN", committed: &["a"], lost: &["b"], acked: &[] };
const AFTER_APPLY: Step = Step { name: "after apply", committed: &[], lost: &["fatal"], acked: &[] };
const BEFORE_COMMIT: Step = Step { name: "before COMMIT", committed: &["a"], lost: &["b", "fatal"], acked: &[] };
const BEFORE_REPLY: Step = Step { name: "after COMMIT, before the reply", committed: &["a"], lost: &[], acked: &[] };
const AFTER_REPLY: Step = Step { name: "after the reply", committed: &["a"], lost: &[], acked: &["a"] };

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

fn wait_to_be_killed() -> ! {
    say("here");
    loop {
        std::thread::park();
    }
}

fn insert(tx: &Tx<'_>, id: &str) -> Result<(), Fault> {
    tx.execute("INSERT INTO note (id) VALUES (?1)", [id]).map(drop)
}

/// The named writes of child and parent; `at_the_end` is what the fatal one does when it has inserted its row.
fn writes(at_the_end: impl Fn() + Send + Sync + 'static) -> Writes {
    let writes = Writes::new();
    writes.register("note", |tx: &Tx<'_>, id: String| insert(tx, &id)).unwrap();
    let fatal = move |tx: &Tx<'_>, id: String| {
        insert(tx, &id)?;
        at_the_end();
        Ok(())
    };
    writes.register("fatal", fatal).unwrap();
    writes
}

/// The write of that name in a round. Its op id and its row are the same text.
fn write(epoch: u64, name: &str) -> WriteRequest {
    let id = format!("{epoch}-{name}");
    let method = if name == "fatal" { name } else { "note" };
    request(&id, Work::Named { method: method.to_owned(), params: json!(id) })
}

/// Runs in a process of its own: writes, comes to the step, and waits there to be killed.
#[test]
fn comes_to_a_step_and_waits() {
    let (Ok(path), Ok(step)) = (std::env::var(DATABASE), std::env::var(STEP)) else { return };
    let (armed, (entered, enter), (open, opened)) =
        (Arc::new(AtomicBool::new(false)), mpsc::channel(), mpsc::channel());
    let opened = Mutex::new(opened);
    let arm = Arc::clone(&armed);
    let options = WriterOptions {
        writes: writes(|| wait_to_be_killed()),
        on_commit: Box::new(move |_| {
            if arm.swap(false, Ordering::SeqCst) {
                entered.send(()).unwrap();
                opened.lock().unwrap().recv().unwrap();
            }
        }),
        ..WriterOptions::new("child", "/w")
    };
    // However slow the machine is, what is queued together is one transaction.
    let tuning = Tuning { batch_time: Duration::from_secs(60), ..Tuning::default() };
    let writer = Writer::open_with(std::path::Path::new(&path), options, tuning).unwrap();
    let epoch = writer.epoch();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let acked = async |name: &str| {
            writer.submit(write(epoch, name)).await.unwrap();
            say(&format!("acked {epoch}-{name}"));
        };
        acked("first").await;
        if step == AFTER_REPLY.name {
            acked("a").await;
            wait_to_be_killed();
        }
        if step == AFTER_APPLY.name {
            acked("fatal").await;
        }
        // The writer commits the first, and is held before it answers; what is queued now is the next transaction.
        armed.store(true, Ordering::SeqCst);
        let mut first = Box::pin(writer.submit(write(epoch, "a")));
        assert!(futures::poll!(&mut first).is_pending());
        tokio::task::block_in_place(|| enter.recv()).unwrap();
        if step == BEFORE_REPLY.name {
            wait_to_be_killed();
        }
        let mut second = Box::pin(writer.submit(write(epoch, "b")));
        assert!(futures::poll!(&mut second).is_pending());
        if step == BEFORE_BEGIN.name {
            wait_to_be_killed();
        }
        assert_eq!(step, BEFORE_COMMIT.name);
        let mut fatal = Box::pin(writer.submit(write(epoch, "fatal")));
        assert!(futures::poll!(&mut fatal).is_pending());
        open.send(()).unwrap();
        fatal.await.unwrap();
    });
}

/// Runs a child to the step and kills it there. Returns what it told to be acknowledged.
fn kill_at(step: &Step, bench: &Bench) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::steps::comes_to_a_step_and_waits", "--nocapture", "--test-threads=1"])
        .env(DATABASE, bench.path())
        .env(STEP, step.name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acked = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if line.ends_with("here") {
            child.kill().unwrap();
        } else if let Some((_, id)) = line.split_once("acked ") {
            acked.push(id.to_owned());
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{}: {status}", step.name);
    acked
}

async fn check(step: &Step) {
    let bench = Bench::new();
    let open = || Writer::open(&bench.path(), WriterOptions { writes: writes(|| ()), ..bench.options() }).unwrap();
    let writer = open();
    apply(&writer, ddl(&["CREATE TABLE note (id TEXT)"])).await;
    writer.close().await;
    let mut rows = 0;
    for round in 0..ROUNDS {
        let acked = kill_at(step, &bench);
        let writer = open();
        let epoch = writer.epoch() - 1;
        assert_eq!(epoch, 2 * round + 2);
        let names = ["first"].iter().chain(step.acked);
        assert_eq!(acked, names.map(|name| format!("{epoch}-{name}")).collect::<Vec<_>>());
        // The client sends everything again: it was applied before, or is now.
        let sent = ["first"].iter().chain(step.committed).map(|name| (name, true));
        for (name, committed) in sent.chain(step.lost.iter().map(|name| (name, false))) {
            let ack = writer.submit(write(epoch, name)).await.unwrap();
            assert_eq!(ack.replayed, committed, "{}: {name} of round {round}", step.name);
            rows += 1;
        }
        let count = bench.value("SELECT count(*) || ' of ' || count(DISTINCT id) FROM note").await;
        assert_eq!(count, format!("{rows} of {rows}"), "{}: round {round}", step.name);
        writer.close().await;
        let raw = rusqlite::Connection::open(bench.path()).unwrap();
        let sound: String = raw.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }
    bench.forget();
    assert_eq!(bench.check_journal().await, rows, "one event for each row");
}

#[tokio::test]
async fn killed_before_begin() {
    check(&BEFORE_BEGIN).await;
}

#[tokio::test]
async fn killed_after_a_write_is_applied() {
    check(&AFTER_APPLY).await;
}

#[tokio::test]
async fn killed_before_commit() {
    check(&BEFORE_COMMIT).await;
}

#[tokio::test]
async fn killed_after_commit_before_the_reply() {
    check(&BEFORE_REPLY).await;
}

#[tokio::test]
async fn killed_after_the_reply() {
    check(&AFTER_REPLY).await;
}
