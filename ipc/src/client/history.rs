//! The journal of durable events, wherever it is read from.

use std::error::Error;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CallError, Client};
use crate::envelope::Envelope;
use crate::hello::SINCE;
use crate::topic::Pattern;

/// A stretch of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Durable events in ascending order of `seq`, all later than the position that was asked for.
    pub events: Vec<Envelope>,
    /// `seq` of the journal's last event. It was read no later than `events`: there is nothing between them and it
    /// but what the limit cut off.
    pub head: u64,
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
    /// A page may be shorter than the limit; it is the last when it is empty or its last event is the head.
    /// The future may be dropped at any time.
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>>;
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
            let params = json!({"after": after, "topics": patterns, "limit": limit});
            match self.0.call(SINCE, params).await {
                Ok(page) => serde_json::from_value(page).map_err(HistoryError::Malformed),
                Err(error) if error.is_method_not_found() => Err(HistoryError::Unsupported),
                Err(error) => Err(HistoryError::Call(error)),
            }
        })
    }
}
