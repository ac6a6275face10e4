//! Ends the calls whose time is over: one timer for all of them, which is set anew only for a call that is due before any other.

use std::future::pending;
use std::time::Duration;

use tokio::time::{sleep, sleep_until};

use super::Core;

/// Pause between two looks, for each goes through all calls: a call ends so much later than its deadline at most.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Closes the calls, whatever ends the worker: without it none would have an end.
struct Closing<'a>(&'a Core);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.calls().close();
    }
}

/// Looks at the calls when the time of one may be over, until the client is closed.
pub(super) async fn keep(core: &Core) {
    let _closing = Closing(core);
    let endless = async {
        loop {
            let look = core.calls().look();
            let due = async {
                match look {
                    Some(look) => sleep_until(look).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    core.expire();
                    sleep(LOOK_PAUSE).await;
                }
                () = core.sooner.notified() => {}
            }
        }
    };
    let _never: Option<()> = core.stop.run_until_cancelled(endless).await;
}
