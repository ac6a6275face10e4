//! How an application publishes.

use std::sync::Arc;

use pando_dbproxy::{WriteError, check_payload};
use pando_ipc::client::CallError;
use pando_ipc::hello::PUBLISH;
use pando_ipc::rpc::Json;
use pando_ipc::{Topic, TopicError};
use serde::Serialize;

use super::Shared;

/// The params of `events.publish` for an event that skips the journal.
#[derive(Serialize)]
struct Ephemeral<'a> {
    topic: Topic,
    payload: Json,
    session_id: &'a str,
    durable: bool,
}

/// Publishes events in the name of this instance. A cheap handle.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

/// Why an event was not published, or not surely.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The topic is none.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A durable event was not journaled, or not surely.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// An ephemeral event did not reach the primary.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Events {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Publishes an event and returns its `seq`; a topic that is ephemeral has none.
    ///
    /// A durable event is journaled exactly once, whatever dies, when this returns `Ok`. An ephemeral one (see [`Topic::is_ephemeral`]) goes out at once
    /// and may be lost. A payload of more than 2 MiB, or nested deeper than 100 levels, is refused with `E_TOO_LARGE`.
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Json>,
        session_id: &str,
    ) -> Result<Option<u64>, PublishError> {
        let (topic, payload) = (Topic::new(topic)?, payload.into());
        if topic.is_ephemeral() {
            check_payload(&payload).map_err(CallError::Refused)?;
            let params = Ephemeral { topic, payload, session_id, durable: false };
            self.0.routes.notify(PUBLISH, Json::of(&params)).await?;
            return Ok(None);
        }
        Ok(Some(self.0.db.publish(topic, payload, session_id).await?))
    }
}
