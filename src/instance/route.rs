//! Where the primary is now, for calls and for writes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pando_dbproxy::Deliver;
use pando_ipc::client::{CallError, Cause, Client};
use pando_ipc::methods::{Call, Caller, Methods};
use pando_ipc::rpc::Json;
use pando_ipc::{Code, Fault};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

/// The way to the primary.
#[derive(Debug, Clone, Default)]
pub(super) enum Route {
    /// Nobody leads yet.
    #[default]
    None,
    /// This instance leads.
    Local(Methods),
    /// Somebody else leads; the client finds out who.
    Remote(Client),
}

/// The one place that knows where the primary is: set by the terms, read by everyone.
pub(super) struct Routes {
    calls: watch::Sender<Route>,
    writes: watch::Sender<Option<Arc<dyn Deliver>>>,
    /// Calls that this very instance makes of itself.
    local: TaskTracker,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Routes").field(&*self.calls.borrow()).finish()
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self { calls: watch::Sender::default(), writes: watch::Sender::new(None), local: TaskTracker::new() }
    }
}

impl Routes {
    /// Returns where writes go, for the database handle.
    pub(super) fn deliver(&self) -> watch::Receiver<Option<Arc<dyn Deliver>>> {
        self.writes.subscribe()
    }

    /// Sends calls and writes another way from now on.
    pub(super) fn set(&self, calls: Route, writes: Option<Arc<dyn Deliver>>) {
        self.calls.send_replace(calls);
        self.writes.send_replace(writes);
    }

    /// Sends calls and writes nowhere: they wait.
    pub(super) fn clear(&self) {
        self.set(Route::None, None);
    }

    /// Waits until this instance's own calls have ended, which needs [`Routes::clear`] first; not longer than `within`.
    pub(super) async fn drain(&self, within: Duration) {
        self.local.close();
        if timeout(within, self.local.wait()).await.is_err() {
            tracing::warn!("calls of this instance's own outlive its term");
        }
    }

    /// Calls the primary; what was not sent is sent again to the next one, until the deadline.
    pub(super) async fn call(&self, method: &str, params: Value, within: Duration) -> Result<Value, CallError> {
        let deadline = Instant::now() + within;
        let mut route = self.calls.subscribe();
        let timed_out = |_| CallError::NotSent(Cause::Timeout { after: within });
        loop {
            let way = route.borrow_and_update().clone();
            match way {
                Route::Local(methods) => {
                    let call = Call { method: method.into(), params: Json::of(&params), caller: Caller::local() };
                    let answer = self.local.track_future(timeout_at(deadline, methods.dispatch(call))).await;
                    match answer.map_err(|_| CallError::Unknown(Cause::Timeout { after: within }))? {
                        // The term ends: nothing was applied, and the next primary takes it.
                        Err(fault) if fault.is(Code::NotPrimary) || fault.is(Code::Fenced) => {}
                        answer => {
                            let read = |result: Json| result.read().map_err(Fault::internal);
                            return answer.and_then(read).map_err(CallError::Refused);
                        }
                    }
                }
                Route::Remote(client) => match client.call_by(method, params.clone(), deadline).await {
                    // The term ended before the call was sent; the next one takes it.
                    Err(CallError::NotSent(Cause::Closed)) => {}
                    answer => return answer,
                },
                Route::None => {}
            }
            if timeout_at(deadline, route.changed()).await.map_err(timed_out)?.is_err() {
                return Err(CallError::NotSent(Cause::Closed));
            }
        }
    }

    /// Sends a notification to the primary, when there is one: for what may be lost.
    pub(super) async fn notify(&self, method: &str, params: Json) -> Result<(), CallError> {
        let way = self.calls.borrow().clone();
        match way {
            Route::Local(methods) => {
                let call = Call { method: method.into(), params, caller: Caller::local() };
                methods.dispatch(call).await.map(drop).map_err(CallError::Refused)
            }
            Route::Remote(client) => client.notify(method, params).await,
            Route::None => Err(CallError::NotSent(Cause::Closed)),
        }
    }
}
