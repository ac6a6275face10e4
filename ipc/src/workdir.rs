//! The directory that several processes share, and the files Pando keeps in it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, in bytes, without the NUL (`sun_path` has 108).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Room that a socket's file name needs behind its directory.
const SOCKET_NAME_BYTES: usize = 32;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkdirError {
    /// The path does not lead to a directory.
    #[error("no workdir at {path}: {source}")]
    Missing {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path leads to something else than a directory.
    #[error("workdir {path} is not a directory")]
    NotADirectory {
        /// The canonical path.
        path: PathBuf,
    },
    /// The path is not UTF-8, and so no text that the lock file, an event or an answer could hold.
    #[error("workdir {path} has a path that is not UTF-8")]
    NotUtf8 {
        /// The canonical path.
        path: PathBuf,
    },
    /// A directory of ours cannot be made or opened.
    #[error("cannot use {path}: {source}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory of ours belongs to someone else.
    #[error("{path} belongs to uid {owner}, not to us (uid {own})")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective uid.
        own: u32,
    },
}

/// A directory that several processes share: the address of its primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workdir {
    path: PathBuf,
    /// The user's directory for what lives as long as a login, where somebody said which.
    runtime: Option<PathBuf>,
}

impl Workdir {
    /// Opens the directory at `path`: canonical, so that aliases meet. Creates nothing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WorkdirError> {
        Self::at(&directory(path.as_ref())?)
    }

    /// Finds the workdir for someone in `from`: the nearest directory upwards that holds a `.pando`, else `from` itself.
    ///
    /// The search ends at `home` and at the file system's border; `home` itself is no candidate unless `from` is it.
    pub fn discover(from: &Path, home: Option<&Path>) -> Result<Self, WorkdirError> {
        let start = directory(from)?;
        let home = home.and_then(|home| fs::canonicalize(home).ok());
        let device = fs::metadata(&start).map(|meta| meta.dev()).ok();
        for dir in start.ancestors() {
            let beyond = home.as_deref() == Some(dir) || fs::metadata(dir).map(|meta| meta.dev()).ok() != device;
            if beyond && dir != start {
                break;
            }
            if dir.join(".pando").is_dir() {
                return Self::at(dir);
            }
            if beyond {
                break;
            }
        }
        Self::at(&start)
    }

    fn at(path: &Path) -> Result<Self, WorkdirError> {
        let path = path.to_owned();
        if path.to_str().is_some() { Ok(Self { path, runtime: None }) } else { Err(WorkdirError::NotUtf8 { path }) }
    }

    /// Returns this workdir with the user's runtime directory (`$XDG_RUNTIME_DIR`): see [`Workdir::socket_dir`].
    #[must_use]
    pub fn with_runtime_dir(self, runtime: Option<PathBuf>) -> Self {
        // What is no text cannot stand in a door's address.
        Self { runtime: runtime.filter(|dir| dir.to_str().is_some()), ..self }
    }

    /// Returns the canonical path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where Pando keeps its files: `.pando`.
    pub fn pando_dir(&self) -> PathBuf {
        self.path.join(".pando")
    }

    /// Returns the path of the lock: `.pando/ipc.lock`.
    pub fn lock_path(&self) -> PathBuf {
        self.pando_dir().join("ipc.lock")
    }

    /// Returns the path of the database: `.pando/pando.db`.
    pub fn database_path(&self) -> PathBuf {
        self.pando_dir().join("pando.db")
    }

    /// Makes `.pando` (0700) when it is missing; a mode that is too open is repaired when the directory is ours.
    pub fn prepare(&self) -> Result<(), WorkdirError> {
        private_dir(&self.pando_dir())
    }

    /// Checks that we may enter `.pando`, where there is one: another user's is closed to us.
    pub fn check_access(&self) -> Result<(), WorkdirError> {
        let path = self.pando_dir();
        match fs::metadata(path.join(".")) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                // The innermost directory that we can see is the one that is closed.
                let seen = [&path, &self.path].into_iter().find_map(|dir| Some((dir, fs::symlink_metadata(dir).ok()?)));
                let foreign = seen.and_then(|(dir, meta)| foreign(dir, &meta));
                Err(foreign.unwrap_or(WorkdirError::Unusable { path, source }))
            }
            // What else is wrong is said by whoever needs what is in it.
            _ => Ok(()),
        }
    }

    /// Returns the directory for Unix sockets, made when missing (0700).
    ///
    /// It is `.pando/run`, or where that path is too long for a socket `<run>/pando/<hash>` with `<run>` the first of the
    /// [runtime directory](Workdir::with_runtime_dir) and `/run/user/<uid>` that is a directory of ours and short enough, else
    /// `/tmp/pando-<uid>/<hash>`. Clients need not know the rule: the lock file names the sockets.
    pub fn socket_dir(&self) -> Result<PathBuf, WorkdirError> {
        let own = self.pando_dir().join("run");
        if fits(&own) {
            private_dir(&own)?;
            return Ok(own);
        }
        let hash = {
            use std::hash::Hasher;
            let mut hasher = fnv::FnvHasher::default();
            hasher.write(self.path.as_os_str().as_bytes());
            format!("{:016x}", hasher.finish())
        };
        let uid = rustix::process::geteuid().as_raw();
        let is_ours = |dir: &PathBuf| fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
        let usual = PathBuf::from(format!("/run/user/{uid}"));
        let mut bases = self.runtime.iter().chain([&usual]).filter(|dir| is_ours(dir)).map(|dir| dir.join("pando"));
        let base = bases.find(|base| fits(&base.join(&hash)));
        let base = base.unwrap_or_else(|| PathBuf::from(format!("/tmp/pando-{uid}")));
        private_dir(&base)?;
        let dir = base.join(hash);
        private_dir(&dir)?;
        Ok(dir)
    }
}

/// Tells whether the path of a socket in this directory is short enough.
fn fits(dir: &Path) -> bool {
    dir.as_os_str().len() + SOCKET_NAME_BYTES <= MAX_SOCKET_PATH_BYTES
}

/// Returns the error that names the owner of a directory that is not ours.
fn foreign(path: &Path, meta: &fs::Metadata) -> Option<WorkdirError> {
    let (owner, own) = (meta.uid(), rustix::process::geteuid().as_raw());
    (owner != own).then(|| WorkdirError::Foreign { path: path.to_owned(), owner, own })
}

/// Makes a directory that only we may enter, or checks that it is one.
pub(crate) fn private_dir(path: &Path) -> Result<(), WorkdirError> {
    let unusable = |source| WorkdirError::Unusable { path: path.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(error)),
    }
    let meta = fs::symlink_metadata(path).map_err(unusable)?;
    if !meta.is_dir() {
        return Err(unusable(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    if let Some(foreign) = foreign(path, &meta) {
        return Err(foreign);
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    }
    Ok(())
}

/// Returns the canonical path of a directory.
fn directory(given: &Path) -> Result<PathBuf, WorkdirError> {
    let path = fs::canonicalize(given).map_err(|source| WorkdirError::Missing { path: given.to_owned(), source })?;
    if path.is_dir() { Ok(path) } else { Err(WorkdirError::NotADirectory { path }) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn the_nearest_pando_upwards_is_found_but_not_beyond_home() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("home/project/src/deep");
        fs::create_dir_all(&deep).unwrap();
        let find = |home: &str| {
            Workdir::discover(&deep, Some(&root.path().join(home)))
                .unwrap()
                .path
                .strip_prefix(fs::canonicalize(root.path()).unwrap())
                .unwrap()
                .to_owned()
        };
        assert_eq!(find("home"), Path::new("home/project/src/deep"));
        fs::create_dir(root.path().join("home/project/.pando")).unwrap();
        assert_eq!(find("home"), Path::new("home/project"));
        fs::rename(root.path().join("home/project/.pando"), root.path().join("home/.pando")).unwrap();
        assert_eq!(find("home"), Path::new("home/project/src/deep"));
        assert_eq!(find("elsewhere"), Path::new("home"));
    }

    #[test]
    fn a_mode_that_is_too_open_is_repaired() {
        let root = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(root.path()).unwrap();
        fs::create_dir(workdir.pando_dir()).unwrap();
        fs::set_permissions(workdir.pando_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        workdir.prepare().unwrap();
        assert_eq!(fs::metadata(workdir.pando_dir()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_deep_workdir_keeps_its_sockets_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(100));
        fs::create_dir(&deep).unwrap();
        let workdir = Workdir::open(&deep).unwrap();
        workdir.prepare().unwrap();
        let dir = workdir.socket_dir().unwrap();
        assert!(fits(&dir), "{dir:?}");
        fs::remove_dir(&dir).unwrap();
        let runtime = root.path().join("r");
        let elsewhere = |name: PathBuf| workdir.clone().with_runtime_dir(Some(name)).socket_dir().unwrap();
        assert_eq!(elsewhere(runtime.clone()), dir, "it is not there");
        fs::create_dir(&runtime).unwrap();
        assert!(elsewhere(runtime.clone()).starts_with(runtime.join("pando")));
        assert_eq!(fs::metadata(runtime.join("pando")).unwrap().mode() & 0o777, 0o700);
        assert_eq!(elsewhere(deep.clone()), dir, "it is too long itself");
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Workdir::open(file.path()), Err(WorkdirError::NotADirectory { .. })));
        assert!(matches!(Workdir::open("/nowhere/at/all"), Err(WorkdirError::Missing { .. })));
    }

    #[test]
    fn what_is_no_text_is_no_workdir_but_may_lie_in_one() {
        let dir = tempfile::tempdir().unwrap();
        let (above, inside) = (dir.path().join(".pando"), dir.path().join(OsStr::from_bytes(b"\xff")));
        fs::create_dir(&inside).unwrap();
        for opened in [Workdir::open(&inside), Workdir::discover(&inside, None)] {
            assert!(matches!(opened, Err(WorkdirError::NotUtf8 { .. })), "{opened:?}");
        }
        fs::create_dir(above).unwrap();
        assert_eq!(Workdir::discover(&inside, None).unwrap(), Workdir::open(dir.path()).unwrap());
    }
}
