//! From a request body to the answer in the caller's ring. Whoever runs this flushes the ring now and then, and once there is nothing more to say at the moment.

use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::shared::{Peer, Shared};
use super::stats::Refusal;
use crate::failpoint::{self, Point};
use crate::fault::{Code, Fault};
use crate::hello::HELLO;
use crate::methods::{Call, Flush, Handler, Reply, Sent, run_deferred, run_inline};
use crate::rpc::{Id, Incoming, Json, Request, Response, parse_request};
use crate::zmtp::encode_delimited;

/// Calls of one batch that run at once; the batch starts them in order.
const BATCH_CONCURRENCY: usize = 16;
/// Most further calls that end in one turn.
const MAX_TURN: usize = 64;
/// After how long a caller that met `E_BUSY` should ask again.
const RETRY_AFTER_MS: u64 = 20;

/// Answers one request body. Returns at once: what takes time runs in a task of its own.
pub(super) fn serve(shared: &Arc<Shared>, peer: &Arc<Peer>, body: &[u8]) {
    failpoint::hit(Point::CallRead);
    match parse_request(body) {
        Ok(Incoming::Single(request)) => single(shared, peer, request),
        Ok(Incoming::Batch(parts)) => batch(shared, peer, parts),
        Err(refusal) => answer(shared, peer, refusal),
    }
}

fn single(shared: &Arc<Shared>, peer: &Arc<Peer>, request: Request) {
    shared.counters.calls.fetch_add(1, Relaxed);
    let Request { id, method, params } = request;
    if method == HELLO {
        peer.has_said_hello.store(true, Relaxed);
    }
    let caller = peer.caller.clone();
    let outcome = match admit(shared, peer, &method, &params) {
        Err(refusal) => Err(refusal),
        Ok((method, Handler::Inline(handler))) => run_inline(&*handler, Call { method, params, caller }),
        Ok((method, Handler::Deferred(handler))) => match permits(shared, peer) {
            Err(busy) => Err(busy),
            Ok(permits) => {
                let reply = reply_to(shared, peer, id, permits);
                return run_deferred(&*handler, Call { method, params, caller }, reply);
            }
        },
        Ok((method, handler)) => match permits(shared, peer) {
            Err(busy) => Err(busy),
            Ok(permits) => {
                let (bus, owner) = (Arc::clone(shared), Arc::clone(peer));
                let call = async move {
                    let run = handler.run(Call { method, params, caller });
                    let outcome = bus.kill.run_until_cancelled(run).await;
                    if let (Some(outcome), Some(id)) = (outcome, id) {
                        answer(&bus, &owner, Response { id, outcome });
                    }
                    drop(permits);
                };
                return start(shared, peer, call);
            }
        },
    };
    if let Some(id) = id {
        answer(shared, peer, Response { id, outcome });
    }
}

/// Returns what answers a call from another thread, and holds what the call holds until then.
fn reply_to(shared: &Arc<Shared>, peer: &Arc<Peer>, id: Option<Id>, permits: Permits) -> Reply {
    let (bus, owner, running) = (Arc::clone(shared), Arc::clone(peer), shared.calls.token());
    Reply::new(move |outcome| {
        if let Some(id) = id {
            answer(&bus, &owner, Response { id, outcome });
        }
        drop((permits, running));
        Sent::new(owner)
    })
}

fn batch(shared: &Arc<Shared>, peer: &Arc<Peer>, parts: Vec<Result<Request, Response>>) {
    shared.counters.calls.fetch_add(parts.len() as u64, Relaxed);
    let permits = match permits(shared, peer) {
        Ok(permits) => permits,
        Err(busy) => {
            let refuse = |part: Result<Request, Response>| match part {
                Ok(request) => request.id.map(|id| Response { id, outcome: Err(busy.clone()) }),
                Err(refusal) => Some(refusal),
            };
            let mut answers = Answers::default();
            parts.into_iter().filter_map(refuse).for_each(|response| answers.push(shared, peer, response));
            return answers.send(shared, peer);
        }
    };
    let (bus, owner) = (Arc::clone(shared), Arc::clone(peer));
    let call = async move {
        let run = async |part: Result<Request, Response>| match part {
            Ok(Request { id, method, params }) => {
                let outcome = match admit(&bus, &owner, &method, &params) {
                    Err(refusal) => Err(refusal),
                    Ok((method, handler)) => handler.run(Call { method, params, caller: owner.caller.clone() }).await,
                };
                id.map(|id| Response { id, outcome })
            }
            Err(refusal) => Some(refusal),
        };
        let all = async {
            let mut answers = Answers::default();
            let mut responses = pin!(futures::stream::iter(parts).map(run).buffered(BATCH_CONCURRENCY));
            while let Some(response) = responses.next().await {
                if let Some(response) = response {
                    answers.push(&bus, &owner, response);
                }
            }
            answers
        };
        if let Some(answers) = bus.kill.run_until_cancelled(all).await {
            answers.send(&bus, &owner);
        }
        drop(permits);
    };
    start(shared, peer, call);
}

/// A call that is being executed.
pub(super) type Running = BoxFuture<'static, ()>;

/// Starts a call beside the other calls of its peer.
fn start(shared: &Shared, peer: &Peer, call: impl Future<Output = ()> + Send + 'static) {
    // There is room for every call that has a permit, so this fails only when the runner has crashed.
    if peer.started.try_send(Box::pin(shared.calls.track_future(call))).is_err() {
        tracing::error!(peer = peer.caller.peer, "the peer's calls are no longer executed");
        peer.gone.cancel();
    }
}

/// Executes the calls of one peer, many at once but in one task: peers take turns, however much each of them asks for. The answers that are
/// there at once leave in one write.
pub(super) async fn run(peer: Weak<Peer>, mut started: mpsc::Receiver<Running>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            call = started.recv() => match call {
                Some(call) => running.push(call),
                None => return,
            },
            Some(()) = running.next() => {
                let more = std::iter::repeat_with(|| running.next().now_or_never().flatten());
                more.take(MAX_TURN).take_while(Option::is_some).for_each(drop);
                if let Some(peer) = peer.upgrade() {
                    peer.flush();
                }
                // The next peer's turn.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The answers to a batch, as the elements of one JSON array. Each is encoded when it comes, so that those which do not
/// fit into one message are never held together.
#[derive(Debug, Default)]
struct Answers(Vec<u8>);

impl Answers {
    /// Adds an answer; one that no longer fits is replaced by the fault that says so.
    fn push(&mut self, shared: &Shared, peer: &Peer, Response { id, outcome }: Response) {
        let before = self.0.len();
        self.write(&Response { id: id.clone(), outcome });
        if let Err(fault) = fits(shared, peer, self.0.len()) {
            self.0.truncate(before);
            self.write(&Response { id, outcome: Err(fault) });
        }
    }

    fn write(&mut self, response: &Response) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        write_json(&mut self.0, response);
    }

    /// Sends them as one array; nothing when all parts of the batch were notifications.
    fn send(self, shared: &Shared, peer: &Peer) {
        if !self.0.is_empty() {
            let array = |out: &mut Vec<u8>| [b"[".as_slice(), &self.0, b"]"].iter().for_each(|part| out.extend(*part));
            shared.queue(peer, encode_delimited(array));
        }
    }
}

/// Returns the method for a peer who may call it, unless the bus is about to close. A refusal is counted and logged.
fn admit(shared: &Shared, peer: &Peer, method: &str, params: &Json) -> Result<(Arc<str>, Handler), Fault> {
    if let Some(refusal) = shared.refusal.get() {
        return Err(refusal.clone());
    }
    shared.methods.admit(method, params, &peer.caller).inspect_err(|fault| {
        if fault.is(Code::PeerUnauthorized) {
            shared.refuse(peer, Refusal::Unauthorized, || fault.message.clone());
        }
    })
}

/// What a call in flight holds: one of its peer's permits, and one of the bus's unless it is one of the few that every peer may have.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

fn permits(shared: &Shared, peer: &Peer) -> Result<Permits, Fault> {
    let busy = |whose: &str, limit: usize| {
        shared.refuse(peer, Refusal::Busy, || format!("{whose} {limit} calls in flight"));
        Fault::new(Code::Busy, format!("ipc: {whose} {limit} calls in flight, which is the limit"))
            .with("retry_after_ms", RETRY_AFTER_MS)
    };
    let limits = &shared.limits;
    let own = Arc::clone(&peer.calls).try_acquire_owned();
    let own = own.map_err(|_| busy("this connection has", limits.max_calls_per_peer))?;
    if limits.max_calls_per_peer - peer.calls.available_permits() <= limits.always_calls_per_peer {
        return Ok((own, None));
    }
    let all = Arc::clone(&shared.calls_in_flight).try_acquire_owned();
    let all = all.map_err(|_| busy("the primary has", limits.max_calls))?;
    Ok((own, Some(all)))
}

/// Sends one answer; one that is too large is replaced by the fault that says so.
fn answer<R: Serialize>(shared: &Shared, peer: &Peer, response: Response<R>) {
    let mut message = encode_delimited(|out| write_json(out, &response));
    if let Err(fault) = fits(shared, peer, message.len()) {
        message = encode_delimited(|out| write_json(out, &Response::<Json> { id: response.id, outcome: Err(fault) }));
    }
    failpoint::hit(Point::AnswerBefore);
    shared.queue(peer, message);
    failpoint::hit(Point::AnswerAfter);
}

/// Checks the size of an answer.
fn fits(shared: &Shared, peer: &Peer, bytes: usize) -> Result<(), Fault> {
    let limit = shared.limits.max_outgoing_bytes;
    if bytes <= limit {
        return Ok(());
    }
    let why = format!("ipc: the answer has {bytes} bytes; the limit is {limit}");
    shared.refuse(peer, Refusal::AnswerTooLarge, || why.clone());
    Err(Fault::new(Code::TooLarge, why))
}

fn write_json<R: Serialize>(out: &mut Vec<u8>, response: &Response<R>) {
    #[expect(clippy::expect_used, reason = "strings, numbers and a Value always serialise into memory")]
    serde_json::to_writer(out, response).expect("an answer serialises");
}
