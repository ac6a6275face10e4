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

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::Instant;

    use super::super::tests::{info, workdir};
    use super::super::{is_held, try_lock};
    use super::*;

    /// Stands for election in a name; a term is its lease.
    fn stand(workdir: &Workdir, id: &str) -> Candidate<Lease> {
        Candidate::wait(workdir.clone(), id, |lease| lease).unwrap()
    }

    async fn leads(mut candidate: Candidate<Lease>) -> Lease {
        candidate.won().await.unwrap();
        candidate.begun().await
    }

    #[tokio::test]
    async fn a_candidate_wins_when_the_holder_goes() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let candidate = stand(&workdir, "inst-B");
        drop(lease);
        assert!(leads(candidate).await.is_current());
    }

    #[tokio::test]
    async fn who_leaves_while_its_term_begins_is_given_the_term_to_end_it() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let (begins, begun) = std::sync::mpsc::channel();
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let begin = move |lease| {
            begins.send(()).unwrap();
            told.recv().unwrap();
            lease
        };
        let candidate = Candidate::wait(workdir.clone(), "inst-B", begin).unwrap();
        drop(lease);
        begun.recv().unwrap();
        let late = candidate.withdraw().await.unwrap().expect("the lock was ours");
        go_on.send(()).unwrap();
        let lease: Lease = late.begun().await;
        assert!(lease.is_current() && is_held(&workdir).unwrap());
    }

    #[tokio::test]
    async fn who_leaves_before_leaves_nothing_with_the_thread() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let owned = Arc::new(());
        for says_so in [true, false] {
            let kept = Arc::clone(&owned);
            let candidate = Candidate::wait(workdir.clone(), "inst-B", move |lease| (lease, kept)).unwrap();
            if says_so {
                assert!(candidate.withdraw().await.unwrap().is_none());
            } else {
                drop(candidate);
            }
            assert_eq!(Arc::strong_count(&owned), 1);
        }
        drop(lease);
        assert!(leads(stand(&workdir, "inst-C")).await.is_current());
    }

    #[tokio::test]
    #[should_panic(expected = "no term")]
    async fn a_beginning_that_panics_is_not_waited_for() {
        let (_dir, workdir) = workdir();
        let mut candidate = Candidate::<Lease>::wait(workdir.clone(), "inst-B", |_| panic!("no term")).unwrap();
        candidate.won().await.unwrap();
        candidate.begun().await;
    }

    /// Waits until the candidate's thread has opened the lock file.
    async fn comes_to_the_lock(candidate: &Candidate<Lease>) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !candidate.is_waiting() {
            assert!(Instant::now() < deadline, "the thread never came to the lock");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_candidate_knows_that_it_waits_for_a_lock_that_is_gone() {
        let (_dir, workdir) = workdir();
        let _lease = try_lock(&workdir).unwrap().unwrap();
        let candidate = stand(&workdir, "inst-B");
        comes_to_the_lock(&candidate).await;
        assert!(candidate.is_current());
        fs::remove_file(workdir.lock_path()).unwrap();
        assert!(!candidate.is_current());
        assert!(leads(stand(&workdir, "inst-B")).await.is_current());
    }

    #[tokio::test]
    async fn a_lock_that_was_replaced_meanwhile_is_not_won() {
        let (_dir, workdir) = workdir();
        let former = try_lock(&workdir).unwrap().unwrap();
        let candidate = stand(&workdir, "inst-B");
        comes_to_the_lock(&candidate).await;
        fs::remove_file(workdir.lock_path()).unwrap();
        let latter = try_lock(&workdir).unwrap().unwrap();
        drop(former);
        assert!(latter.is_current());
        drop(latter);
        assert!(leads(candidate).await.is_current());
    }

    #[tokio::test]
    async fn the_chosen_successor_wins_and_a_dead_one_is_not_waited_for() {
        let (_dir, workdir) = workdir();
        let wait = |id: &str| stand(&workdir, id);
        for _ in 0..5 {
            // The candidates of the round before hold it for an instant when they let go.
            let deadline = Instant::now() + Duration::from_secs(5);
            let lease = loop {
                match try_lock(&workdir).unwrap() {
                    Some(lease) => break lease,
                    None => assert!(Instant::now() < deadline, "somebody keeps the lock"),
                }
                tokio::task::yield_now().await;
            };
            lease.advertise(&info(1)).unwrap();
            let [mut before, mut chosen, mut after] = ["inst-1", "inst-2", "inst-3"].map(wait);
            lease.hand_to("inst-2").unwrap();
            drop(lease);
            tokio::select! {
                won = chosen.won() => won.unwrap(),
                _ = before.won() => panic!("the first in the queue did not stand back"),
                _ = after.won() => panic!("the last in the queue did not stand back"),
            }
            let lease = chosen.begun().await;
            assert!(lease.meant_for_another("inst-2").is_none() && lease.meant_for_another("inst-1").is_some());
            // Who stood back once stands back again when another one is meant.
            lease.advertise(&info(2)).unwrap();
            let mut next = wait("inst-4");
            lease.hand_to("inst-4").unwrap();
            drop(lease);
            tokio::select! {
                won = next.won() => won.unwrap(),
                _ = before.won() => panic!("the first in the queue stood back once only"),
                _ = after.won() => panic!("the last in the queue stood back once only"),
            }
            drop(next.begun().await);
        }
        let lease = leads(stand(&workdir, "inst-5")).await;
        assert!(lease.meant_for_another("inst-5").is_some(), "the successor never came");
    }

    #[tokio::test]
    async fn a_candidate_that_left_lets_go() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        drop(stand(&workdir, "inst-B"));
        drop(lease);
        assert!(leads(stand(&workdir, "inst-B")).await.is_current());
    }
}
