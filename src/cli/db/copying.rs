//! What `backup` and `restore` share: a copy in the making, shown on a terminal, that ends with its command.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use pando_dbproxy::backup::{CopyError, OnStep, Step};
use pando_dbproxy::{StoreError, Trouble};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};

/// Runs `work`, which copies, on a thread of its own with a progress bar. Ctrl-C and SIGTERM cancel it, and it ends before the command does:
/// nothing of it stays behind. What is done by then is done.
pub(super) async fn copy<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce(&CancellationToken, &OnStep) -> Result<T, CopyError> + Send + 'static,
) -> Result<T, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::io("listen to signals", &error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let bar = bar(context);
    let shown = bar.clone();
    let show: OnStep = Arc::new(move |step| show(&shown, step));
    let mut work = tokio::task::spawn_blocking(move || work(&stopped, &show));
    // How a copy ends that is cancelled: by a signal, for nobody else cancels it.
    let mut asked = Failure::interrupted();
    let done = tokio::select! {
        done = &mut work => Some(done),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => {
            asked = Failure::terminated();
            None
        }
    };
    let done = if let Some(done) = done {
        done
    } else {
        stop.cancel();
        work.await
    };
    let done = done.map_err(|error| Failure::new(Kind::Failed, format!("the copy was cut off: {error}")))?;
    bar.finish_and_clear();
    match done {
        Err(CopyError::Cancelled) => Err(asked),
        done => done.map_err(|error| failure(&error)),
    }
}

fn bar(context: &Context) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {bytes} of {total_bytes}  {msg}");
    match style {
        Ok(style) if io::stderr().is_terminal() && !context.quiet() && !context.json() => {
            ProgressBar::new(0).with_style(style)
        }
        _ => ProgressBar::hidden(),
    }
}

fn show(bar: &ProgressBar, step: Step) {
    match step {
        Step::Copying { bytes, of } => {
            bar.set_length(of);
            bar.set_position(bytes);
        }
        Step::Verifying => bar.set_message("verifying"),
    }
}

fn failure(error: &CopyError) -> Failure {
    let text = error.to_string();
    match error {
        CopyError::Exists { .. } => {
            Failure::new(Kind::Conflict, text).hint("name another file, or replace it with '--force'")
        }
        CopyError::Itself { .. } => Failure::new(Kind::Usage, text).hint("name another file"),
        CopyError::File { source, .. } => {
            Failure { message: text, ..Failure::io("copy", source) }.hint("name a file in a directory you may write to")
        }
        CopyError::Inside { dir, .. } => {
            Failure::new(Kind::Usage, text).hint(format!("name a file outside of {}", dir.display()))
        }
        CopyError::NotAFile { .. } => Failure::new(Kind::Usage, text).hint("name a file, or a new one"),
        CopyError::InUse { path } => Failure::new(Kind::Conflict, text)
            .hint(format!("end who reads it, find it: 'fuser -v {}'; nothing was changed", path.display())),
        CopyError::Unsettled { path, .. } => Failure::new(Kind::Failed, text)
            .hint(error.trouble().map_or("nothing was changed", Trouble::next_step))
            .hint(format!("or move it away with its log, 'mv {}* elsewhere', and restore again", path.display())),
        CopyError::Sqlite { .. } => {
            let next = error.trouble().map_or("check the original: 'pando db check'", Trouble::next_step);
            Failure::new(Kind::Failed, text).hint(next)
        }
        CopyError::Damaged { .. } => Failure::new(Kind::Failed, text).hint("use another copy; nothing was changed"),
        CopyError::Foreign { .. } => {
            Failure::new(Kind::Failed, text).hint("name a file that 'pando db backup' made; nothing was changed")
        }
        CopyError::Schema(error @ StoreError::NewerSchema { .. }) => Failure::store(error).hint("nothing was changed"),
        CopyError::Schema(error) => Failure::new(Kind::Failed, error.to_string()).hint("nothing was changed"),
        CopyError::Cancelled => Failure::interrupted(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use clap::Parser;
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::runtime::Handle;

    use super::*;
    use crate::cli::args::Cli;
    use crate::cli::environment::Environment;

    /// Runs a copy that sends a signal to its own process, and ends with `end` when it is cancelled.
    async fn signalled(signal: Signal, end: Result<u8, CopyError>) -> Result<u8, Failure> {
        let context = Context::new(Cli::parse_from(["pando", "--quiet", "status"]).globals, Environment::read());
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        let done = copy(&context, move |stop, _| {
            kill_process(getpid(), signal).unwrap();
            Handle::current().block_on(stop.cancelled());
            ended.store(true, Ordering::Release);
            end
        });
        let done = done.await;
        assert!(has_ended.load(Ordering::Acquire), "the copy ends before its command");
        done
    }

    /// One test for both signals: they go to the whole process.
    #[tokio::test]
    async fn a_signal_cancels_a_copy_waits_for_its_end_and_tells_what_is_done() {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let cancelled = signalled(signal, Err(CopyError::Cancelled)).await.unwrap_err();
            assert_eq!(cancelled.kind.code(), code, "{signal:?}");
            assert_eq!(signalled(signal, Ok(7)).await, Ok(7), "{signal:?}: it was done already");
        }
    }

    #[test]
    fn trouble_with_the_disk_names_its_own_next_step() {
        let hint = |code| {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            let path = "/w/pando.db".into();
            failure(&CopyError::Sqlite { what: "copy", path, source }).hints.remove(0)
        };
        assert_eq!(hint(rusqlite::ffi::SQLITE_FULL), Trouble::Full.next_step());
        assert_eq!(hint(rusqlite::ffi::SQLITE_CORRUPT), Trouble::Damaged.next_step());
        assert_eq!(hint(rusqlite::ffi::SQLITE_ERROR), "check the original: 'pando db check'");
    }
}
