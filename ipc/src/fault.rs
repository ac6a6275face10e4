//! What a refused call says: JSON-RPC codes and our own.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// JSON-RPC: the body is not JSON.
pub const PARSE_ERROR: i64 = -32700;
/// JSON-RPC: the body is JSON but no request.
pub const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC: no such method.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC: the params do not fit the method.
pub const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC: the handler failed.
pub const INTERNAL: i64 = -32603;
/// Ours: see `data.code`.
pub const APPLICATION: i64 = -32000;

/// The codes of our own faults, as they stand in `data.code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The instance asked is not the primary, or no longer accepts writes.
    NotPrimary,
    /// A newer primary exists; this one steps down.
    Fenced,
    /// A limit on calls in flight is reached.
    Busy,
    /// The writer's queue is full.
    BusyQueue,
    /// The same op id came with another request.
    KeyReused,
    /// What became of the op can no longer be told.
    OutcomeUnknown,
    /// The op was settled as not applied.
    Abandoned,
    /// The request names another database.
    WrongDatabase,
    /// SQLite refused a statement.
    Sql,
    /// A constraint (UNIQUE, FOREIGN KEY, ..) refused a write.
    Conflict,
    /// The statement is not allowed from outside.
    Forbidden,
    /// The thing named does not exist.
    NotFound,
    /// The request's deadline passed before it was executed; nothing was applied.
    Deadline,
    /// A size limit is exceeded.
    TooLarge,
    /// The peer may not do this.
    PeerUnauthorized,
    /// The protocol versions do not fit.
    Version,
    /// The disk or the file system refused.
    Storage,
}

impl Code {
    /// Returns the code as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotPrimary => "E_NOT_PRIMARY",
            Self::Fenced => "E_FENCED",
            Self::Busy => "E_BUSY",
            Self::BusyQueue => "E_BUSY_QUEUE",
            Self::KeyReused => "E_KEY_REUSED",
            Self::OutcomeUnknown => "E_OUTCOME_UNKNOWN",
            Self::Abandoned => "E_ABANDONED",
            Self::WrongDatabase => "E_WRONG_DATABASE",
            Self::Sql => "E_SQL",
            Self::Conflict => "E_CONFLICT",
            Self::Forbidden => "E_FORBIDDEN",
            Self::NotFound => "E_NOT_FOUND",
            Self::Deadline => "E_DEADLINE",
            Self::TooLarge => "E_TOO_LARGE",
            Self::PeerUnauthorized => "E_PEER_UNAUTHORIZED",
            Self::Version => "E_VERSION",
            Self::Storage => "E_STORAGE",
        }
    }

    /// Tells whether the same request may succeed when it is sent again; nothing was applied.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::NotPrimary | Self::Fenced | Self::Busy | Self::BusyQueue)
    }
}

/// A refusal: the error object of a JSON-RPC answer. What was refused was not applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub struct Fault {
    /// JSON-RPC error code; -32000 for ours.
    pub code: i64,
    /// What went wrong and with what, for people.
    pub message: String,
    /// `{ "code": "E_…", "retryable": bool, … }` for ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Fault {
    /// Returns a fault of ours.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let data = json!({"code": code.as_str(), "retryable": code.is_retryable()});
        Self { code: APPLICATION, message: message.into(), data: Some(data) }
    }

    /// Returns the fault with one more key in `data`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let data = self.data.get_or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(map) = data {
            map.insert(key.to_owned(), value.into());
        }
        self
    }

    fn standard(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// Returns the answer to a body that is not JSON.
    pub fn parse_error(why: impl fmt::Display) -> Self {
        Self::standard(PARSE_ERROR, format!("ipc: parse error: {why}"))
    }

    /// Returns the answer to JSON that is no request.
    pub fn invalid_request(why: impl fmt::Display) -> Self {
        Self::standard(INVALID_REQUEST, format!("ipc: invalid request: {why}"))
    }

    /// Returns the answer to a method that nobody registered. Older clients look for the text "ipc: method not found".
    pub fn method_not_found(method: &str) -> Self {
        Self::standard(METHOD_NOT_FOUND, "ipc: method not found").with("method", method)
    }

    /// Returns the answer to params that do not fit: `field` is the path of the field, or empty for the whole.
    pub fn invalid_params(field: &str, why: impl fmt::Display) -> Self {
        let message = match field {
            "" | "." => format!("ipc: invalid params: {why}"),
            field => format!("ipc: invalid params: {field}: {why}"),
        };
        Self::standard(INVALID_PARAMS, message).with("field", field)
    }

    /// Returns the answer of a handler that failed by a fault of ours.
    pub fn internal(why: impl fmt::Display) -> Self {
        Self::standard(INTERNAL, format!("ipc: internal error: {why}"))
    }

    /// Returns `data.code`, when it is there.
    pub fn own_code(&self) -> Option<&str> {
        self.data.as_ref()?.get("code")?.as_str()
    }

    /// Tells whether this is a fault of ours with that code.
    pub fn is(&self, code: Code) -> bool {
        self.own_code() == Some(code.as_str())
    }

    /// Tells whether no such method exists; older servers say so in the text alone.
    pub fn is_method_not_found(&self) -> bool {
        self.code == METHOD_NOT_FOUND || self.message.contains("ipc: method not found")
    }

    /// Tells whether the same request may succeed when it is sent again.
    pub fn is_retryable(&self) -> bool {
        self.data.as_ref().and_then(|data| data.get("retryable")).and_then(Value::as_bool).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_ours_names_its_code_and_whether_to_retry() {
        let fault = Fault::new(Code::Fenced, "epoch 4 is over").with("epoch", 5);
        let wire =
            r#"{"code":-32000,"message":"epoch 4 is over","data":{"code":"E_FENCED","retryable":true,"epoch":5}}"#;
        assert_eq!(serde_json::to_string(&fault).unwrap(), wire);
        assert!(fault.is(Code::Fenced) && fault.is_retryable());
    }

    #[test]
    fn an_unknown_method_is_known_by_code_or_text() {
        assert!(Fault::method_not_found("x").is_method_not_found());
        let older = Fault { code: -32000, message: "ipc: method not found: x".into(), data: None };
        assert!(older.is_method_not_found());
    }
}
