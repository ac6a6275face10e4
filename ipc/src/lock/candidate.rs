//! A place in the queue for the lock: a thread that the kernel wakes when the holder goes.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
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
/// The thread owns nothing but the open file. When the candidate was dropped meanwhile, the thread lets go at once and ends.
#[derive(Debug)]
pub struct Candidate {
    outcome: oneshot::Receiver<Result<Lease, LockError>>,
    path: PathBuf,
    /// The file that the thread waits for, once it is open.
    file: Arc<OnceLock<FileId>>,
}

impl Candidate {
    /// Starts to wait for the lock in the name of an instance.
    ///
    /// When the last holder has named another one as its successor, the thread lets go once and stands back for 250 ms: long
    /// enough for a successor that lives, and a bounded loss of time where it has died.
    pub fn wait(workdir: Workdir, instance_id: &str) -> Result<Self, LockError> {
        let own_id = instance_id.to_owned();
        let (sender, receiver) = oneshot::channel();
        let path = workdir.lock_path();
        let file = Arc::new(OnceLock::new());
        let opened = Arc::clone(&file);
        let body = move || {
            failpoint::hit(Point::CandidateWait);
            let lock = || {
                lock_with(&workdir, |file, id| {
                    opened.get_or_init(|| id);
                    FileExt::lock_exclusive(file).map(|()| true)
                })
            };
            let mut won = lock();
            let mut heeded = None;
            while let Ok(Some(lease)) = &won
                && let Some(note) = lease.meant_for_another(&own_id)
                && heeded.as_ref() != Some(&note)
            {
                heeded = Some(note);
                drop(won);
                // Nobody unparks it; woken for no reason it would stand back for less, which is no harm.
                thread::park_timeout(HOLD_BACK);
                won = lock();
            }
            let outcome = won.and_then(|lease| {
                lease.ok_or_else(|| LockError::Io {
                    path: workdir.lock_path(),
                    source: io::ErrorKind::WouldBlock.into(),
                })
            });
            // Nobody waits any more: the lease is dropped here, and with it the lock.
            drop(sender.send(outcome));
        };
        thread::Builder::new()
            .name("pando-candidate".into())
            .spawn(body)
            .map_err(|source| LockError::Io { path: path.clone(), source })?;
        Ok(Self { outcome: receiver, path, file })
    }

    /// Waits until the lock is ours. Safe to drop and call again; call it no more once it has answered.
    pub async fn won(&mut self) -> Result<Lease, LockError> {
        match (&mut self.outcome).await {
            Ok(outcome) => outcome,
            Err(_gone) => std::future::pending().await,
        }
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
