//! Checkpoints beside the writer: pages move from the WAL to the database outside of every commit.
//!
//! A log that is written over costs an fsync a fraction of what one costs that grows, so it is to begin anew often. That needs a moment without a
//! write, which a busy writer leaves to nobody: the thread here moves the pages, and the writer begins the log anew between two commits.

mod pins;

use std::collections::VecDeque;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pando_ipc::Topic;
use pando_ipc::failpoint::{self, Point};
use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, DEFAULT_NAME};
use serde_json::Value;
use tokio::sync::watch;

use crate::schema::{self, StoreError};
use pins::{Incident, News};
pub use pins::{PINNED_BYTES, Pinned, ReaderProcess, log_readers};

/// Journals an event. Returns whether there was room for it; if not, it is tried again later.
pub(crate) type Announce = Box<dyn Fn(Topic, Value) -> bool + Send>;

const NAME: &str = "pando-checkpoint";
/// Frames that are worth a checkpoint; SQLite's own choice (`SQLITE_DEFAULT_WAL_AUTOCHECKPOINT`). Pages that are written again and again move once.
const FRAMES: u32 = 1_000;
/// How long fewer frames than that wait for a checkpoint.
const AT_LATEST: Duration = Duration::from_millis(500);
/// How long the writer waits for readers between two commits, before it leaves the log as it is.
const ANEW_TIMEOUT: Duration = Duration::from_millis(2);
/// Size of the WAL above which it is made to begin anew here, in bytes: a reader kept the writer from it.
const RESTART_BYTES: u64 = 32 << 20;
/// How long that waits for readers: the writer waits as long.
const BUSY_TIMEOUT: Duration = Duration::from_millis(20);
/// Pause after a reader kept the WAL from beginning anew: each attempt costs the writer its wait.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// Frames in the log after the last commit.
    frames: u32,
    /// How many there were before the last checkpoint.
    seen: u32,
    stop: bool,
    /// At the end the WAL is cut to nothing.
    cut: bool,
}

impl State {
    /// Returns how many frames came since then.
    fn fresh(&self) -> u32 {
        self.frames.saturating_sub(self.seen)
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// The log is worth to begin anew, and all but its last frames are moved.
    may_begin_anew: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a commit has left so many frames in the log.
    fn committed(&self, frames: u32) {
        let mut state = self.lock();
        let before = state.fresh();
        // A commit adds frames: a log that is no longer than before has begun anew.
        if frames <= state.frames {
            state.seen = 0;
        }
        state.frames = frames;
        let now = state.fresh();
        if before == 0 || (before < FRAMES && now >= FRAMES) {
            self.changed.notify_one();
        }
    }
}

/// The checkpointing thread. Ended by [`Checkpointer::finish`].
#[derive(Debug)]
pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts the thread with a connection of its own, from [`connect`]; its first checkpoint comes after `calm`. `instance` is who writes;
    /// `pinned` tells while a reader keeps the log large.
    ///
    /// A log that is large already is moved here, before anything is added to it: terms that end within their calm move nothing, and however
    /// many of them follow each other, the log stays bounded.
    pub(crate) fn start(
        path: &Path,
        connection: Connection,
        calm: Duration,
        instance: &str,
        announce: Announce,
        pinned: watch::Sender<Option<Pinned>>,
    ) -> Result<Self, StoreError> {
        let worker = Worker::new(path, connection, instance, announce, pinned);
        let mut worker = worker.map_err(|source| StoreError::Sqlite { path: path.to_owned(), source })?;
        let shared = Arc::new(Shared::default());
        if std::fs::metadata(schema::beside(path, "-wal")).is_ok_and(|wal| wal.len() > RESTART_BYTES) {
            worker.round(&shared);
        }
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || worker.run(&own, calm))
            .map_err(|source| StoreError::Thread { name: NAME, source })?;
        Ok(Self { shared, thread })
    }

    /// Lets the writer's connection tell how long the log is after each commit.
    pub(crate) fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let shared = Arc::clone(&self.shared);
        connection.wal_hook(Some(move |_: &mut Wal, frames: c_int| {
            shared.committed(u32::try_from(frames).unwrap_or(0));
            Ok(())
        }))
    }

    /// Begins the log anew when it is time, on the writer's connection and between two commits. A read that takes its time puts it off.
    pub(crate) fn begin_anew(&self, connection: &Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
        if !self.shared.may_begin_anew.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        connection.busy_timeout(ANEW_TIMEOUT)?;
        if let Err(error) = connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::RESTART) {
            tracing::debug!(%error, "the log does not begin anew yet");
        }
        connection.busy_timeout(busy_timeout)
    }

    /// Ends the thread. With `cut` it moves what is left and cuts the WAL to nothing first.
    pub(crate) fn finish(self, cut: bool) {
        {
            let mut state = self.shared.lock();
            (state.stop, state.cut) = (true, cut);
        }
        self.shared.changed.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the checkpoint thread panicked; the next writer moves what is left");
        }
    }
}

struct Worker {
    connection: Connection,
    path: PathBuf,
    page_bytes: u64,
    paused_until: Option<Instant>,
    instance: String,
    incident: Option<Incident>,
    /// What could not be told yet.
    untold: VecDeque<News>,
    announce: Announce,
    pinned: watch::Sender<Option<Pinned>>,
}

/// Opens the connection that a checkpointer works with.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = schema::connect(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    // It moves pages when it is told to, and writes none.
    connection.execute_batch("PRAGMA query_only = ON")?;
    // A connection that has read nothing does not know that there is a WAL, and would do nothing.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

impl Worker {
    fn new(
        path: &Path,
        connection: Connection,
        instance: &str,
        announce: Announce,
        pinned: watch::Sender<Option<Pinned>>,
    ) -> rusqlite::Result<Self> {
        let page_bytes = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            page_bytes,
            paused_until: None,
            instance: instance.to_owned(),
            incident: None,
            untold: VecDeque::new(),
            announce,
            pinned,
        })
    }

    fn run(&mut self, shared: &Shared, calm: Duration) {
        drop(shared.changed.wait_timeout_while(shared.lock(), calm, |state| !state.stop));
        while self.wait(shared) {
            self.round(shared);
        }
        if !shared.lock().cut {
            return;
        }
        match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::TRUNCATE) {
            Ok(_) => {}
            // A reader is in the middle of something; the next writer does it.
            Err(error) => tracing::debug!(%error, path = %self.path.display(), "the WAL was left as it is"),
        }
    }

    /// Waits until there is something to do. `false` when it is to end.
    fn wait(&self, shared: &Shared) -> bool {
        let mut state = shared.lock();
        // The end of an incident is noticed without a write, too.
        while !state.stop && state.fresh() == 0 && self.incident.is_none() && self.untold.is_empty() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let patience = if state.fresh() == 0 { PAUSE } else { AT_LATEST };
        let waits = |state: &mut State| !state.stop && state.fresh() < FRAMES;
        let waited = shared.changed.wait_timeout_while(state, patience, waits).unwrap_or_else(PoisonError::into_inner);
        !waited.0.stop
    }

    /// Moves what can be moved, and tells the writer when the log is worth to begin anew.
    fn round(&mut self, shared: &Shared) {
        {
            let mut state = shared.lock();
            state.seen = state.frames;
        }
        let moved = self.checkpoint();
        shared.may_begin_anew.store(moved >= FRAMES, Ordering::Relaxed);
    }

    /// Moves what can be moved. Returns how many frames of the log are in the database then.
    fn checkpoint(&mut self) -> u32 {
        failpoint::hit(Point::CheckpointBefore);
        let (frames, moved) = match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::PASSIVE) {
            Ok(counts) => counts,
            Err(error) => {
                tracing::debug!(%error, "passive checkpoint failed");
                return 0;
            }
        };
        failpoint::hit(Point::CheckpointAfter);
        let now = Instant::now();
        let wal_bytes = u64::try_from(frames).unwrap_or(0) * self.page_bytes;
        if wal_bytes <= RESTART_BYTES {
            self.end_incident();
        } else if self.paused_until.is_none_or(|until| now >= until) {
            match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::RESTART) {
                Ok(_) => self.end_incident(),
                Err(error) => {
                    tracing::debug!(%error, wal_bytes, "a read keeps the WAL from beginning anew");
                    self.paused_until = Some(now + PAUSE);
                    self.look_at_readers(wal_bytes);
                }
            }
        }
        while let Some(news) = self.untold.front()
            && (self.announce)(news.topic(), news.payload())
        {
            self.untold.pop_front();
        }
        u32::try_from(moved).unwrap_or(0)
    }

    fn look_at_readers(&mut self, wal_bytes: u64) {
        let incident = self.incident.get_or_insert_with(Incident::new);
        if let Some(alarm) = incident.look(log_readers(&self.path), &self.instance, wal_bytes) {
            tracing::warn!(?alarm, "a long read keeps the WAL from beginning anew");
            self.untold.push_back(alarm);
        }
        self.pinned.send_replace(Some(incident.pinned(&self.instance)));
    }

    fn end_incident(&mut self) {
        self.paused_until = None;
        if let Some(incident) = self.incident.take() {
            self.pinned.send_replace(None);
            self.untold.extend(incident.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Durability;

    struct Loaded {
        _dir: tempfile::TempDir,
        path: PathBuf,
        writer: Connection,
    }

    fn loaded() -> Loaded {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pando.db");
        let writer = schema::open(&path, Durability::Os).unwrap().connection;
        writer.execute_batch("CREATE TABLE blobs (b)").unwrap();
        Loaded { _dir: dir, path, writer }
    }

    impl Loaded {
        fn write(&self, megabytes: u32) {
            let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO blobs SELECT zeroblob(1 << 20) FROM n";
            self.writer.execute(sql, [megabytes]).unwrap();
        }

        fn wal_bytes(&self) -> u64 {
            std::fs::metadata(self.path.with_extension("db-wal")).unwrap().len()
        }
    }

    #[test]
    fn frames_of_a_log_that_began_anew_wait_for_a_checkpoint_however_many_they_are() {
        let shared = Shared::default();
        shared.committed(6);
        shared.lock().seen = 6;
        for (frames, fresh) in [(6, 6), (12, 12), (3, 3), (4, 4)] {
            shared.committed(frames);
            assert_eq!(shared.lock().fresh(), fresh, "{frames} frames");
        }
    }

    #[test]
    fn frames_move_to_the_database_and_the_wal_is_cut_at_the_end() {
        let mut loaded = loaded();
        let checkpointer = Checkpointer::start(
            &loaded.path,
            connect(&loaded.path).unwrap(),
            Duration::ZERO,
            "inst-A",
            Box::new(|_, _| true),
            watch::Sender::default(),
        )
        .unwrap();
        checkpointer.watch(&mut loaded.writer).unwrap();
        loaded.write(3);
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&loaded.path).unwrap().len() < 3 << 20 {
            assert!(Instant::now() < deadline, "the pages were never moved");
            std::thread::yield_now();
        }
        assert!(loaded.wal_bytes() > 3 << 20);
        checkpointer.finish(true);
        assert_eq!(loaded.wal_bytes(), 0);
    }

    #[test]
    fn the_writer_begins_the_log_anew_between_two_commits() {
        let mut loaded = loaded();
        let (connection, none) = (connect(&loaded.path).unwrap(), Box::new(|_, _| true));
        let checkpointer =
            Checkpointer::start(&loaded.path, connection, Duration::ZERO, "inst-A", none, watch::Sender::default())
                .unwrap();
        checkpointer.watch(&mut loaded.writer).unwrap();
        let frames = || checkpointer.shared.lock().frames;
        checkpointer.begin_anew(&loaded.writer, Duration::ZERO).unwrap();
        loaded.write(5);
        assert!(frames() > FRAMES, "there was nothing to begin anew for");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !checkpointer.shared.may_begin_anew.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "the pages were never moved");
            std::thread::yield_now();
        }
        checkpointer.begin_anew(&loaded.writer, Duration::ZERO).unwrap();
        loaded.write(1);
        assert!(frames() < FRAMES, "the log has {} frames", frames());
        checkpointer.finish(false);
    }

    #[test]
    fn what_short_terms_left_in_the_log_is_moved_before_a_calm_begins() {
        let mut loaded = loaded();
        loaded.writer.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(())).unwrap();
        loaded.write(33);
        let (connection, calm, none) =
            (connect(&loaded.path).unwrap(), Duration::from_secs(3600), Box::new(|_, _| true));
        let checkpointer =
            Checkpointer::start(&loaded.path, connection, calm, "inst-A", none, watch::Sender::default()).unwrap();
        checkpointer.watch(&mut loaded.writer).unwrap();
        loaded.write(1);
        let frames = checkpointer.shared.lock().frames;
        assert!(frames < FRAMES, "the log has {frames} frames");
        checkpointer.finish(false);
    }

    type Told = Arc<Mutex<Vec<(Topic, Value)>>>;

    /// A worker, and what it announced; with `room` unset there is no room for news.
    fn worker(loaded: &Loaded) -> (Worker, Told, Arc<AtomicBool>) {
        let (told, room) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
        let (own_told, own_room) = (Arc::clone(&told), Arc::clone(&room));
        let announce: Announce = Box::new(move |topic, payload| {
            let room = own_room.load(Ordering::Relaxed);
            if room {
                own_told.lock().unwrap().push((topic, payload));
            }
            room
        });
        let connection = connect(&loaded.path).unwrap();
        (Worker::new(&loaded.path, connection, "inst-A", announce, watch::Sender::default()).unwrap(), told, room)
    }

    #[test]
    fn a_reader_that_pins_a_large_wal_is_one_incident_and_is_named() {
        let loaded = loaded();
        let (mut worker, told, room) = worker(&loaded);
        let reader = schema::connect(&loaded.path).unwrap();
        let held = reader.unchecked_transaction().unwrap();
        held.query_row("SELECT count(*) FROM blobs", [], |_| Ok(())).unwrap();
        let checkpoint = |worker: &mut Worker| {
            worker.paused_until = None;
            worker.checkpoint();
        };
        loaded.write(40);
        checkpoint(&mut worker);
        assert_eq!(told.lock().unwrap().len(), 0, "it is not that large yet");
        assert!(worker.pinned.borrow().is_some());
        loaded.write(40);
        room.store(false, Ordering::Relaxed);
        checkpoint(&mut worker);
        assert_eq!(told.lock().unwrap().len(), 0);
        room.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            checkpoint(&mut worker);
        }
        let (topic, payload) = told.lock().unwrap().pop().unwrap();
        assert!(told.lock().unwrap().is_empty(), "once for each incident");
        assert_eq!(topic.as_str(), "db.wal.pinned");
        assert_eq!(payload["readers"][0]["pid"], std::process::id());
        assert_eq!(payload["readers"][0]["instance_id"], "inst-A");
        assert!(payload["wal_bytes"].as_u64().unwrap() > PINNED_BYTES);
        drop(held);
        checkpoint(&mut worker);
        let (topic, payload) = told.lock().unwrap().pop().unwrap();
        assert_eq!(topic.as_str(), "db.wal.released");
        assert!(payload["wal_bytes"].as_u64().unwrap() > PINNED_BYTES);
        assert!(worker.incident.is_none() && worker.pinned.borrow().is_none());
    }

    #[test]
    fn a_large_wal_begins_anew_unless_a_reader_holds_it() {
        let loaded = loaded();
        let (mut worker, ..) = worker(&loaded);
        let reader = schema::connect(&loaded.path).unwrap();
        let held = reader.unchecked_transaction().unwrap();
        held.query_row("SELECT count(*) FROM blobs", [], |_| Ok(())).unwrap();
        loaded.write(40);
        worker.checkpoint();
        assert!(worker.paused_until.is_some(), "the reader was in the way");
        drop(held);
        worker.checkpoint();
        assert!(worker.paused_until.is_some(), "the pause is kept");
        worker.paused_until = None;
        worker.checkpoint();
        assert!(worker.paused_until.is_none());
        loaded.write(1);
        assert!(loaded.wal_bytes() <= RESTART_BYTES, "the WAL has {} bytes", loaded.wal_bytes());
    }
}
