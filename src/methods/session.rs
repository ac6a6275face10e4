//! `session.*`: sessions as an observer sees them.

use pando_dbproxy::store::Session;
use pando_dbproxy::{Db, Querier};
use pando_ipc::access::Capability::{Control, Read, Write};
use pando_ipc::{Code, Fault, Topic, topic};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Method;
use super::db::fault;

/// Sessions per answer when the caller does not say.
const DEFAULT_LIMIT: u32 = 100;
/// Most sessions per answer.
const MAX_LIMIT: u32 = 1_000;

/// Names a session.
#[derive(Debug, Deserialize, JsonSchema)]
struct Named {
    /// The session's id.
    id: String,
}

/// What `session.list` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct ListParams {
    /// How many to return: 1 to 1,000, 100 when left out.
    limit: Option<u32>,
    /// How many to skip.
    #[serde(default)]
    offset: u32,
}

/// What `session.list` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct List {
    /// Newest first.
    sessions: Vec<Session>,
}

/// What `session.activate` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Activated {
    /// Number of the event `session.activated`.
    seq: u64,
}

/// What `session.interrupt` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct InterruptAnswer {
    /// Whether an agent runs for the session and was told.
    interrupted: bool,
    /// The instance whose agent was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    /// Why nobody was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::new(
            "session.list",
            Read,
            "Lists sessions, newest first.",
            |primary, caller, params: ListParams| async move {
                let limit = params.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
                let sessions = primary.db(&caller).list_sessions(limit, params.offset).await.map_err(fault)?;
                Ok(List { sessions })
            },
        ),
        Method::new("session.get", Read, "Returns one session.", |primary, caller, params: Named| async move {
            find(&primary.db(&caller), params.id).await
        }),
        Method::new(
            "session.activate",
            Write,
            "Tells everyone that a session is now in front of the user.",
            |primary, caller, params: Named| async move {
                let session = find(&primary.db(&caller), params.id).await?;
                let payload = json!({"id": session.id});
                let seq = primary.publish(Topic::known(topic::SESSION_ACTIVATED), payload, session.id).await?;
                Ok(Activated { seq })
            },
        ),
        Method::new(
            "session.interrupt",
            Control,
            "Asks the agent that works on a session to stop.",
            |primary, caller, params: Named| async move {
                let session = find(&primary.db(&caller), params.id).await?;
                let Some(instance_id) = primary.shared.agents.running(&session.id) else {
                    let reason = Some("no agent runs for this session");
                    return Ok(InterruptAnswer { interrupted: false, instance_id: None, reason });
                };
                let payload = json!({"id": session.id, "instance_id": instance_id});
                primary.publish(Topic::known(topic::SESSION_INTERRUPT), payload, session.id).await?;
                Ok(InterruptAnswer { interrupted: true, instance_id: Some(instance_id), reason: None })
            },
        ),
    ]
}

/// Returns a session, or the fault that names it.
pub(super) async fn find(db: &Db, id: String) -> Result<Session, Fault> {
    let found = db.get_session(&id).await.map_err(fault)?;
    found.ok_or_else(|| Fault::new(Code::NotFound, format!("no session {id:?}; 'session.list' names them")))
}
