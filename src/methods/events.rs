//! `events.*`: publish, and read the journal.

use std::time::Duration;

use pando_dbproxy::Db;
use pando_dbproxy::wire::{self, Publication};
use pando_ipc::access::{Capability, Needs};
use pando_ipc::client::Resync;
use pando_ipc::cursor::{Bookmark, Cursor, CursorError, Cursors};
use pando_ipc::methods::{Call, Caller, Reply};
use pando_ipc::rpc::{Json, Raw};
use pando_ipc::topic::{HEARTBEAT, PROBE_PREFIX};
use pando_ipc::{Code, Envelope, Fault, Pattern, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

use super::db::Frame;
use super::{Method, NoParams};
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
    #[schemars(flatten)]
    frame: Frame,
}

/// What `events.publish` answers; nothing of it for an ephemeral event.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape that wire::publish_result writes")]
struct Published {
    /// Number of the journaled event.
    seq: Option<u64>,
    /// The primary's term.
    epoch: Option<u64>,
    /// `disk` or `os`: what the acknowledged event has survived.
    durability: Option<String>,
    /// Whether the op had been carried out already, and this is its answer again.
    replayed: Option<bool>,
}

/// What `events.since` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Since {
    /// Return events behind this number, or behind `cursor`.
    after: Option<u64>,
    /// Return events behind this named cursor; one that does not exist yet stands before the oldest event.
    cursor: Option<String>,
    /// Patterns (`a.b`, `a.*`, `*.b`, `*`) of which one must match; all when left out.
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
    #[schemars(with = "Vec<Value>")]
    events: Vec<Envelope>,
    /// Everything up to this number was looked at: go on behind it.
    upto: u64,
    /// Number of the last journaled event; there is more to read while `upto` is below.
    head: u64,
    /// The database's own id: numbers of another database mean nothing here.
    database: String,
    /// Set when events that were asked for are gone: `{from, to, reason}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    resync: Option<Value>,
}

/// What `events.ack` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct AckParams {
    /// Name of the cursor; it is made when there is none.
    cursor: String,
    /// Everything up to this event was taken. A cursor does not move back.
    seq: u64,
    /// The database that the number belongs to, when the caller wants it checked.
    #[schemars(with = "Option<String>")]
    database: Option<Uuid>,
    /// What the consumer follows; what it was before, or everything, when left out.
    #[schemars(with = "Option<Vec<String>>")]
    topics: Option<Vec<Pattern>>,
}

/// A named cursor.
#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    /// Its name.
    cursor: String,
    /// Everything up to this event was taken.
    seq: u64,
    /// Events behind it that it follows; null when it belongs to a former database.
    unread: Option<u64>,
    /// What it follows; everything when empty.
    topics: Vec<String>,
    /// When it was moved last, RFC 3339.
    at: String,
}

/// What `events.cursors` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Listing {
    /// All cursors, by name.
    cursors: Vec<Listed>,
}

/// What `events.head` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct HeadParams {
    /// Tell the last event before this time (RFC 3339) instead.
    #[schemars(with = "Option<String>")]
    before: Option<Timestamp>,
}

/// What `events.head` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Head {
    /// Number of the last journaled event, or of the last one before the time asked for; 0 when there is none.
    seq: u64,
    /// The primary's term.
    epoch: u64,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::deferred::<Publish, Published>(
            "events.publish",
            Needs::ByParams(publishing),
            "Publishes an event in the caller's name.",
            publish,
        ),
        Method::new(
            "events.since",
            Capability::Read,
            "Reads the journal, or waits for its next event.",
            |primary, caller, params: Since| async move { since(&primary, &caller, params).await },
        ),
        Method::new(
            "events.head",
            Capability::Read,
            "Tells where the journal ends, or where it was at a time.",
            |primary, caller, params: HeadParams| async move { head(&primary, &caller, params).await },
        ),
        Method::new(
            "events.ack",
            Capability::Write,
            "Moves a named cursor forward: what is up to there was taken.",
            |primary, caller, params: AckParams| async move { ack(&primary, &caller, params).await },
        ),
        Method::new(
            "events.cursors",
            Capability::Read,
            "Lists the named cursors and what they have not read yet.",
            |primary, caller, NoParams {}| async move { cursors(&primary, &caller).await },
        ),
    ]
}

/// Runs what touches the cursors' files.
async fn in_files<T: Send + 'static>(
    primary: &Primary,
    work: impl FnOnce(Cursors) -> Result<T, CursorError> + Send + 'static,
) -> Result<T, Fault> {
    let cursors = Cursors::of(&primary.shared.workdir);
    let done = tokio::task::spawn_blocking(move || work(cursors)).await.map_err(Fault::internal)?;
    done.map_err(|error| match error {
        CursorError::Name(_) => Fault::invalid_params("cursor", error),
        error => Fault::new(Code::Storage, error.to_string()),
    })
}

async fn ack(primary: &Primary, caller: &Caller, params: AckParams) -> Result<Listed, Fault> {
    let AckParams { cursor: name, seq, database, topics } = params;
    let own = primary.writer.database();
    if database.is_some_and(|database| database != own) {
        return Err(Fault::new(Code::WrongDatabase, format!("the number belongs to another database than {own}")));
    }
    let head = primary.writer.head();
    if seq > head {
        return Err(Fault::invalid_params("seq", format!("the journal ends at {head}")));
    }
    let bookmark = Bookmark { database: own, seq };
    let moved = in_files(primary, move |cursors| {
        let topics = match topics {
            Some(topics) => topics,
            None => cursors.read(&name)?.map(|cursor| cursor.topics).unwrap_or_default(),
        };
        cursors.advance(Cursor { name, bookmark, topics, at: Timestamp::now() })
    });
    listed(&primary.db(caller), moved.await?).await
}

async fn cursors(primary: &Primary, caller: &Caller) -> Result<Listing, Fault> {
    let db = primary.db(caller);
    let mut cursors = Vec::new();
    for cursor in in_files(primary, |cursors| cursors.list()).await? {
        cursors.push(listed(&db, cursor).await?);
    }
    Ok(Listing { cursors })
}

async fn listed(db: &Db, cursor: Cursor) -> Result<Listed, Fault> {
    let topics = if cursor.topics.is_empty() { vec![Pattern::All] } else { cursor.topics.clone() };
    Ok(Listed {
        unread: db.readers().unread(cursor.bookmark, &topics).await?,
        cursor: cursor.name,
        seq: cursor.bookmark.seq,
        topics: cursor.topics.iter().map(Pattern::to_string).collect(),
        at: cursor.at.to_string(),
    })
}

/// Returns where a page begins, and what is gone when a cursor belongs to a former database.
async fn start_of(primary: &Primary, params: &Since) -> Result<(u64, Option<Resync>), Fault> {
    let name = match (params.after, params.cursor.clone()) {
        (Some(after), None) => return Ok((after, None)),
        (None, Some(name)) => name,
        _ => return Err(Fault::invalid_params("after", "give either 'after' or 'cursor'")),
    };
    let Some(cursor) = in_files(primary, move |cursors| cursors.read(&name)).await? else { return Ok((0, None)) };
    let Bookmark { database, seq } = cursor.bookmark;
    if database == primary.writer.database() {
        return Ok((seq, None));
    }
    let reason = "the database was replaced by another one, which is read from its start".to_owned();
    Ok((0, Some(Resync { from: 1, to: seq, reason })))
}

async fn head(primary: &Primary, caller: &Caller, params: HeadParams) -> Result<Head, Fault> {
    let seq = match params.before {
        Some(_) => primary.db(caller).readers().last_before(params.before).await?,
        None => primary.writer.head(),
    };
    Ok(Head { seq, epoch: primary.writer.epoch() })
}

/// Publishing needs write, but for the probes by which an observer, too, proves that its subscription is live.
fn publishing(params: &Json) -> Capability {
    let member = |name| params.raw().member(name);
    let is_probe = member("topic").and_then(Raw::text).is_some_and(|topic| topic.starts_with(PROBE_PREFIX));
    let is_durable = || member("durable").is_some_and(|durable| durable.as_str() == "true");
    if is_probe && !is_durable() { Capability::Read } else { Capability::Write }
}

fn publish(primary: &Primary, call: &Call, reply: Reply) {
    match wire::parse_publish(&call.params, &primary.name_of(&call.caller)) {
        Ok(Publication::Durable(request)) => {
            primary.writer.submit_then(request, |result| reply.send(result.map(|ack| wire::publish_result(&ack))));
        }
        Ok(Publication::Ephemeral(event)) => {
            if event.topic.as_str() == HEARTBEAT {
                primary.roster.heard(&event.instance_id);
            }
            primary.outbound.ephemeral(event);
            drop(reply.send(Ok(json!({}))));
        }
        Err(fault) => drop(reply.send::<Json>(Err(fault))),
    }
}

async fn since(primary: &Primary, caller: &Caller, params: Since) -> Result<SinceResult, Fault> {
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
    let (after, replaced) = start_of(primary, &params).await?;
    let db = primary.db(caller);
    let read = || async { db.readers().since(after, &patterns, limit).await };
    let mut page = read().await?;
    if let Some(wait_ms) = params.wait_ms
        && page.events.is_empty()
        && page.resync.is_none()
        && replaced.is_none()
    {
        let wait = Duration::from_millis(wait_ms.min(MAX_WAIT_MS));
        let arrived = primary.leaving.run_until_cancelled(timeout(wait, arriving.recv())).await;
        if matches!(arrived, Some(Ok(_))) {
            page = read().await?;
        }
    }
    Ok(SinceResult {
        events: page.events,
        upto: page.upto,
        head: page.head,
        database: page.database.to_string(),
        resync: replaced.or(page.resync).map(|resync| json!(resync)),
    })
}
