//! From a request body to the answer in the caller's ring.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::shared::{Peer, Shared};
use super::stats::Refusal;
use crate::failpoint::{self, Point};
use crate::fault::{Code, Fault};
use crate::methods::{Call, Handler, run_inline};
use crate::rpc::{Incoming, Request, Response, parse_request};
use crate::zmtp::encode_reply;

/// Calls of one batch that run at once; the batch starts them in order.
const BATCH_CONCURRENCY: usize = 16;
/// After how long a caller that met `E_BUSY` should ask again.
const RETRY_AFTER_MS: u64 = 20;

/// Answers one request body. Returns at once: what takes time runs in a task of its own.
pub(super) fn serve(shared: &Arc<Shared>, peer: &Arc<Peer>, body: &[u8]) {
    failpoint::hit(Point::CallRead);
    match parse_request(body) {
        Ok(Incoming::Single(Ok(request))) => single(shared, peer, request),
        Ok(Incoming::Batch(parts)) => batch(shared, peer, parts),
        Ok(Incoming::Single(Err(refusal))) | Err(refusal) => answer(shared, peer, refusal),
    }
}

fn single(shared: &Arc<Shared>, peer: &Arc<Peer>, request: Request) {
    shared.counters.calls.fetch_add(1, Relaxed);
    let Request { id, method, params } = request;
    let found = shared.methods.find(&method);
    let caller = peer.caller.clone();
    let outcome = match found {
        None => Err(Fault::method_not_found(&method)),
        Some((method, Handler::Inline(handler))) => run_inline(&*handler, Call { method, params, caller }),
        Some((method, handler)) => match permits(shared, peer) {
            Err(busy) => Err(busy),
            Ok(permits) => {
                let (shared_too, peer) = (Arc::clone(shared), Arc::clone(peer));
                shared.calls.spawn(async move {
                    let run = handler.run(Call { method, params, caller });
                    let outcome = shared_too.kill.run_until_cancelled(run).await;
                    if let (Some(outcome), Some(id)) = (outcome, id) {
                        answer(&shared_too, &peer, Response { id, outcome });
                    }
                    drop(permits);
                });
                return;
            }
        },
    };
    if let Some(id) = id {
        answer(shared, peer, Response { id, outcome });
    }
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
            return answer_all(shared, peer, parts.into_iter().filter_map(refuse).collect());
        }
    };
    let (shared_too, peer) = (Arc::clone(shared), Arc::clone(peer));
    shared.calls.spawn(async move {
        let run = async |part: Result<Request, Response>| match part {
            Ok(Request { id, method, params }) => {
                let call = Call { method: method.into(), params, caller: peer.caller.clone() };
                let outcome = shared_too.methods.dispatch(call).await;
                id.map(|id| Response { id, outcome })
            }
            Err(refusal) => Some(refusal),
        };
        let calls = futures::stream::iter(parts).map(run).buffered(BATCH_CONCURRENCY);
        let answers = calls.filter_map(std::future::ready).collect::<Vec<Response>>();
        if let Some(answers) = shared_too.kill.run_until_cancelled(answers).await {
            answer_all(&shared_too, &peer, answers);
        }
        drop(permits);
    });
}

/// Takes one of the peer's and one of the bus's permits for a call in flight.
fn permits(shared: &Shared, peer: &Peer) -> Result<[OwnedSemaphorePermit; 2], Fault> {
    let busy = |whose: &str, limit: usize| {
        shared.counters.refuse(Refusal::Busy);
        Fault::new(Code::Busy, format!("ipc: {whose} {limit} calls in flight, which is the limit"))
            .with("retry_after_ms", RETRY_AFTER_MS)
    };
    let own = Arc::clone(&peer.calls).try_acquire_owned();
    let own = own.map_err(|_| busy("this connection has", shared.limits.max_calls_per_peer))?;
    let all = Arc::clone(&shared.calls_in_flight).try_acquire_owned();
    let all = all.map_err(|_| busy("the primary has", shared.limits.max_calls))?;
    Ok([own, all])
}

/// Sends one answer; one that is too large is replaced by the fault that says so.
fn answer(shared: &Shared, peer: &Peer, response: Response) {
    let message = match encode(shared, &response) {
        Ok(message) => message,
        Err(fault) => encode_any(&Response { id: response.id, outcome: Err(fault) }),
    };
    failpoint::hit(Point::AnswerBefore);
    shared.send(peer, message);
    failpoint::hit(Point::AnswerAfter);
}

/// Sends the answers to a batch as one array; nothing when all its parts were notifications.
fn answer_all(shared: &Shared, peer: &Peer, responses: Vec<Response>) {
    if responses.is_empty() {
        return;
    }
    let message = encode(shared, &responses).unwrap_or_else(|fault| {
        let ids = responses.into_iter().map(|response| response.id);
        encode_any(&ids.map(|id| Response { id, outcome: Err(fault.clone()) }).collect::<Vec<_>>())
    });
    shared.send(peer, message);
}

fn encode(shared: &Shared, answer: &impl Serialize) -> Result<Bytes, Fault> {
    let (message, limit) = (encode_any(answer), shared.limits.max_outgoing_bytes);
    if message.len() <= limit {
        return Ok(message);
    }
    shared.counters.refuse(Refusal::AnswerTooLarge);
    Err(Fault::new(Code::TooLarge, format!("ipc: the answer has {} bytes; the limit is {limit}", message.len())))
}

fn encode_any(answer: &impl Serialize) -> Bytes {
    #[expect(clippy::expect_used, reason = "strings, numbers and a Value always serialise into memory")]
    encode_reply(|out| serde_json::to_writer(out, answer).expect("an answer serialises"))
}
