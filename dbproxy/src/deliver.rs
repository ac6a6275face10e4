//! Brings a write to whoever is primary, and again, until it is answered or its deadline passes.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pando_ipc::Fault;
use pando_ipc::client::{CallError, Cause, Client};
use pando_ipc::failpoint::{self, Flaw};
use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::named::Writes;
use crate::recent::RecentStatements;
use crate::refusal::too_large;
use crate::wire;
use crate::write::{Ack, Outcome, Work, WriteRequest};
use crate::writer::{MAX_WRITE_BYTES, Writer};

/// Shortest and longest pause before a write is sent again on the same route.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// How long behind the deadline a delivery is heard out, which knows best why there is no answer.
const LAST_WORD: Duration = Duration::from_millis(50);

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
        Box::pin(async move { self.submit_here(request).await.map_err(DeliverError::Refused) })
    }
}

/// Calls a method of the primary.
pub trait Caller: Send + Sync {
    /// Calls `method` and returns its result; the deadline covers dial, queueing and answer.
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Json,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Json, DeliverError>>;
}

impl Caller for Client {
    fn call_by<'a>(
        &'a self,
        method: &'a str,
        params: Json,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Json, DeliverError>> {
        Box::pin(async move {
            self.call_json(method, params, deadline).await.map_err(|error| match error {
                // Sending it again changes nothing about that: whoever writes is told at once.
                CallError::NotSent(cause @ Cause::Version { .. }) => {
                    DeliverError::Refused(Fault::new(Code::Version, cause.to_string()))
                }
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
    recent: RecentStatements,
}

impl Remote {
    /// Returns a delivery by that caller; `writes` tells which form the params of named writes have on the wire.
    pub fn new(caller: Arc<dyn Caller>, writes: Writes) -> Self {
        Self { caller, writes, recent: RecentStatements::default() }
    }

    /// Notes in `recent` what the writes that it delivers run.
    #[must_use]
    pub fn noting(self, recent: RecentStatements) -> Self {
        Self { recent, ..self }
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
            self.recent.note(&request.work, &self.writes);
            let (method, params) = wire::call(&request, &self.writes);
            let bytes = params.as_str().len();
            if bytes > MAX_WRITE_BYTES {
                // The primary would end the connection, which all of this process's calls share.
                let why = format!("the write has {bytes} bytes; the limit is {MAX_WRITE_BYTES}; nothing was sent");
                return Err(DeliverError::Refused(too_large(request.work.label(), why)));
            }
            let result = self.caller.call_by(method, params, Instant::from_std(request.deadline)).await?;
            wire::ack(&request, &result).map_err(DeliverError::Unknown)
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
pub async fn deliver_until_answered(mut request: WriteRequest, mut route: Route) -> Result<Ack, WriteError> {
    let deadline = Instant::from_std(request.deadline);
    let mut effort = Effort::new(request.op_id.to_string());
    loop {
        if effort.maybe_applied && failpoint::has(Flaw::RetryWithoutOpId) {
            request.op_id = crate::op::OpId::fresh();
        }
        let current = route.borrow_and_update().clone();
        if let Some(deliver) = current {
            let delivered = timeout_at(deadline + LAST_WORD, deliver.deliver(request.clone())).await;
            let delivered = delivered.unwrap_or_else(|_| Err(DeliverError::Unknown("no answer in time".into())));
            match effort.judge(delivered) {
                Step::Done(answer) => return answer,
                Step::Settle => request.work = Work::Settle,
                Step::Again => {}
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
                    return Err(effort.give_up());
                } else {
                    sleep_until(again).await;
                }
            }
            () = sleep_until(again) => {}
        }
        if Instant::now() >= deadline {
            return Err(effort.give_up());
        }
    }
}

/// What comes after an attempt.
enum Step {
    /// This is the answer.
    Done(Result<Ack, WriteError>),
    /// Send the same again.
    Again,
    /// It was refused, but a copy that was sent before may still arrive: ask for the outcome, which keeps that copy from being applied.
    Settle,
}

/// What is known after some attempts.
struct Effort {
    op_id: String,
    /// Whether some attempt may have been applied, or be applied later, without an answer.
    maybe_applied: bool,
    /// The refusal that stands if the op was not applied.
    refused: Option<Fault>,
    cause: String,
    pause: Duration,
    /// What the primary asked for.
    at_least: Duration,
}

impl Effort {
    fn new(op_id: String) -> Self {
        let cause = "no primary is known".to_owned();
        Self { op_id, maybe_applied: false, refused: None, cause, pause: PAUSE.0, at_least: Duration::ZERO }
    }

    /// Takes the outcome of one attempt.
    fn judge(&mut self, delivered: Result<Ack, DeliverError>) -> Step {
        let fault = match delivered {
            Ok(ack) => return Step::Done(self.accept(ack)),
            Err(DeliverError::NotSent(cause)) => {
                self.cause = cause;
                return Step::Again;
            }
            Err(DeliverError::Unknown(cause)) => {
                (self.maybe_applied, self.cause) = (true, cause);
                return Step::Again;
            }
            Err(DeliverError::Refused(fault)) => fault,
        };
        self.cause.clone_from(&fault.message);
        if fault.is(Code::OutcomeUnknown) {
            self.maybe_applied = true;
            return if fault.is_retryable() { Step::Again } else { Step::Done(Err(self.give_up())) };
        }
        if fault.is_retryable() {
            self.at_least = retry_after(&fault);
            return Step::Again;
        }
        // What is settled cannot be applied any more.
        if !self.maybe_applied || fault.is(Code::Abandoned) {
            return Step::Done(Err(WriteError::Refused(fault)));
        }
        self.refused.get_or_insert(fault);
        Step::Settle
    }

    fn accept(&mut self, ack: Ack) -> Result<Ack, WriteError> {
        let Some(refused) = self.refused.take() else { return Ok(ack) };
        match ack.typed().map(|ack| ack.results) {
            Ok(Outcome::Applied { ack: Ack { seq, epoch, durability, results, replayed } }) => {
                Ok(Ack { seq, epoch, durability, results: results.into(), replayed })
            }
            Ok(Outcome::NotApplied) => Err(WriteError::Refused(refused)),
            Ok(Outcome::Unknown { reason }) => {
                self.cause = reason;
                Err(self.give_up())
            }
            Err(why) => {
                self.cause = format!("the primary's answer is malformed: {why}");
                Err(self.give_up())
            }
        }
    }

    /// Returns the next pause: twice the last one, up to a bound and never shorter than the primary asked for, and between half and the whole of that, so that
    /// those who were refused together do not come back together.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause.max(std::mem::take(&mut self.at_least)).min(PAUSE.1);
        self.pause = (self.pause * 2).min(PAUSE.1);
        // Each such state is keyed anew: a random number without another crate.
        let random = RandomState::new().build_hasher().finish() % 1_024;
        pause / 2 + (pause / 2) * u32::try_from(random).unwrap_or(0) / 1_024
    }

    fn give_up(&self) -> WriteError {
        let (op_id, cause) = (self.op_id.clone(), self.cause.clone());
        if self.maybe_applied { WriteError::Unknown { op_id, cause } } else { WriteError::NotSent { cause } }
    }
}

/// Returns how long the primary asks to wait.
fn retry_after(fault: &Fault) -> Duration {
    let millis = fault.data.as_ref().and_then(|data| data.get("retry_after_ms")).and_then(Value::as_u64);
    Duration::from_millis(millis.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Statement;

    /// Says why there is no answer, a moment after the deadline.
    struct Late;

    impl Deliver for Late {
        fn deliver(&self, request: WriteRequest) -> BoxFuture<'_, Result<Ack, DeliverError>> {
            Box::pin(async move {
                sleep_until(Instant::from_std(request.deadline) + LAST_WORD / 2).await;
                Err(DeliverError::Unknown("the primary is stopped".into()))
            })
        }
    }

    #[tokio::test]
    async fn whoever_knows_why_there_is_no_answer_is_heard_out() {
        let (_primary, route) = watch::channel(Some(Arc::new(Late) as Arc<dyn Deliver>));
        let work = Work::Exec { statements: vec![Statement::new("SELECT 1", ())], ddl: false };
        let deadline = Instant::now().into_std() + LAST_WORD;
        let request = WriteRequest::new(crate::op::OpId::fresh(), "i".into(), deadline, work).unwrap();
        let error = deliver_until_answered(request, route).await.unwrap_err();
        assert!(matches!(&error, WriteError::Unknown { cause, .. } if cause == "the primary is stopped"), "{error}");
    }

    #[test]
    fn clients_that_were_refused_together_come_back_apart() {
        let busy = || DeliverError::Refused(Fault::new(Code::BusyQueue, "full").with("retry_after_ms", 20));
        let mut efforts: Vec<_> = (0..8).map(|at| Effort::new(format!("op-{at}"))).collect();
        let mut longest = Duration::ZERO;
        for turn in 0..12 {
            let pause = |effort: &mut Effort| {
                assert!(matches!(effort.judge(Err(busy())), Step::Again));
                effort.next_pause()
            };
            let mut pauses: Vec<_> = efforts.iter_mut().map(pause).collect();
            pauses.sort_unstable();
            longest = pauses[7];
            assert!(pauses[0] >= Duration::from_millis(10) && longest <= PAUSE.1, "turn {turn}: {pauses:?}");
            assert!(pauses[0] < longest, "turn {turn}: all come back together");
        }
        assert!(longest > PAUSE.1 / 2, "{longest:?}");
    }
}
