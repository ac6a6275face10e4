//! The journal in the database file, as a follower reads it.

use futures::future::BoxFuture;
use pando_dbproxy::Readers;
use pando_ipc::Pattern;
use pando_ipc::client::{History, HistoryError, Page, Resync};

/// Reads the journal without asking the primary.
pub(super) struct Journal(pub(super) Readers);

impl History for Journal {
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>> {
        Box::pin(async move {
            let page = self.0.since(after, patterns, limit).await;
            let page = page.map_err(|error| HistoryError::Storage(Box::new(error)))?;
            let resync = page.resync.map(|gap| Resync { from: gap.from, to: gap.to, reason: gap.reason });
            Ok(Page { events: page.events, head: page.head, resync })
        })
    }
}
