//! Brings a write to whoever is primary, and again, until it is answered or its deadline passes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pando_ipc::Fault;
use pando_ipc::client::{CallError, Client};
use pando_ipc::fault::Code;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::named::Writes;
use crate::wire;
use crate::write::{Ack, WriteRequest};
use crate::writer::Writer;

/// Shortest and longest pause before a write is sent again on the same route.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Why one delivery brought no acknowledgement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeliverError {
    /// The write has not left: it was certainly not applied.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The write may have been applied: the same op id tells.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The primary refused it: it was not applied.
    #[error("{0}")]
    Refused(Fault),
}

/// Takes a write to the writer: the local one, or the primary's.
pub trait Deliver: Send + Sync {
    /// Delivers the request once. The future may be dropped at any time; the write may then be applied or not.
    fn deliver(&self, request: WriteRequest) -> BoxFuture<'_, Result<Ack, DeliverError>>;
}

impl Deliver for Writer {
    fn deliver(&self, request: WriteRequest) -> BoxFuture<'_, Result<Ack, DeliverError>> {
        Box::pin(async move {
            self.submit(request).await.map_err(|fault| {
                if fault.is(Code::OutcomeUnknown) {
                    DeliverError::Unknown(fault.message)
                } else {
                    DeliverError::Refused(fault)
                }
            })
        })
    }
}

/// Calls a method of the primary.
pub trait Caller: Send + Sync {
    /// Calls `method` and returns its result; the deadline covers dial, queueing and answer.
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Value,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Value, DeliverError>>;
}

impl Caller for Client {
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Value,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Value, DeliverError>> {
        Box::pin(async move {
            Self::call_by(self, method, params, deadline).await.map_err(|error| match error {
                CallError::NotSent(cause) => DeliverError::NotSent(cause.to_string()),
                CallError::Unknown(cause) => DeliverError::Unknown(cause.to_string()),
                CallError::Refused(fault) => DeliverError::Refused(fault),
            })
        })
    }
}

/// Delivers over the wire: `db.exec`, `db.write` or `events.publish` of the primary.
#[derive(Clone)]
pub struct Remote {
    caller: Arc<dyn Caller>,
    writes: Writes,
}

impl Remote {
    /// Returns a delivery by that caller; `writes` tells which form the params of named writes have on the wire.
    pub fn new(caller: Arc<dyn Caller>, writes: Writes) -> Self {
        Self { caller, writes }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl Deliver for Remote {
    fn deliver(&self, request: WriteRequest) -> BoxFuture<'_, Result<Ack, DeliverError>> {
        Box::pin(async move {
            let (method, params) = wire::call(&request, &self.writes);
            let result = self.caller.call_by(method, params, Instant::from_std(request.deadline)).await?;
            wire::ack(&request, result).map_err(DeliverError::Unknown)
        })
    }
}

/// Where writes go: nowhere yet, to the local writer, or to the primary.
pub type Route = watch::Receiver<Option<Arc<dyn Deliver>>>;

/// Why a write has no acknowledgement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError {
    /// Until its deadline the write reached nobody: it was not applied. Retry freely.
    #[error("write not sent before its deadline: {cause}")]
    NotSent {
        /// What the last attempt met.
        cause: String,
    },
    /// Until its deadline nobody told what became of it. Retry with the same op id.
    #[error("outcome of write {op_id} is unknown: {cause}")]
    Unknown {
        /// Names the write.
        op_id: String,
        /// What the last attempt met.
        cause: String,
    },
    /// It was refused, and not applied.
    #[error(transparent)]
    Refused(#[from] Fault),
}

/// Delivers a write along the route, again and again with the same op id, until it is answered or its deadline passes.
pub async fn deliver_until_answered(request: WriteRequest, mut route: Route) -> Result<Ack, WriteError> {
    let deadline = Instant::from_std(request.deadline);
    let mut effort = Effort { maybe_applied: false, cause: "no primary is known".to_owned(), pause: PAUSE.0 };
    loop {
        let current = route.borrow_and_update().clone();
        if let Some(deliver) = &current {
            let delivered = timeout_at(deadline, deliver.deliver(request.clone())).await;
            match effort.judge(delivered.unwrap_or_else(|_| Err(DeliverError::Unknown("no answer in time".into())))) {
                Some(answer) => return answer,
                None => drop(current),
            }
        }
        let again =
            if route.borrow().is_some() { deadline.min(Instant::now() + effort.next_pause()) } else { deadline };
        tokio::select! {
            changed = route.changed() => {
                if changed.is_ok() {
                    effort.pause = PAUSE.0;
                } else if route.borrow().is_none() {
                    "this instance has left".clone_into(&mut effort.cause);
                    return Err(effort.give_up(request.op_id));
                } else {
                    sleep_until(again).await;
                }
            }
            () = sleep_until(again) => {}
        }
        if Instant::now() >= deadline {
            return Err(effort.give_up(request.op_id));
        }
    }
}

/// What is known after some attempts.
struct Effort {
    /// Whether some attempt may have been applied without an answer.
    maybe_applied: bool,
    cause: String,
    pause: Duration,
}

impl Effort {
    /// Takes the outcome of one attempt. Returns the answer, or `None` to go on.
    fn judge(&mut self, delivered: Result<Ack, DeliverError>) -> Option<Result<Ack, WriteError>> {
        match delivered {
            Ok(ack) => return Some(Ok(ack)),
            Err(DeliverError::NotSent(cause)) => self.cause = cause,
            Err(DeliverError::Unknown(cause)) => (self.maybe_applied, self.cause) = (true, cause),
            Err(DeliverError::Refused(fault)) if fault.is(Code::OutcomeUnknown) => {
                (self.maybe_applied, self.cause) = (true, fault.message);
            }
            Err(DeliverError::Refused(fault)) if fault.is_retryable() => self.cause = fault.message,
            // That attempt was too late; an earlier one may still be on its way.
            Err(DeliverError::Refused(fault)) if fault.is(Code::Deadline) && self.maybe_applied => {
                self.cause = fault.message;
            }
            Err(DeliverError::Refused(fault)) => return Some(Err(WriteError::Refused(fault))),
        }
        None
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        pause
    }

    fn give_up(self, op_id: String) -> WriteError {
        let cause = self.cause;
        if self.maybe_applied { WriteError::Unknown { op_id, cause } } else { WriteError::NotSent { cause } }
    }
}
