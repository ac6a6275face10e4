//! The journal of durable events, wherever it is read from.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{CallError, Client};
use crate::envelope::{Envelope, Timestamp};
use crate::hello::{HEAD, SINCE};
use crate::rpc::Json;
use crate::topic::Pattern;

/// A stretch of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Durable events in ascending order of `seq`, all later than the position that was asked for.
    pub events: Vec<Envelope>,
    /// Everything that was asked for up to this `seq` is in `events`: the next page begins behind it.
    pub upto: u64,
    /// `seq` of the journal's last event: when it is `upto`, this page is the last.
    pub head: u64,
    /// The database's own id: a position in another database means nothing in this one.
    #[serde(default)]
    pub database: Uuid,
    /// What can no longer be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync: Option<Resync>,
}

/// Events that are gone: whoever needs them reads the state anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// First `seq` that is gone.
    pub from: u64,
    /// Last `seq` that is gone.
    pub to: u64,
    /// Why, for people.
    pub reason: String,
}

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// There is no journal: the primary is an older one.
    #[error("the primary keeps no journal")]
    Unsupported,
    /// There is no file of the journal, or none yet.
    #[error("there is no journal here: {0}")]
    Absent(Box<dyn Error + Send + Sync>),
    /// The primary could not be asked.
    #[error("cannot read the journal from the primary: {0}")]
    Call(CallError),
    /// The primary's answer is no page.
    #[error("the primary's page of the journal is malformed: {0}")]
    Malformed(serde_json::Error),
    /// The file could not be read.
    #[error("cannot read the journal: {0}")]
    Storage(Box<dyn Error + Send + Sync>),
}

/// Reads the journal.
pub trait History: Send + Sync {
    /// Returns the events after position `after` that match any of the patterns: the oldest ones, at most `limit`.
    ///
    /// A page may be shorter than the limit, and even empty; it is the last when its `upto` is its `head`.
    /// The future may be dropped at any time.
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>>;

    /// Returns the `seq` of the last event before `time`, or of the last event of all; 0 when there is none.
    ///
    /// Of events that retention took, the last one counts as the first that is before anything.
    fn last_before(&self, time: Option<Timestamp>) -> BoxFuture<'_, Result<u64, HistoryError>>;
}

/// The journal as a file has it; where there is none, as the primary serves it.
pub struct LocalHistory {
    file: Arc<dyn History>,
    primary: RemoteHistory,
}

impl fmt::Debug for LocalHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalHistory").finish_non_exhaustive()
    }
}

impl LocalHistory {
    /// Returns the journal that `file` reads, or the one of the client's primary while that finds none.
    pub fn new(file: Arc<dyn History>, client: Client) -> Self {
        Self { file, primary: RemoteHistory(client) }
    }
}

impl History for LocalHistory {
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>> {
        Box::pin(async move {
            match self.file.since(after, patterns, limit).await {
                Err(HistoryError::Absent(_)) => self.primary.since(after, patterns, limit).await,
                read => read,
            }
        })
    }

    fn last_before(&self, time: Option<Timestamp>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            match self.file.last_before(time).await {
                Err(HistoryError::Absent(_)) => self.primary.last_before(time).await,
                read => read,
            }
        })
    }
}

/// The journal as the primary serves it (`events.since`).
#[derive(Debug, Clone)]
pub struct RemoteHistory(
    /// The client that asks.
    pub Client,
);

impl History for RemoteHistory {
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>> {
        Box::pin(async move {
            let page = self.ask(SINCE, &json!({"after": after, "topics": patterns, "limit": limit})).await?;
            page.read().map_err(HistoryError::Malformed)
        })
    }

    fn last_before(&self, time: Option<Timestamp>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            let head = self.ask(HEAD, &json!({"before": time})).await?;
            Ok(head.raw().member("seq").and_then(|seq| seq.read().ok()).unwrap_or_default())
        })
    }
}

impl RemoteHistory {
    /// Returns the answer as text: a payload in it may be nested deeper than a tree can be.
    async fn ask(&self, method: &str, params: &Value) -> Result<Json, HistoryError> {
        let deadline = Instant::now() + self.0.core.options.call_timeout;
        self.0.call_json(method, Json::of(params), deadline).await.map_err(|error| {
            if error.is_method_not_found() { HistoryError::Unsupported } else { HistoryError::Call(error) }
        })
    }
}
