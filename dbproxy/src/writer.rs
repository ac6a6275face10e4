//! The one writer: a thread that owns the writable connection, and the handle to its queue.

mod apply;
mod batch;
mod dedup;
mod thread;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pando_ipc::methods::Sent;
use pando_ipc::zmtp::MAX_MESSAGE_BYTES;
use pando_ipc::{Fault, Recorded};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::coop::consume_budget;
use uuid::Uuid;

use crate::checkpoint::{Announce, Checkpointer, Pinned};
use crate::meter::WriterMeter;
use crate::named::Writes;
use crate::op::OpId;
use crate::refusal::{died, fenced, not_primary, queue_is_full, too_large, wal_is_full};
use crate::schema::StoreError;
use crate::settings::Settings;
use crate::standby::{self, Standby};
use crate::wire;
use crate::write::{Ack, Durability, Work, WriteRequest};
pub(crate) use batch::CONTROL;
pub use dedup::{KEPT_CLIENTS_FOR, KEPT_OPS, KEPT_OPS_FOR, MAX_OPS};
pub(crate) use dedup::{OPS_RUN, Ops, move_ops, ops_kept_by_events};
pub(crate) use thread::Tuning;
use thread::{Answer, Command, Desk, Job, Place, Signals};

/// Writes that wait for the writer. When it is full, a write is answered `E_BUSY_QUEUE` at once.
pub const QUEUE_WRITES: usize = 1_024;
/// Bytes of the writes that wait. Beyond it a write is answered `E_BUSY_QUEUE` at once.
pub const QUEUE_BYTES: usize = 64 << 20;
/// Bytes of one write, on the primary as over the wire, whose messages have 4 MiB. A larger one is refused with `E_TOO_LARGE`.
pub const MAX_WRITE_BYTES: usize = MAX_MESSAGE_BYTES - (64 << 10);
/// Most bytes that one byte of a text takes as JSON: `\u0001`.
const JSON_GROWTH: usize = 6;
/// What a refused client is told to wait at least.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// Size of the write-ahead log above which writes are answered `E_BUSY_QUEUE` while a reader keeps it from beginning anew, in bytes.
pub const MAX_WAL_BYTES: u64 = 1 << 30;
/// What a client is told to wait at least while the log is full.
const WAL_RETRY_AFTER: Duration = Duration::from_millis(250);
/// How long news of the log may wait in the queue.
const NEWS_TIME: Duration = Duration::from_secs(60);

/// Called with the events of each commit, in order, before the writes are answered. It must not block.
pub type OnCommit = Box<dyn Fn(&[Recorded]) + Send>;

/// How to open a [`Writer`].
pub struct WriterOptions {
    /// The instance that writes.
    pub instance_id: String,
    /// The workdir; change events name it.
    pub workdir: PathBuf,
    /// How sure an acknowledged write is, from now on in this workdir; `None` for what the workdir's settings say.
    pub durability: Option<Durability>,
    /// The named writes it knows.
    pub writes: Writes,
    /// Who is told of each commit.
    pub on_commit: OnCommit,
}

impl WriterOptions {
    /// Returns options with the workdir's durability and nobody told.
    pub fn new(instance_id: impl Into<String>, workdir: impl Into<PathBuf>) -> Self {
        Self {
            instance_id: instance_id.into(),
            workdir: workdir.into(),
            durability: None,
            writes: Writes::default(),
            on_commit: Box::new(|_| {}),
        }
    }
}

impl fmt::Debug for WriterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterOptions")
            .field("instance_id", &self.instance_id)
            .field("workdir", &self.workdir)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

/// Why a writer must not write any more. Its instance steps down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// A newer primary has opened the database.
    #[error("epoch {own} is over: epoch {newer} has begun")]
    NewerEpoch {
        /// This writer's term.
        own: u64,
        /// The term found in the database.
        newer: u64,
    },
    /// The lock is another file than the one that this instance holds.
    #[error("the lock file was removed or replaced")]
    LockLost,
    /// The path leads to another file than the open one.
    #[error("the database file was moved, removed or replaced")]
    Replaced,
    /// The path of the write-ahead log leads to another file than the open one, which nobody else would find again.
    #[error("the write-ahead log was moved, removed or replaced")]
    LogReplaced,
    /// The writer's thread died.
    #[error("the writer thread ended unexpectedly")]
    Died,
}

/// Handle to the one writer. Clones share it; when the last is gone, the thread answers what is queued and ends.
#[derive(Debug, Clone)]
pub struct Writer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Arc<Place>,
    queue: mpsc::Sender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    refusing: AtomicBool,
    leave_log: Arc<AtomicBool>,
    epoch: u64,
    database: Uuid,
    durability: Durability,
    head: Arc<AtomicU64>,
    meter: Arc<WriterMeter>,
    fenced: watch::Sender<Option<Fenced>>,
    ended: watch::Receiver<bool>,
    pinned: watch::Receiver<Option<Pinned>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Writer {
    /// Opens or creates the database, migrates it, begins a new term and starts the writer's thread.
    ///
    /// Blocks while it migrates. When it returns, read-only connections can open the file.
    pub fn open(path: &Path, options: WriterOptions) -> Result<Self, StoreError> {
        Self::open_with(path, options, Tuning::default())
    }

    /// Does the same with what was prepared before the lock was won; where that does not fit any more, it is not used.
    pub fn open_prepared(path: &Path, standby: Option<Standby>, options: WriterOptions) -> Result<Self, StoreError> {
        Self::open_as(path, standby, options, Tuning::default())
    }

    pub(crate) fn open_with(path: &Path, options: WriterOptions, tuning: Tuning) -> Result<Self, StoreError> {
        Self::open_as(path, None, options, tuning)
    }

    fn open_as(
        path: &Path,
        standby: Option<Standby>,
        options: WriterOptions,
        tuning: Tuning,
    ) -> Result<Self, StoreError> {
        let settings = Settings::of(path)?;
        let retention = tuning.retention.unwrap_or(settings.journal);
        let durability = options.durability.unwrap_or(settings.durability);
        let (begun, checkpoints) = standby::open(path, standby, durability)?;
        if durability != settings.durability {
            // A successor keeps the promise.
            Settings { durability, ..settings }.write(path)?;
        }
        let (epoch, database) = (begun.opened.epoch, begun.opened.database);
        let (queue, commands) = mpsc::channel(tuning.queue_writes);
        let (pinning, pinned) = watch::channel(None);
        let announce = announce(queue.downgrade(), options.instance_id.clone());
        let checkpointer =
            Checkpointer::start(&begun.opened.path, checkpoints, begun.calm, &options.instance_id, announce, pinning)?;
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let (signals, watched) = Signals::new();
        let fenced = signals.fenced.clone();
        let thread_error = |source| StoreError::Thread { name: thread::NAME, source };
        let path = begun.opened.path.clone();
        let desk = Desk::new(begun, options, checkpointer, signals, tuning, retention)
            .map_err(|source| StoreError::Sqlite { path, source })?;
        let place = Arc::new(Mutex::new(Some(desk)));
        let (own, bytes) = (Arc::clone(&place), Arc::clone(&queued_bytes));
        let leave_log = Arc::<AtomicBool>::default();
        let leaves = Arc::clone(&leave_log);
        let handle = std::thread::Builder::new()
            .name(thread::NAME.to_owned())
            .spawn(move || thread::run(&own, commands, &bytes, &leaves))
            .map_err(thread_error)?;
        Ok(Self(Arc::new(Inner {
            place,
            queue,
            queued_bytes,
            refusing: AtomicBool::new(false),
            leave_log,
            epoch,
            database,
            durability,
            head: watched.head,
            meter: watched.meter,
            fenced,
            ended: watched.ended,
            pinned,
            thread: Mutex::new(Some(handle)),
        })))
    }

    /// Applies a write and returns once it is committed. Sent again with the same op id, it applies once.
    ///
    /// A fault means that nothing was applied, but for `E_OUTCOME_UNKNOWN`. May be dropped at any time; a write that is
    /// queued is applied nevertheless.
    pub async fn submit(&self, request: WriteRequest) -> Result<Ack, Fault> {
        self.timed(async { self.enqueued(self.admit(request)?).await }).await
    }

    /// Does the same and tells the answer to `tell`: from this thread when the write is refused, and from the writer's when it is done. `tell` must not
    /// block. Who is to be answered need not be woken for that.
    pub fn submit_then(&self, request: WriteRequest, tell: impl FnOnce(Result<Ack, Fault>) -> Sent + Send + 'static) {
        let (began, meter) = (Instant::now(), Arc::clone(&self.0.meter));
        let answer = Answer::new(request.work.label(), move |result| {
            meter.answered(began.elapsed(), result.is_ok());
            tell(result)
        });
        match self.admit(request) {
            Ok(job) => self.enqueue(job, answer),
            Err(fault) => drop(answer.tell(Err(fault))),
        }
    }

    /// Does the same, and commits on the spot when nobody else writes: that saves waking the writer's thread, and takes the caller's.
    ///
    /// For writes of this process. In a runtime of one thread they are queued like all others, because everything else there would wait.
    pub async fn submit_here(&self, request: WriteRequest) -> Result<Ack, Fault> {
        // Who writes on and on gives way now and then, as if each had been waited for.
        consume_budget().await;
        self.timed(async {
            match self.commit_here(self.admit(request)?) {
                Ok(result) => result,
                Err(job) => self.enqueued(job).await,
            }
        })
        .await
    }

    /// Notes how long a write took, and whether it was refused.
    async fn timed(&self, write: impl Future<Output = Result<Ack, Fault>>) -> Result<Ack, Fault> {
        let began = Instant::now();
        let answer = write.await;
        self.0.meter.answered(began.elapsed(), answer.is_ok());
        answer
    }

    /// Commits a write on this thread, or gives it back.
    fn commit_here(&self, job: Box<Job>) -> Result<Result<Ack, Fault>, Box<Job>> {
        let is_idle = self.0.queue.capacity() == self.0.queue.max_capacity();
        if !is_idle || Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread {
            return Err(job);
        }
        match self.0.place.try_lock().as_deref_mut() {
            Ok(Some(desk)) => desk.settle_now(job),
            _ => Err(job),
        }
    }

    /// Checks whether a write may be taken at all.
    fn admit(&self, request: WriteRequest) -> Result<Box<Job>, Fault> {
        let label = request.work.label();
        if self.0.refusing.load(Ordering::Acquire) {
            return Err(self.refusal(label));
        }
        if let Some(pinned) = self.0.pinned.borrow().as_ref().filter(|pinned| pinned.wal_bytes > MAX_WAL_BYTES) {
            return Err(wal_is_full(label, pinned, WAL_RETRY_AFTER));
        }
        let mut weight = request.weight();
        // Nothing grows by more when it is written as JSON: what a secondary could not send is refused here, too.
        if weight > MAX_WRITE_BYTES / JSON_GROWTH {
            weight = weight.max(wire::call(&request, &Writes::default()).1.as_str().len());
        }
        if weight > MAX_WRITE_BYTES {
            return Err(too_large(label, format!("the write has {weight} bytes; the limit is {MAX_WRITE_BYTES}")));
        }
        Ok(Box::new(Job { request, weight, answer: Answer::default() }))
    }

    async fn enqueued(&self, job: Box<Job>) -> Result<Ack, Fault> {
        let label = &*job.request.work.label().to_owned();
        let (answer, answered) = oneshot::channel();
        let tell = |result| {
            // Whoever asked may have left; the answer is kept for a retry.
            drop(answer.send(result));
            Sent::default()
        };
        self.enqueue(job, Answer::new(label, tell));
        answered.await.unwrap_or_else(|_| Err(died(label)))
    }

    fn enqueue(&self, mut job: Box<Job>, answer: Answer) {
        let weight = job.weight;
        if self.0.queued_bytes.fetch_add(weight, Ordering::Relaxed) + weight > QUEUE_BYTES {
            self.0.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
            return drop(answer.tell(Err(queue_is_full(job.request.work.label(), RETRY_AFTER))));
        }
        job.answer = answer;
        let (is_full, command) = match self.0.queue.try_send(Command::Write(job)) {
            Ok(()) => return,
            Err(TrySendError::Full(command)) => (true, command),
            Err(TrySendError::Closed(command)) => (false, command),
        };
        self.0.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
        if let Command::Write(job) = command {
            let Job { request, answer, .. } = *job;
            let label = request.work.label();
            drop(answer.tell(Err(if is_full { queue_is_full(label, RETRY_AFTER) } else { self.refusal(label) })));
        }
    }

    fn refusal(&self, label: &str) -> Fault {
        self.0.fenced.borrow().as_ref().map_or_else(|| not_primary(label), |why| fenced(label, why))
    }

    /// Returns what the writer counted and timed.
    pub fn meter(&self) -> &WriterMeter {
        &self.0.meter
    }

    /// Returns how many writes wait in the queue.
    pub fn waiting(&self) -> usize {
        self.0.queue.max_capacity() - self.0.queue.capacity()
    }

    /// Returns the term that began when this writer was opened.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Returns the database's own id.
    pub fn database(&self) -> Uuid {
        self.0.database
    }

    /// Returns how sure an acknowledged write is.
    pub fn durability(&self) -> Durability {
        self.0.durability
    }

    /// Returns the `seq` of the last committed event.
    pub fn head(&self) -> u64 {
        self.0.head.load(Ordering::Acquire)
    }

    /// Returns who keeps the write-ahead log from beginning anew, while somebody does.
    pub fn pinned(&self) -> Option<Pinned> {
        self.0.pinned.borrow().clone()
    }

    /// Waits until this writer must not write any more, and tells why. Pending for ever while all is well.
    pub async fn fenced(&self) -> Fenced {
        let mut fenced = self.0.fenced.subscribe();
        match fenced.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            // The thread has ended in good order.
            _ => std::future::pending().await,
        }
    }

    /// Answers `E_FENCED` (retryable) to every write that is not committed yet: this instance has lost its place.
    pub fn depose(&self, why: Fenced) {
        fence(&self.0.fenced, why);
        self.refuse_new();
    }

    /// Answers `E_NOT_PRIMARY` (retryable) to every later write; what is queued is still applied.
    pub fn refuse_new(&self) {
        self.0.refusing.store(true, Ordering::Release);
    }

    /// Ends the writer as [`Writer::close`] does, and leaves the WAL to the next one, which everybody waits for.
    pub async fn close_for_successor(self) {
        self.0.leave_log.store(true, Ordering::Release);
        self.close().await;
    }

    /// Ends the writer: refuses new writes, applies and answers what is queued, cuts the WAL, and waits for the threads.
    pub async fn close(self) {
        self.refuse_new();
        // An error means that the thread is ending already.
        drop(self.0.queue.send(Command::Close).await);
        let mut ended = self.0.ended.clone();
        drop(ended.wait_for(|ended| *ended).await);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has said that it ended: joining it only waits for its last instructions.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

/// Returns how the checkpointer journals events: through the queue like everyone, past the limit on the log.
fn announce(queue: mpsc::WeakSender<Command>, source: String) -> Announce {
    Box::new(move |topic, payload| {
        let work =
            Work::Publish { topic, payload: payload.into(), session_id: String::new(), project_id: String::new() };
        let request = WriteRequest::new(OpId::fresh(), source.clone(), Instant::now() + NEWS_TIME, work);
        // News that is refused, or that comes when the writer is gone, will not do better later.
        let (Ok(request), Some(queue)) = (request, queue.upgrade()) else { return true };
        queue.try_send(Command::Write(Box::new(Job { request, weight: 0, answer: Answer::default() }))).is_ok()
    })
}

/// Notes why a writer must not write any more; the first reason stands.
fn fence(fenced: &watch::Sender<Option<Fenced>>, why: Fenced) {
    fenced.send_if_modified(|fenced| {
        let first = fenced.is_none();
        if first {
            tracing::warn!(%why, "writer fenced");
            *fenced = Some(why);
        }
        first
    });
}
