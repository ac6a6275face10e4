//! A library preloaded into every instance: through it the harness moves the instance's wall clock and lets its disk fail.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::io::Errno;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim/shim.c");

/// What an instance is told; the C side has the same fields in the same order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Seconds that the wall clock is ahead.
    pub(crate) clock_s: i64,
    /// What fsync(2) and fdatasync(2) fail with.
    pub(crate) sync_error: Option<Errno>,
    /// What pwrite(2) fails with.
    pub(crate) write_error: Option<Errno>,
}

/// The wishes for one instance.
#[derive(Debug)]
pub(crate) struct Shim(File);

impl Shim {
    /// Preloads the library into a command. Nothing is wished for; the wishes are read from the file at `path`.
    pub(crate) fn preload(command: &mut Command, path: &Path) -> Self {
        fs::write(path, Wishes::default().bytes()).unwrap();
        command.env("LD_PRELOAD", library()).env("PANDO_TEST_WISHES", path);
        Self(File::options().write(true).open(path).unwrap())
    }

    /// Wishes for something from now on.
    pub(crate) fn wish(&self, wishes: Wishes) {
        self.0.write_all_at(&wishes.bytes(), 0).unwrap();
    }
}

impl Wishes {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.clock_s.to_ne_bytes());
        for (at, error) in [(8, self.sync_error), (12, self.write_error)] {
            bytes[at..at + 4].copy_from_slice(&error.map_or(0, Errno::raw_os_error).to_ne_bytes());
        }
        bytes
    }
}

/// Returns the library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim.so");
        // Another run of the tests may use the old one now: the new one takes its name, not its place.
        let fresh = path.with_extension(format!("{}.so", std::process::id()));
        let args = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"];
        let compiled = Command::new("cc").args(args).arg(&fresh).arg(SOURCE).status();
        assert!(compiled.as_ref().is_ok_and(std::process::ExitStatus::success), "cc {SOURCE}: {compiled:?}");
        fs::rename(&fresh, &path).unwrap();
        path
    })
}
