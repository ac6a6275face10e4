//! The load of the demo, both ends of it: what `pando up --demo-load` writes, and what it says of that on stdout.
//!
//! Its stdin steers it: the line `go` begins, `stop` ends the load, and the end of stdin ends the process, so that nothing outlives the
//! demo. An acknowledged write is on stdout as soon as it can be: what the parent has read is what must be found afterwards.

use std::io::{self, BufRead};
use std::time::Duration;

use futures::future::join_all;
use pando::store::{CreateMessage, CreateSession, InsertSkill};
use pando::{Db, Instance, Querier};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// Writes in flight at once in each process.
const WRITERS: usize = 8;
/// Messages in each session.
const MESSAGES: usize = 8;
/// Acknowledged writes that may wait to be printed; when it is full, writers wait.
const UNPRINTED: usize = 256;
/// Pause after a write that failed, so that a broken primary is not hammered.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// One line on stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "load", rename_all = "snake_case")]
pub(crate) enum LoadLine {
    /// The load has begun; this row's counter is incremented by it.
    Started {
        /// Id of the row in `skills`.
        skill: String,
    },
    /// Writes that were acknowledged.
    Acked {
        /// Ids of sessions.
        sessions: Vec<String>,
        /// Ids of messages.
        messages: Vec<String>,
        /// Increments of the skill's counter: not idempotent, so a write that is applied twice shows.
        uses: u64,
        /// When each of these writes was answered: nanoseconds of the host's monotonic clock.
        at_ns: Vec<u64>,
    },
    /// A write that was not acknowledged.
    Failed {
        /// Why.
        error: String,
    },
    /// Every write has ended, one way or the other.
    Done {},
}

/// A write that was answered.
struct Answered {
    at_ns: u64,
    ack: Ack,
}

/// What became of it.
enum Ack {
    Session(String),
    Message(String),
    Use,
    Failed(String),
}

/// Writes as stdin says, until stdin ends.
pub(crate) async fn run(instance: &Instance) -> Result<(), Failure> {
    let mut orders = orders();
    let ended = wait_for(&mut orders, "go").await;
    if ended {
        return Ok(());
    }
    let skill = Uuid::now_v7().to_string();
    let row =
        InsertSkill { id: skill.clone(), title: "demo".into(), task_type: "demo".into(), ..InsertSkill::default() };
    let inserted = instance.db().insert_skill(row).await;
    inserted.map_err(|error| Failure::new(Kind::Failed, format!("the demo's first write failed: {error}")))?;
    output::json(&LoadLine::Started { skill: skill.clone() })?;

    let stop = CancellationToken::new();
    let (acks, unprinted) = mpsc::channel(UNPRINTED);
    let writers = join_all((0..WRITERS).map(|_| write(instance.db(), &skill, acks.clone(), &stop)));
    drop(acks);
    // A task of its own: a primary's writes are committed where they are made, and the others' turn comes before ours.
    let mut printer = JoinSet::new();
    printer.spawn(print(unprinted));
    let steer = async {
        let ended = wait_for(&mut orders, "stop").await;
        stop.cancel();
        ended
    };
    let (_, printed, ended) = tokio::join!(writers, printer.join_all(), steer);
    printed.into_iter().collect::<Result<(), _>>()?;
    output::json(&LoadLine::Done {})?;
    if !ended {
        while orders.recv().await.is_some() {}
    }
    Ok(())
}

/// Writes sessions with messages, and counts them, until `stop`.
async fn write(db: &Db, skill: &str, acks: mpsc::Sender<Answered>, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let session = Uuid::now_v7().to_string();
        let row = CreateSession { id: session.clone(), title: "demo".into(), ..CreateSession::default() };
        let created = db.create_session(row).await.map(|_| Ack::Session(session.clone()));
        let is_there = created.is_ok();
        tell(&acks, created).await;
        if !is_there {
            continue;
        }
        for _ in 0..MESSAGES {
            if stop.is_cancelled() {
                return;
            }
            let id = Uuid::now_v7().to_string();
            let row = CreateMessage {
                id: id.clone(),
                session_id: session.clone(),
                role: "user".into(),
                parts: r#"[{"type":"text","text":"written while the primary dies"}]"#.into(),
                ..CreateMessage::default()
            };
            tell(&acks, db.create_message(row).await.map(|_| Ack::Message(id))).await;
        }
        tell(&acks, db.increment_skill_usage(skill).await.map(|()| Ack::Use)).await;
    }
}

async fn tell<E: std::fmt::Display>(acks: &mpsc::Sender<Answered>, outcome: Result<Ack, E>) {
    let (at_ns, failed) = (monotonic_ns(), outcome.is_err());
    let ack = outcome.unwrap_or_else(|error| Ack::Failed(error.to_string()));
    // The printer is gone only when the whole load is.
    drop(acks.send(Answered { at_ns, ack }).await);
    if failed {
        tokio::time::sleep(AFTER_FAILURE).await;
    }
}

/// Returns the time of the clock that all processes of a host share.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Prints what was acknowledged: all that has come meanwhile in one line, never waiting for more.
async fn print(mut acks: mpsc::Receiver<Answered>) -> Result<(), Failure> {
    let mut batch = Vec::with_capacity(UNPRINTED);
    while acks.recv_many(&mut batch, UNPRINTED).await > 0 {
        let (mut sessions, mut messages, mut uses, mut times) = (vec![], vec![], 0, vec![]);
        for Answered { at_ns, ack } in batch.drain(..) {
            match ack {
                Ack::Session(id) => sessions.push(id),
                Ack::Message(id) => messages.push(id),
                Ack::Use => uses += 1,
                Ack::Failed(error) => {
                    output::json(&LoadLine::Failed { error })?;
                    continue;
                }
            }
            times.push(at_ns);
        }
        output::json(&LoadLine::Acked { sessions, messages, uses, at_ns: times })?;
    }
    Ok(())
}

/// Returns the lines of stdin. The thread that reads them ends with stdin, or with the process.
fn orders() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits for an order; tells whether stdin ended instead.
async fn wait_for(orders: &mut mpsc::Receiver<String>, order: &str) -> bool {
    while let Some(line) = orders.recv().await {
        if line.trim() == order {
            return false;
        }
    }
    true
}
