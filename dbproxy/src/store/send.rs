//! The write behind `message.send`: the row and the news of it, together.

use pando_ipc::{Fault, Topic, topic};
use serde_json::{Value, json};

use super::methods::METHODS;
use crate::named::Named;
use crate::refusal::invalid;
use crate::tx::Tx;

/// Its name.
pub(super) const NAME: &str = "SendMessage";

/// The write that stores the row.
const CREATE: &str = "CreateMessage";

/// Stores a message of one text and publishes `message.append`. Params are `{id, session_id, role, content}`, all strings; its result is the row.
pub(super) struct SendMessage;

impl Named for SendMessage {
    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault> {
        let text = |field: &str| {
            let found = params.get(field).and_then(Value::as_str);
            found.ok_or_else(|| invalid(NAME, &format!("params.{field}"), "expected a string"))
        };
        let (id, session_id, role, content) = (text("id")?, text("session_id")?, text("role")?, text("content")?);
        let parts = json!([{"type": "text", "text": content}]).to_string();
        let row = json!({"id": id, "session_id": session_id, "role": role, "parts": parts});
        let row = tx.named(CREATE, &row)?;
        let news = json!({"id": id, "session_id": session_id, "role": role, "content": content});
        tx.publish(Topic::known(topic::MESSAGE_APPEND), news, session_id);
        Ok(row)
    }

    fn to_wire(&self, value: &Value) -> Value {
        let create = METHODS.iter().find(|method| method.name == CREATE);
        create.map_or_else(|| value.clone(), |create| create.to_wire(value))
    }
}
