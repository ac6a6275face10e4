//! A workdir of its own, gone after the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use insta::Settings;
use insta::internals::SettingsBindDropGuard;
use pando_ipc::{LockInfo, Workdir, read_lock_for_path};
use tempfile::TempDir;

/// A temporary directory with a workdir in it; logs of processes lie beside the workdir.
#[derive(Debug)]
pub(crate) struct Sandbox {
    root: TempDir,
    workdir: PathBuf,
    logs: AtomicUsize,
}

impl Sandbox {
    /// Makes an empty workdir.
    pub(crate) fn new() -> Self {
        Self::named("w")
    }

    /// Makes an empty workdir with this name.
    pub(crate) fn named(name: &str) -> Self {
        let root = tempfile::Builder::new().prefix("pando-it-").tempdir().unwrap();
        let workdir = root.path().canonicalize().unwrap().join(name);
        fs::create_dir(&workdir).unwrap();
        Self { root, workdir, logs: AtomicUsize::new(0) }
    }

    /// Returns the canonical path of the workdir.
    pub(crate) fn path(&self) -> &Path {
        &self.workdir
    }

    /// Returns the directory around the workdir: logs lie there.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Returns the workdir as Pando knows it.
    pub(crate) fn workdir(&self) -> Workdir {
        Workdir::open(&self.workdir).unwrap()
    }

    /// Returns what the lock file says.
    pub(crate) fn lock_info(&self) -> LockInfo {
        read_lock_for_path(&self.workdir()).unwrap()
    }

    /// Opens the database file itself, to look at what is really there.
    pub(crate) fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.workdir().database_path(), flags).unwrap()
    }

    /// Returns the first column of the first row, as an integer.
    pub(crate) fn count(&self, sql: &str) -> i64 {
        self.database().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Returns the path of a new log.
    pub(super) fn new_log(&self, of: &str) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        self.root.path().join(format!("{number}-{of}.stderr"))
    }

    /// From now until the guard is dropped, snapshots show names in place of paths, ids, pids, ports and times.
    pub(crate) fn redact(&self) -> SettingsBindDropGuard {
        let mut settings = Settings::clone_current();
        settings.add_filter(&escape(&self.workdir.display().to_string()), "[workdir]");
        settings.add_filter(&escape(&self.root.path().display().to_string()), "[sandbox]");
        settings.add_filter(&escape(env!("CARGO_BIN_EXE_pando")), "[pando]");
        settings.add_filter(r"\b(inst|cli)-[0-9a-f]{12}\b", "[$1]");
        settings.add_filter(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "[uuid]");
        settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]");
        settings.add_filter(r"\b(pid|kill|kill -9) \d+", "$1 [pid]");
        settings.add_filter(r#""pid":\d+"#, r#""pid":"[pid]""#);
        settings.add_filter(r"\b[45]\d{4}\b", "[port]");
        settings.add_filter(r"\b\d+(\.\d)? (bytes|[KM]iB)", "[size]");
        settings.add_filter(r"\bseq \d+", "seq [seq]");
        settings.bind_to_scope()
    }
}

/// Escapes a path for use in a regular expression.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_alphanumeric() && c != '/').then_some('\\').into_iter().chain([c])).collect()
}
