//! `message.*`: what is said in a session.

use pando_dbproxy::Querier;
use pando_dbproxy::store::Message;
use pando_ipc::access::Capability::{Read, Write};
use pando_ipc::rpc::Json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Method;
use super::db::fault;
use super::session::find;

/// What `message.send` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Send {
    /// The session it belongs to.
    session_id: String,
    /// Its text.
    content: String,
    /// Who speaks: `user` when left out.
    role: Option<String>,
    /// The message's id; a new one when left out.
    id: Option<String>,
    /// Makes a repeated call store the message once.
    op_id: Option<String>,
}

/// Whether an agent will answer.
#[derive(Debug, Serialize, JsonSchema)]
struct Agent {
    running: bool,
    /// The instance it runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    /// What that means when none runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// What `message.send` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Sent {
    #[schemars(with = "Value")]
    message: Json,
    /// Number of the event `message.append`.
    seq: u64,
    agent: Agent,
}

/// What `message.list` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct ListParams {
    session_id: String,
}

/// What `message.list` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct List {
    /// Oldest first.
    messages: Vec<Message>,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::new(
            "message.send",
            Write,
            "Stores a message and tells everyone.",
            |primary, caller, params: Send| async move {
                let session = find(&primary.db(&caller), params.session_id).await?;
                let op_id = params.op_id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
                // A repeated call makes the same id of the same op id, so it is the same request.
                let id = params.id.unwrap_or_else(|| op_id.clone());
                let role = params.role.unwrap_or_else(|| "user".to_owned());
                let row = json!({"id": id, "session_id": session.id, "role": role, "content": params.content});
                let work = primary.shared.options.writes.work("SendMessage", &row)?;
                let stored = primary.write(primary.name_of(&caller), Some(op_id), work).await?;
                let running = primary.shared.agents.running(&session.id);
                let note =
                    running.is_none().then_some("no agent runs for this session: the message waits until one starts");
                Ok(Sent {
                    message: stored.results,
                    seq: stored.seq,
                    agent: Agent { running: running.is_some(), instance_id: running, note },
                })
            },
        ),
        Method::new(
            "message.list",
            Read,
            "Lists the messages of a session.",
            |primary, caller, params: ListParams| async move {
                let db = primary.db(&caller);
                let session = find(&db, params.session_id).await?;
                let messages = db.list_messages_by_session(&session.id).await.map_err(fault)?;
                Ok(List { messages })
            },
        ),
    ]
}
