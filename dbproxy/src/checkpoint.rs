//! Checkpoints beside the writer: pages move from the WAL to the database outside of every commit.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
        let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
        let connection = schema::connect(path).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(())).map_err(failed)?;
        let page_bytes = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let mut worker = Worker { connection, path: path.to_owned(), page_bytes, paused_until: None };
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
        let frames = match self.connection.wal_checkpoint_v2(DEFAULT_NAME, CheckpointMode::PASSIVE) {
            Ok((frames, _)) => u64::try_from(frames).unwrap_or(0),
            Err(error) => return tracing::debug!(%error, "passive checkpoint failed"),
        };
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
