//! Checkpoints beside the writer: pages move from the WAL to the database outside of every commit.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pando_ipc::failpoint::{self, Point};
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, DEFAULT_NAME};

use crate::schema::{self, StoreError};

const NAME: &str = "pando-checkpoint";
/// Time between two checkpoints.
const EVERY: Duration = Duration::from_millis(20);
/// Size of the WAL above which it is made to begin anew, in bytes.
const RESTART_BYTES: u64 = 32 << 20;
/// How long that waits for readers: the writer waits as long.
const BUSY_TIMEOUT: Duration = Duration::from_millis(20);
/// Pause after a reader kept the WAL from beginning anew: each attempt costs the writer its wait.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// Commits happened since the last checkpoint.
    dirty: bool,
    stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The checkpointing thread. Ended by [`Checkpointer::finish`].
#[derive(Debug)]
pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts the thread with a connection of its own.
    pub(crate) fn start(path: &Path) -> Result<Self, StoreError> {
        let worker = Worker::open(path);
        let mut worker = worker.map_err(|source| StoreError::Sqlite { path: path.to_owned(), source })?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || worker.run(&own))
            .map_err(|source| StoreError::Thread { name: NAME, source })?;
        Ok(Self { shared, thread })
    }

    /// Says that there are new frames.
    pub(crate) fn wake(&self) {
        let mut state = self.shared.lock();
        if !state.dirty {
            state.dirty = true;
            self.shared.changed.notify_one();
        }
    }

    /// Moves what is left, cuts the WAL to nothing, and ends the thread.
    pub(crate) fn finish(self) {
        self.shared.lock().stop = true;
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
}

impl Worker {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = schema::connect(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
        let page_bytes = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        // A connection that has read nothing does not know that there is a WAL, and would do nothing.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(Self { connection, path: path.to_owned(), page_bytes, paused_until: None })
    }

    fn run(&mut self, shared: &Shared) {
        loop {
            let mut state = shared.lock();
            while !state.dirty && !state.stop {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                break;
            }
            state.dirty = false;
            drop(state);
            self.checkpoint();
            let state = shared.lock();
            let paused = shared.changed.wait_timeout_while(state, EVERY, |state| !state.stop);
            drop(paused);
        }
        match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::TRUNCATE) {
            Ok(_) => {}
            // A reader is in the middle of something; the next writer does it.
            Err(error) => tracing::debug!(%error, path = %self.path.display(), "the WAL was left as it is"),
        }
    }

    fn checkpoint(&mut self) {
        failpoint::hit(Point::CheckpointBefore);
        let frames = match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::PASSIVE) {
            Ok((frames, _)) => u64::try_from(frames).unwrap_or(0),
            Err(error) => return tracing::debug!(%error, "passive checkpoint failed"),
        };
        failpoint::hit(Point::CheckpointAfter);
        let now = Instant::now();
        if frames * self.page_bytes <= RESTART_BYTES || self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        self.paused_until = match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::RESTART) {
            Ok(_) => None,
            Err(error) => {
                let megabytes = (frames * self.page_bytes) >> 20;
                tracing::warn!(%error, megabytes, "a long read keeps the WAL from beginning anew");
                Some(now + PAUSE)
            }
        };
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
            self.writer.execute("INSERT INTO blobs VALUES (zeroblob(?1))", [megabytes << 20]).unwrap();
        }

        fn wal_bytes(&self) -> u64 {
            std::fs::metadata(self.path.with_extension("db-wal")).unwrap().len()
        }
    }

    #[test]
    fn frames_move_to_the_database_and_the_wal_is_cut_at_the_end() {
        let loaded = loaded();
        let checkpointer = Checkpointer::start(&loaded.path).unwrap();
        loaded.write(3);
        checkpointer.wake();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&loaded.path).unwrap().len() < 3 << 20 {
            assert!(Instant::now() < deadline, "the pages were never moved");
            std::thread::yield_now();
        }
        assert!(loaded.wal_bytes() > 3 << 20);
        checkpointer.finish();
        assert_eq!(loaded.wal_bytes(), 0);
    }

    #[test]
    fn a_large_wal_begins_anew_unless_a_reader_holds_it() {
        let loaded = loaded();
        let mut worker = Worker::open(&loaded.path).unwrap();
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
