//! The election: one flock, and the note that its holder leaves in the file.

mod candidate;
mod holder;
mod info;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::time::Instant;

use crate::failpoint::{self, Flaw, Point};
use crate::parting::{Place, moved};
use crate::workdir::{Workdir, WorkdirError};

pub use candidate::Candidate;
pub use holder::{EvictError, Holder};
pub use info::{Endpoints, InfoError, LockInfo, read_lock_for_path};

/// Pause between two reads of a lock file that its holder has not written yet.
const REREAD_PAUSE: Duration = Duration::from_millis(5);
/// How often a lock that was won on a removed file is tried again on the new one.
const MAX_REOPENS: usize = 100;

/// Why the lock could be neither won nor lost. An error never makes a primary.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The workdir cannot be used.
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else stands where the lock belongs.
    #[error("{path} is not a regular file; move it away, Pando makes its own")]
    Foreign {
        /// What stands there.
        path: PathBuf,
    },
    /// The lock file keeps being removed and made anew.
    #[error("{path} keeps changing under us; is something removing .pando?")]
    Unstable {
        /// The lock file.
        path: PathBuf,
    },
    /// Someone holds the lock but has not said who before the deadline.
    #[error("{path} is held, but its holder has not advertised itself: {source}")]
    Silent {
        /// The lock file.
        path: PathBuf,
        /// What the file held at the end.
        source: InfoError,
    },
}

/// The outcome of a race for the lock.
#[derive(Debug)]
pub enum Claim {
    /// We hold the lock, until the lease is dropped or this process ends.
    Won(Lease),
    /// Someone else holds it; this is what the holder says of itself. Believe it after hello only.
    Lost(LockInfo),
}

/// The held lock. Dropping it releases the lock; the file stays, for it is never unlinked.
#[derive(Debug)]
pub struct Lease {
    file: File,
    id: FileId,
    path: PathBuf,
}

impl Lease {
    /// Tells whether the path still leads to the file that we hold. If not, someone removed `.pando`: step down.
    pub fn is_current(&self) -> bool {
        FileId::at(&self.path) == Some(self.id)
    }

    /// Returns what the last holder wrote when it handed its role to another instance than `own_id`: let that one go first.
    ///
    /// It need not live any more, so nobody may wait for it longer than a moment; see [`Candidate`].
    pub fn meant_for_another(&self, own_id: &str) -> Option<LockInfo> {
        let info = info::read_from(&self.file, &self.path).ok()?;
        info.successor.as_ref().is_some_and(|successor| successor != own_id).then_some(info)
    }

    /// Writes whom the role is handed to. Let go right after.
    pub fn hand_to(&self, successor: &str) -> Result<(), LockError> {
        match info::read_from(&self.file, &self.path) {
            Ok(info) => self.advertise(&LockInfo { successor: Some(successor.to_owned()), ..info }),
            Err(source) => Err(LockError::Silent { path: self.path.clone(), source }),
        }
    }

    /// Writes who we are into the lock file: one write, then cut to length, so that a reader meets at worst a torn text.
    pub fn advertise(&self, info: &LockInfo) -> Result<(), LockError> {
        let text = info.to_text();
        failpoint::hit(Point::AdvertiseWrite);
        self.file
            .write_all_at(text.as_bytes(), 0)
            .inspect(|()| failpoint::hit(Point::AdvertiseCut))
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(|source| LockError::Io { path: self.path.clone(), source })?;
        failpoint::hit(Point::AdvertiseDone);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        failpoint::hit(Point::LockRelease);
        if failpoint::has(Flaw::UnlinkedLock) {
            drop(fs2::FileExt::unlock(&self.file));
            failpoint::hit(Point::LockUnlink);
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Races once for the lock, without waiting; `None` when someone else holds it.
pub fn try_lock(workdir: &Workdir) -> Result<Option<Lease>, LockError> {
    lock_with(workdir, |file, _id| is_got(fs2::FileExt::try_lock_exclusive(file)))
}

/// Races once for the lock; when it is lost, reads who holds it.
///
/// A holder writes its [`LockInfo`] some milliseconds after it won, so an empty or torn file is read again until
/// `patience` is over ([`LockError::Silent`]). A holder that dies meanwhile is raced for again.
pub async fn acquire_lock(workdir: &Workdir, patience: Duration) -> Result<Claim, LockError> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(lease) = try_lock(workdir)? {
            return Ok(Claim::Won(lease));
        }
        match read_lock_for_path(workdir) {
            // Whoever asks whether the lock is held holds it for an instant: that is nobody to lose to.
            Ok(info) if is_held(workdir)? => return Ok(Claim::Lost(info)),
            Ok(_) => {}
            Err(source) if Instant::now() >= deadline => {
                return Err(LockError::Silent { path: workdir.lock_path(), source });
            }
            Err(_) => tokio::time::sleep(REREAD_PAUSE).await,
        }
    }
}

/// Tells whether someone holds the lock now. Takes a shared lock for an instant and never makes the file.
pub fn is_held(workdir: &Workdir) -> Result<bool, LockError> {
    let path = workdir.lock_path();
    let file = match open_options().read(true).open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(source) => return Err(LockError::Io { path, source }),
    };
    let got = is_got(fs2::FileExt::try_lock_shared(&file)).map_err(|source| LockError::Io { path, source })?;
    Ok(!got)
}

/// Tells whether a lock was got; what else went wrong than that somebody has it stays an error.
fn is_got(locked: io::Result<()>) -> io::Result<bool> {
    match locked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == fs2::lock_contended_error().kind() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the lock file and locks it by `lock`, again while the path leads to another file than the one locked.
fn lock_with(workdir: &Workdir, lock: impl Fn(&File, FileId) -> io::Result<bool>) -> Result<Option<Lease>, LockError> {
    let path = workdir.lock_path();
    for _ in 0..MAX_REOPENS {
        workdir.prepare()?;
        failpoint::hit(Point::LockOpen);
        let file = match open_options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Ok(file) => File::from(moved(file.into(), Place::Lock)),
            // Somebody removed the directory that we have just made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let foreign = fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file());
                return Err(if foreign { LockError::Foreign { path } } else { LockError::Io { path, source: error } });
            }
        };
        let id = match file.metadata() {
            Ok(meta) if meta.is_file() => FileId::of(&meta),
            _ => return Err(LockError::Foreign { path }),
        };
        let locked = lock(&file, id);
        if matches!(locked, Ok(true)) {
            failpoint::hit(Point::LockWon);
        }
        match locked {
            Ok(true) if FileId::at(&path) == Some(id) => return Ok(Some(Lease { file, id, path })),
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(source) => return Err(LockError::Io { path, source }),
        }
    }
    Err(LockError::Unstable { path })
}

/// Options that follow no symlink, never block on a FIFO and close on exec, so that no child keeps the lock.
fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    #[expect(clippy::cast_possible_wrap, reason = "flag bits are passed through as they are")]
    options.custom_flags(flags.bits() as i32);
    options
}

/// Names one file of this host, whatever paths lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(meta: &fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }

    /// Returns the file at `path` itself, no symlink followed.
    fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|meta| Self::of(&meta))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::envelope::Timestamp;

    pub(super) fn workdir() -> (tempfile::TempDir, Workdir) {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(dir.path()).unwrap();
        (dir, workdir)
    }

    #[test]
    fn the_lock_lies_above_what_is_opened_later() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let later = File::open(workdir.lock_path()).unwrap();
        assert!(lease.file.as_raw_fd() > later.as_raw_fd(), "{lease:?} {later:?}");
    }

    pub(super) fn info(epoch: u64) -> LockInfo {
        LockInfo {
            instance_id: "inst-A".into(),
            pid: 24145,
            pub_port: 58825,
            rpc_port: 58826,
            started_at: serde_json::from_str::<Timestamp>("\"2026-11-21T02:52:48.134097579Z\"").unwrap(),
            epoch: Some(epoch),
            workdir: Some("/w".into()),
            protocol: Some(1),
            version: Some("0.1.0".into()),
            endpoints: Some(Endpoints { publish: vec!["ipc:///w/.pando/run/1.pub".into()], rpc: vec![] }),
            process: None,
            successor: None,
        }
    }

    #[tokio::test]
    async fn one_wins_and_the_loser_reads_who() {
        let (_dir, workdir) = workdir();
        let Claim::Won(lease) = acquire_lock(&workdir, Duration::ZERO).await.unwrap() else { panic!("lost") };
        assert!(is_held(&workdir).unwrap());
        let silent = acquire_lock(&workdir, Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(LockError::Silent { source: InfoError::Empty { .. }, .. })), "{silent:?}");
        lease.advertise(&info(1)).unwrap();
        let Claim::Lost(seen) = acquire_lock(&workdir, Duration::ZERO).await.unwrap() else { panic!("won twice") };
        assert_eq!(seen, info(1));
        drop(lease);
        assert!(!is_held(&workdir).unwrap());
        assert!(workdir.lock_path().exists(), "the lock is never unlinked");
        assert!(matches!(acquire_lock(&workdir, Duration::ZERO).await.unwrap(), Claim::Won(_)));
    }

    #[tokio::test]
    async fn a_holder_is_given_time_to_say_who_it_is() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let lost = acquire_lock(&workdir, Duration::from_secs(20));
        let (lost, ()) = tokio::join!(lost, async { lease.advertise(&info(1)).unwrap() });
        assert!(matches!(lost, Ok(Claim::Lost(seen)) if seen == info(1)));
    }

    #[test]
    fn nobody_loses_to_one_who_only_looks() {
        let (_dir, workdir) = workdir();
        try_lock(&workdir).unwrap().unwrap().advertise(&info(1)).unwrap();
        let looking = File::open(workdir.lock_path()).unwrap();
        fs2::FileExt::lock_shared(&looking).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let racer = std::thread::spawn({
            let workdir = workdir.clone();
            move || {
                begun.send(()).unwrap();
                runtime.block_on(acquire_lock(&workdir, Duration::from_secs(20)))
            }
        });
        begins.recv().unwrap();
        // It has met the one who looks by then, or has not: it may lose to nobody either way.
        for _ in 0..1_000 {
            assert!(!is_held(&workdir).unwrap());
        }
        drop(looking);
        assert!(matches!(racer.join().unwrap(), Ok(Claim::Won(_))));
    }

    #[test]
    fn a_lock_that_cannot_be_had_is_an_error_and_one_that_another_has_is_none() {
        assert!(is_got(Ok(())).unwrap());
        assert!(!is_got(Err(fs2::lock_contended_error())).unwrap());
        assert!(is_got(Err(rustix::io::Errno::NOLCK.into())).is_err());
    }

    #[test]
    fn a_shorter_note_leaves_nothing_of_a_longer_one() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let mut long = info(7);
        long.instance_id = "x".repeat(500);
        lease.advertise(&long).unwrap();
        lease.advertise(&info(8)).unwrap();
        assert_eq!(fs::read_to_string(workdir.lock_path()).unwrap(), info(8).to_text());
        assert_eq!(fs::metadata(workdir.lock_path()).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_lease_knows_that_its_file_is_gone() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        assert!(lease.is_current());
        fs::remove_dir_all(workdir.pando_dir()).unwrap();
        assert!(!lease.is_current());
        let second = try_lock(&workdir).unwrap().unwrap();
        assert!(second.is_current() && !lease.is_current());
    }

    #[test]
    fn something_else_in_place_of_the_lock_is_an_error() {
        let (_dir, workdir) = workdir();
        workdir.prepare().unwrap();
        fs::create_dir(workdir.lock_path()).unwrap();
        assert!(matches!(try_lock(&workdir), Err(LockError::Foreign { .. })));
        fs::remove_dir(workdir.lock_path()).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, workdir.lock_path(), fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(matches!(try_lock(&workdir), Err(LockError::Foreign { .. })));
        // Nobody waits for somebody to write into it.
        assert!(read_lock_for_path(&workdir).is_err());
        assert!(!is_held(&workdir).unwrap());
        fs::remove_file(workdir.lock_path()).unwrap();
        let elsewhere = workdir.path().join("elsewhere");
        fs::write(&elsewhere, info(1).to_text()).unwrap();
        for target in [Path::new("/dev/null"), &elsewhere] {
            std::os::unix::fs::symlink(target, workdir.lock_path()).unwrap();
            assert!(matches!(try_lock(&workdir), Err(LockError::Foreign { .. })));
            assert!(matches!(is_held(&workdir), Err(LockError::Io { .. })));
            assert!(matches!(read_lock_for_path(&workdir), Err(InfoError::Io { .. })));
            fs::remove_file(workdir.lock_path()).unwrap();
        }
    }

    #[test]
    fn where_nobody_was_the_lock_is_free() {
        let (_dir, workdir) = workdir();
        assert!(!is_held(&workdir).unwrap());
        assert!(matches!(read_lock_for_path(&workdir), Err(InfoError::Missing { .. })));
        assert!(!workdir.pando_dir().exists(), "looking makes nothing");
    }

    #[test]
    fn a_note_of_64_kib_is_read_and_a_longer_one_is_not() {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        for (length, is_read) in [(64 * 1024, true), (64 * 1024 + 1, false)] {
            let mut note = info(1);
            note.instance_id = "x".repeat(length + note.instance_id.len() - note.to_text().len());
            lease.advertise(&note).unwrap();
            let read = read_lock_for_path(&workdir);
            assert!(if is_read { read.unwrap() == note } else { matches!(read, Err(InfoError::TooLarge { .. })) });
        }
    }
}
