//! `events.*`: publish, and read the journal.

use std::sync::Arc;
use std::time::Duration;

use pando_dbproxy::wire::{self, Publication};
use pando_ipc::access::{Capability, Needs};
use pando_ipc::client::Resync;
use pando_ipc::methods::Call;
use pando_ipc::topic::PROBE_PREFIX;
use pando_ipc::{Fault, Pattern};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Method, NoParams, write_result};
use crate::instance::Primary;

/// Events per answer when the caller does not say.
const DEFAULT_LIMIT: usize = 500;
/// Most events per answer.
const MAX_LIMIT: usize = 5_000;
/// Longest wait of `events.since`, in milliseconds.
const MAX_WAIT_MS: u64 = 30_000;

/// What `events.publish` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::parse_publish reads")]
struct Publish {
    /// What kind of event it is.
    topic: String,
    /// What happened.
    payload: Option<Value>,
    /// The session it belongs to.
    session_id: Option<String>,
    /// The project it belongs to.
    project_id: Option<String>,
    /// Whether it is journaled; by default as its topic says.
    durable: Option<bool>,
    /// Makes a repeated call journal the event once.
    op_id: Option<String>,
}

/// What `events.publish` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Published {
    /// Number of the journaled event; an ephemeral one has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

/// What `events.since` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Since {
    /// Return events behind this number.
    after: u64,
    /// Patterns (`a.b`, `a.*`, `*`) of which one must match; all when left out.
    #[serde(default)]
    topics: Vec<String>,
    /// How many to return: 1 to 5,000, 500 when left out.
    limit: Option<usize>,
    /// How long to wait for the first event, up to 30,000 ms; not at all when left out.
    wait_ms: Option<u64>,
}

/// What `events.since` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct SinceResult {
    /// Envelopes in commit order.
    events: Vec<Value>,
    /// Number of the last journaled event. Fewer events than `limit` mean that all up to here were seen.
    head: u64,
    /// Set when events that were asked for are gone: `{from, to, reason}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    resync: Option<Value>,
}

/// What `events.head` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Head {
    /// Number of the last journaled event.
    seq: u64,
    /// The primary's term.
    epoch: u64,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::raw::<Publish, Published, _, _>(
            "events.publish",
            Needs::ByParams(publishing),
            "Publishes an event in the caller's name.",
            publish,
        ),
        Method::new(
            "events.since",
            Capability::Read,
            "Reads the journal, or waits for its next event.",
            |primary, _caller, params: Since| async move { since(&primary, params).await },
        ),
        Method::inline::<NoParams, Head>(
            "events.head",
            Capability::Read,
            "Tells where the journal ends.",
            |primary, _call| write_result(Head { seq: primary.writer.head(), epoch: primary.writer.epoch() }),
        ),
    ]
}

/// Publishing needs write, but for the probes by which an observer, too, proves that its subscription is live.
fn publishing(params: &Value) -> Capability {
    let is_probe = params["topic"].as_str().is_some_and(|topic| topic.starts_with(PROBE_PREFIX));
    if is_probe && params["durable"] != true { Capability::Read } else { Capability::Write }
}

async fn publish(primary: Arc<Primary>, call: Call) -> Result<Value, Fault> {
    match wire::parse_publish(&call.params, &primary.name_of(&call.caller))? {
        Publication::Durable(request) => Ok(wire::publish_result(&primary.writer.submit(request).await?)),
        Publication::Ephemeral(event) => {
            primary.outbound.ephemeral(event);
            Ok(json!({}))
        }
    }
}

async fn since(primary: &Primary, params: Since) -> Result<SinceResult, Fault> {
    let mut patterns = Vec::new();
    for (at, text) in params.topics.iter().enumerate() {
        patterns.push(Pattern::new(text).map_err(|error| Fault::invalid_params(&format!("topics[{at}]"), error))?);
    }
    if patterns.is_empty() {
        patterns.push(Pattern::All);
    }
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    // Subscribed before the journal is read, so that no event falls in between.
    let mut arriving = primary.shared.hub.subscribe(patterns.clone());
    let read = || async { primary.shared.readers.since(params.after, &patterns, limit).await };
    let mut page = read().await?;
    if let Some(wait_ms) = params.wait_ms
        && page.events.is_empty()
        && page.resync.is_none()
    {
        let wait = Duration::from_millis(wait_ms.min(MAX_WAIT_MS));
        if timeout(wait, arriving.recv()).await.is_ok() {
            page = read().await?;
        }
    }
    let as_json = |resync: Resync| json!({"from": resync.from, "to": resync.to, "reason": resync.reason});
    Ok(SinceResult {
        events: page.events.iter().map(|event| json!(event)).collect(),
        head: page.head,
        resync: page.resync.map(as_json),
    })
}
