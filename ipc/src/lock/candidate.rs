//! A place in the queue for the lock: a thread that the kernel wakes when the holder goes.

use std::fmt;
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use fs2::FileExt;
use tokio::sync::oneshot;

use super::{FileId, Lease, LockError, lock_with};
use crate::failpoint::{self, Point};
use crate::workdir::Workdir;

/// How long a candidate stands back for the one that the last holder named.
const HOLD_BACK: Duration = Duration::from_millis(250);

/// A thread blocked in flock(2). The kernel wakes it within a millisecond of the holder's death, and then it *is* the next primary.
///
/// It begins the term itself, for it is awake: what is made of the lease is a `T`. While it waits it owns nothing but the open file. When the
/// candidate was dropped meanwhile, the thread lets go at once and ends.
pub struct Candidate<T> {
    won: oneshot::Receiver<Result<(), LockError>>,
    term: oneshot::Receiver<thread::Result<T>>,
    begin: Arc<Begin<T>>,
    path: PathBuf,
    /// The file that the thread waits for, once it is open.
    file: Arc<OnceLock<FileId>>,
}

/// How the term begins. Whoever takes it decides: the thread when it has won, or the candidate when it leaves.
type Begin<T> = Mutex<Option<Box<dyn FnOnce(Lease) -> T + Send>>>;

impl<T> fmt::Debug for Candidate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Candidate<T> {
    /// Starts to wait for the lock in the name of an instance; `begin` is called on the thread that has won it.
    ///
    /// When the last holder has named another one as its successor, the thread lets go once and stands back for 250 ms: long
    /// enough for a successor that lives, and a bounded loss of time where it has died.
    pub fn wait(
        workdir: Workdir,
        instance_id: &str,
        begin: impl FnOnce(Lease) -> T + Send + 'static,
    ) -> Result<Self, LockError> {
        let own_id = instance_id.to_owned();
        let (tell_won, won) = oneshot::channel();
        let (tell_term, term) = oneshot::channel();
        let begin: Arc<Begin<T>> = Arc::new(Mutex::new(Some(Box::new(begin))));
        let place = Arc::clone(&begin);
        let path = workdir.lock_path();
        let file = Arc::new(OnceLock::new());
        let opened = Arc::clone(&file);
        let body = move || {
            failpoint::hit(Point::CandidateWait);
            let outcome = win(&workdir, &own_id, &opened);
            // Nobody waits any more: the lease is dropped here, and with it the lock.
            let Some(begin) = take(&place) else { return };
            // Nobody hears it only where the runtime ends; then the term ends with what is made of it.
            match outcome {
                Ok(lease) => {
                    drop(tell_won.send(Ok(())));
                    drop(tell_term.send(catch_unwind(AssertUnwindSafe(|| begin(lease)))));
                }
                Err(error) => drop(tell_won.send(Err(error))),
            }
        };
        thread::Builder::new()
            .name("pando-candidate".into())
            .spawn(body)
            .map_err(|source| LockError::Io { path: path.clone(), source })?;
        Ok(Self { won, term, begin, path, file })
    }

    /// Waits until the lock is ours: from then on the term begins. Safe to drop and call again; call it no more once it has answered.
    pub async fn won(&mut self) -> Result<(), LockError> {
        match (&mut self.won).await {
            Ok(outcome) => outcome,
            Err(_gone) => pending().await,
        }
    }

    /// Waits until the term has begun; call it when the lock is ours.
    pub async fn begun(mut self) -> T {
        match (&mut self.term).await {
            Ok(Ok(term)) => term,
            Ok(Err(panicked)) => resume_unwind(panicked),
            Err(_gone) => pending().await,
        }
    }

    /// Leaves the queue. Returns itself where the lock is ours already: then the term begins, and somebody has to end it.
    pub async fn withdraw(mut self) -> Result<Option<Self>, LockError> {
        if take(&self.begin).is_some() {
            return Ok(None);
        }
        self.won().await.map(|()| Some(self))
    }

    /// Tells whether the path still leads to the file that we wait for. If not, someone removed `.pando` and its holder may
    /// never let go of the old file: race anew. The old thread ends when that holder does.
    pub fn is_current(&self) -> bool {
        self.file.get().is_none_or(|id| FileId::at(&self.path) == Some(*id))
    }

    /// Tells whether the thread has come to the lock.
    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        self.file.get().is_some()
    }
}

impl<T> Drop for Candidate<T> {
    fn drop(&mut self) {
        drop(take(&self.begin));
    }
}

fn take<T>(begin: &Begin<T>) -> Option<Box<dyn FnOnce(Lease) -> T + Send>> {
    begin.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Waits until the lock is ours, and is not meant for another one; `opened` tells which file is waited for.
fn win(workdir: &Workdir, own_id: &str, opened: &OnceLock<FileId>) -> Result<Lease, LockError> {
    let lock = || {
        lock_with(workdir, |file, id| {
            opened.get_or_init(|| id);
            FileExt::lock_exclusive(file).map(|()| true)
        })
    };
    let mut won = lock();
    let mut heeded = None;
    while let Ok(Some(lease)) = &won
        && let Some(note) = lease.meant_for_another(own_id)
        && heeded.as_ref() != Some(&note)
    {
        heeded = Some(note);
        drop(won);
        // Nobody unparks it; woken for no reason it would stand back for less, which is no harm.
        thread::park_timeout(HOLD_BACK);
        won = lock();
    }
    won?.ok_or_else(|| LockError::Io { path: workdir.lock_path(), source: io::ErrorKind::WouldBlock.into() })
}
