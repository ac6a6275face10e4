//! The writer's thread: waits for writes, gathers what is queued, commits it, answers.
//!
//! What it works with lies behind a lock that is free while it waits: a write of this very process may then be committed on the spot,
//! without waking the thread.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pando_ipc::failpoint::{self, Point};
use pando_ipc::fault::Code;
use pando_ipc::methods::Sent;
use pando_ipc::rpc::Json;
use pando_ipc::{Fault, Recorded};
use rusqlite::Connection;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::batch::Answered;
use super::dedup::{KEPT_CLIENTS_FOR, KEPT_OPS, KEPT_OPS_FOR, Keep, MAX_OPS, Ops};
use super::{Fenced, OnCommit, QUEUE_WRITES, WriterOptions};
use crate::checkpoint::Checkpointer;
use crate::guard::Guard;
use crate::incarnation::LogFiles;
use crate::journal::{self, Journal, Retention};
use crate::meter::WriterMeter;
use crate::named::Writes;
use crate::refusal::died;
use crate::schema::Opened;
use crate::standby::{Begun, Tracking};
use crate::track::Track;
use crate::write::{Ack, Durability, WriteRequest};

/// The thread's name.
pub(super) const NAME: &str = "pando-writer";
/// Most writes in one transaction.
pub(super) const BATCH_WRITES: usize = 64;
/// Size at which a transaction takes no further write, in bytes.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Time after which a transaction takes no further write.
const BATCH_TIME: Duration = Duration::from_millis(5);
/// How long a transaction waits for another program that writes, before it is answered `E_BUSY` (retryable). A primary that lost its
/// place must be gone within a second, and may have to wait twice: for the write it is in, and for its end.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);
/// Writes after which those are forgotten that their clients have answers to: as many are found, of each primary that was killed.
const PRUNE_OPS_EVERY: u64 = 250;
/// Longest that the statements of one write may run.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(5);
/// Longest that the statements of a write may run on the caller's thread, which other tasks wait for; then the writer's thread begins anew.
const INLINE_TIME: Duration = Duration::from_millis(2);

/// What tests set smaller than it is.
#[derive(Debug, Clone)]
pub(crate) struct Tuning {
    pub(crate) queue_writes: usize,
    /// In place of the workdir's setting.
    pub(crate) retention: Option<Retention>,
    pub(crate) keep_ops: u64,
    pub(crate) keep_ops_for: Duration,
    pub(crate) keep_clients_for: Duration,
    pub(crate) write_time: Duration,
    pub(crate) batch_time: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            queue_writes: QUEUE_WRITES,
            retention: None,
            keep_ops: KEPT_OPS,
            keep_ops_for: KEPT_OPS_FOR,
            keep_clients_for: KEPT_CLIENTS_FOR,
            write_time: WRITE_TIME,
            batch_time: BATCH_TIME,
        }
    }
}

/// A write and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: WriteRequest,
    pub(super) weight: usize,
    pub(super) answer: Answer,
}

/// Where the answer to a write goes. It comes from the writer's thread; should that die, from wherever the write is dropped.
#[derive(Default)]
pub(super) struct Answer {
    /// What the write is called.
    label: String,
    tell: Option<Box<Tell>>,
}

type Tell = dyn FnOnce(Result<Ack, Fault>) -> Sent + Send;

impl Answer {
    pub(super) fn new(label: &str, tell: impl FnOnce(Result<Ack, Fault>) -> Sent + Send + 'static) -> Self {
        Self { label: label.to_owned(), tell: Some(Box::new(tell)) }
    }

    pub(super) fn tell(mut self, result: Result<Ack, Fault>) -> Sent {
        self.tell.take().map(|tell| tell(result)).unwrap_or_default()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            drop(tell(Err(died(&self.label))));
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) enum Command {
    Write(Box<Job>),
    Close,
}

/// What the thread tells its handle.
#[derive(Debug)]
pub(super) struct Signals {
    /// The `seq` of the last committed event.
    pub(super) head: Arc<AtomicU64>,
    pub(super) fenced: watch::Sender<Option<Fenced>>,
    pub(super) meter: Arc<WriterMeter>,
    ended: watch::Sender<bool>,
}

/// What the handle sees of it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) head: Arc<AtomicU64>,
    pub(super) ended: watch::Receiver<bool>,
    pub(super) meter: Arc<WriterMeter>,
}

impl Signals {
    pub(super) fn new() -> (Self, Watched) {
        let head = Arc::<AtomicU64>::default();
        let fenced = watch::Sender::new(None);
        let (ended, see_ended) = watch::channel(false);
        let meter = Arc::<WriterMeter>::default();
        let watched = Watched { head: Arc::clone(&head), ended: see_ended, meter: Arc::clone(&meter) };
        (Self { head, fenced, meter, ended }, watched)
    }
}

/// The place of the writer: whoever has the lock is it. Empty once the writer has ended.
pub(super) type Place = Mutex<Option<Desk>>;

/// All that committing takes.
pub(super) struct Desk {
    pub(super) connection: Connection,
    pub(super) guard: Guard,
    pub(super) track: Track,
    pub(super) journal: Journal,
    pub(super) ops: Ops,
    pub(super) database: Uuid,
    pub(super) epoch: u64,
    pub(super) durability: Durability,
    /// The workdir; change events name it.
    pub(super) path: Json,
    pub(super) writes: Writes,
    pub(super) signals: Signals,
    pub(super) tuning: Tuning,
    /// Names with the reserved prefix; no write may change their number.
    pub(super) reserved: i64,
    /// The data version that the last commit left behind: while it stays, nobody else has written, and the epoch is ours.
    pub(super) unchanged: Option<u32>,
    /// What is committed is in the log, and nowhere else at first.
    pub(super) log_files: LogFiles,
    /// How many of the next writes go in a transaction of their own.
    pub(super) alone: usize,
    on_commit: OnCommit,
    checkpointer: Checkpointer,
    retention: Retention,
    ops_since_pruning: u64,
    /// Nothing is pruned before.
    prune_from: Instant,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(
        begun: Begun,
        options: WriterOptions,
        checkpointer: Checkpointer,
        signals: Signals,
        tuning: Tuning,
        retention: Retention,
    ) -> rusqlite::Result<Self> {
        let Begun { opened, tracking, ops, calm } = begun;
        let Opened { mut connection, guard, path, database, epoch, durability } = opened;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        checkpointer.watch(&mut connection)?;
        let Tracking { track, reserved, .. } = tracking;
        let journal = Journal::load(&connection, epoch)?;
        signals.head.store(journal.head(), Ordering::Release);
        tracing::info!(instance = options.instance_id, %database, epoch, head = journal.head(), "writer opened");
        Ok(Self {
            connection,
            guard,
            track,
            journal,
            ops,
            database,
            epoch,
            durability,
            path: Json::of(&options.workdir.to_string_lossy()),
            writes: options.writes,
            signals,
            tuning,
            reserved,
            unchanged: None,
            log_files: LogFiles::beside(&path),
            alone: 0,
            on_commit: options.on_commit,
            checkpointer,
            retention,
            ops_since_pruning: 0,
            prune_from: Instant::now() + calm,
        })
    }

    /// Commits the first writes of `pending` and tells who observes. Returns the writes with their answers.
    fn commit(&mut self, pending: &mut VecDeque<Job>) -> Answered {
        let began = Instant::now();
        let (answered, events) = self.commit_some(pending);
        self.signals.meter.committed(began.elapsed(), answered.len(), events.len());
        if !events.is_empty() {
            self.signals.head.store(self.journal.head(), Ordering::Release);
            failpoint::hit(Point::PublishBefore);
            self.tell(&events);
            failpoint::hit(Point::PublishAfter);
        }
        self.ops_since_pruning += answered.len() as u64;
        answered
    }

    /// Commits one write on the caller's thread, unless it turns out to take its time: then it comes back.
    pub(super) fn settle_now(&mut self, job: Box<Job>) -> Result<Result<Ack, Fault>, Box<Job>> {
        let deadline = job.request.deadline;
        let usual = std::mem::replace(&mut self.tuning.write_time, INLINE_TIME);
        let label = job.request.work.label().to_owned();
        let answered = catch_unwind(AssertUnwindSafe(|| self.commit(&mut VecDeque::from([*job])).pop()));
        self.tuning.write_time = usual;
        let answered = answered.unwrap_or_else(|_| {
            tracing::error!("the writer panicked; this instance must step down");
            self.fence(Fenced::Died);
            None
        });
        match answered {
            Some((job, Err(fault))) if fault.is(Code::Deadline) && Instant::now() < deadline => Err(Box::new(job)),
            Some((_, result)) => {
                failpoint::hit(Point::ReplyBefore);
                self.keep_house();
                Ok(result)
            }
            None => Ok(Err(died(&label))),
        }
    }

    /// Tells the observer of commits.
    pub(super) fn tell(&self, events: &[Recorded]) {
        if catch_unwind(AssertUnwindSafe(|| (self.on_commit)(events))).is_err() {
            tracing::error!("the observer of commits panicked; its events are in the journal");
        }
    }

    /// Keeps house after the answers: lets the log begin anew, removes a chunk of what is too old, writes down what a successor would have to
    /// read. A failure costs nothing but space.
    fn keep_house(&mut self) {
        if let Err(error) = self.checkpointer.begin_anew(&self.connection, BUSY_TIMEOUT) {
            tracing::warn!(%error, "cannot set how long the writer waits for others");
        }
        self.prune();
    }

    /// Removes and writes down what is due.
    fn prune(&mut self) {
        if Instant::now() < self.prune_from {
            return;
        }
        let ops = self.ops_since_pruning >= PRUNE_OPS_EVERY;
        let events = self.journal.prunable(&self.connection, &self.retention).unwrap_or_else(|why| {
            tracing::warn!(%why, "cannot tell how much the journal holds");
            None
        });
        let is_pruned = ops || events.is_some();
        if !(is_pruned || self.journal.is_savable()) || self.signals.fenced.borrow().is_some() {
            return;
        }
        self.ops_since_pruning = if is_pruned { 0 } else { self.ops_since_pruning };
        let pruned = self.connection.unchecked_transaction().and_then(|transaction| {
            self.journal.save(&transaction)?;
            if is_pruned {
                let Tuning { keep_ops, keep_ops_for, keep_clients_for, .. } = self.tuning;
                let keep =
                    Keep { ops: keep_ops, ops_at_most: MAX_OPS, ops_for: keep_ops_for, clients_for: keep_clients_for };
                self.ops.prune(&transaction, keep, self.journal.head())?;
            }
            if let Some(below) = events {
                // No op is lost with its event: none of these keeps one any more.
                journal::remove_below(&transaction, below)?;
            }
            transaction.commit()
        });
        match pruned {
            Ok(()) => self.journal.is_kept(events),
            Err(why) => {
                self.ops.reload();
                tracing::warn!(%why, "keeping house failed");
            }
        }
    }

    /// Notes why this writer must not write any more.
    pub(super) fn fence(&self, why: Fenced) {
        super::fence(&self.signals.fenced, why);
    }
}

/// Serves the queue until it is closed, then closes the database. Whatever happens, the handle learns that the thread has ended.
/// With `leave_log` the log stays as it is.
pub(super) fn run(
    place: &Place,
    commands: mpsc::Receiver<Command>,
    queued_bytes: &AtomicUsize,
    leave_log: &AtomicBool,
) {
    let served = catch_unwind(AssertUnwindSafe(|| serve(place, commands, queued_bytes)));
    let Some(desk) = lock(place).take() else { return };
    if served.is_err() {
        tracing::error!("the writer thread panicked; this instance must step down");
        desk.fence(Fenced::Died);
    }
    // A database that is not in its place any more takes along what its log holds, which would spoil another one there.
    let is_parted = desk.has_moved() && desk.log_files.has_log() && desk.log_files.has_index();
    let Desk { connection, checkpointer, signals, log_files, .. } = desk;
    // Nobody else can find a log that is not in its place any more: what it holds is moved now. Without the index that could meet a successor's writes.
    let is_lost = matches!(*signals.fenced.borrow(), Some(Fenced::LogReplaced)) && log_files.has_index();
    checkpointer.finish(is_parted || is_lost || !leave_log.load(Ordering::Acquire));
    if is_parted && let Err(error) = log_files.put_aside() {
        tracing::error!(%error, "the log of a database that was moved away stays in its place");
    }
    drop(connection);
    signals.ended.send_replace(true);
}

fn lock(place: &Place) -> MutexGuard<'_, Option<Desk>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(place: &Place, mut commands: mpsc::Receiver<Command>, queued_bytes: &AtomicUsize) {
    let mut pending = VecDeque::new();
    loop {
        if pending.is_empty() {
            match commands.blocking_recv() {
                Some(Command::Write(job)) => pending.push_back(*job),
                Some(Command::Close) => commands.close(),
                None => return,
            }
        }
        let mut place = lock(place);
        let Some(desk) = place.as_mut() else { return };
        // What is queued goes along; nobody is waited for.
        let mut bytes = pending.iter().map(|job: &Job| job.weight).sum::<usize>();
        while pending.len() < BATCH_WRITES && bytes < BATCH_BYTES {
            match commands.try_recv() {
                Ok(Command::Write(job)) => {
                    bytes += job.weight;
                    pending.push_back(*job);
                }
                Ok(Command::Close) => commands.close(),
                Err(_) => break,
            }
        }
        if !pending.is_empty() {
            let answered = desk.commit(&mut pending);
            let mut sent = Vec::with_capacity(answered.len());
            for (job, result) in answered {
                queued_bytes.fetch_sub(job.weight, Ordering::Relaxed);
                failpoint::hit(Point::ReplyBefore);
                sent.push(job.answer.tell(result));
            }
            // The answers to one peer leave together.
            drop(sent);
            failpoint::hit(Point::ReplyAfter);
            desk.keep_house();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_dies_with_its_writer_is_answered_once_and_by_its_name() {
        let (answers, told) = std::sync::mpsc::channel();
        let answer = || {
            let answers = answers.clone();
            Answer::new("CreateSession", move |result| {
                answers.send(result.map_err(|fault| (fault.is(Code::OutcomeUnknown), fault.message))).unwrap();
                Sent::default()
            })
        };
        drop(answer());
        let message =
            "dbproxy: UNREACHABLE (CreateSession): the writer died before it answered; send again with the same op id";
        assert_eq!(told.try_recv().unwrap(), Err((true, message.to_owned())));
        drop(answer().tell(Err(Fault::new(Code::Busy, "later"))));
        assert_eq!(told.try_recv().unwrap(), Err((false, "later".to_owned())));
        assert!(told.try_recv().is_err(), "each is told once");
    }
}
