//! Patience with a deadline: the only place in the tests that sleeps.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until there is something to see, and fails when the time is over.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a look at another process every few milliseconds, under a deadline"
        )]
        std::thread::sleep(PAUSE);
    }
}

/// Lets time pass, for what is about time itself: how long a fault lasts, or when it comes. Never to wait for something.
pub(crate) fn pass(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "a fault lasts, or comes at a random moment")]
    std::thread::sleep(time);
}

/// Lets tests that load the machine, or measure time on it, run one after the other.
pub(crate) fn heavy() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
