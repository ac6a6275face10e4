//! A follower that notes what it sees, and starts again where it was.

use std::sync::Arc;

use pando_dbproxy::Readers;
use pando_ipc::client::{Client, Followed, Follower, History, LocalHistory, RemoteHistory, Since};
use pando_ipc::{Kind, Pattern, Workdir};
use serde_json::json;
use tokio::sync::watch;

use crate::{Scale, client};

/// A follower and what it has seen.
pub(crate) struct Observer {
    index: usize,
    workdir: Workdir,
    patterns: Vec<Pattern>,
    scale: Scale,
    seen: Vec<u64>,
}

impl Observer {
    pub(crate) fn new(index: usize, workdir: Workdir, patterns: Vec<Pattern>, scale: Scale) -> Self {
        Self { index, workdir, patterns, scale, seen: Vec::new() }
    }

    /// Every second one asks the primary for the journal instead of reading the file.
    fn history(&self, client: &Client) -> Arc<dyn History> {
        if self.index.is_multiple_of(2) {
            let file = Arc::new(Readers::open(self.workdir.database_path(), 1));
            Arc::new(LocalHistory::new(file, client.clone()))
        } else {
            Arc::new(RemoteHistory(client.clone()))
        }
    }

    /// Follows from the start to the last event published, with all its restarts. Returns its index and the numbers it saw.
    pub(crate) async fn follow(mut self, mut published: watch::Receiver<u64>) -> (usize, Vec<u64>) {
        let mut position = 0;
        for life in 0..=self.scale.restarts {
            let client = client(&self.workdir, &format!("observer-{}-{life}", self.index), Kind::Observer);
            let history = self.history(&client);
            let mut follower = client.follow(self.patterns.clone(), Since::Seq(position), history);
            if life == self.scale.restarts {
                self.follow_to_the_end(&client, &mut follower, &mut published).await;
            } else {
                // It stops in the midst of the stream, at another place than the others.
                let due = (life + 1) * self.scale.events / (self.scale.restarts + 1) + self.index as u64 * 7;
                self.follow_until(&mut follower, &published, due).await;
            }
            position = follower.position();
            client.close().await;
        }
        (self.index, self.seen)
    }

    async fn follow_until(&mut self, follower: &mut Follower, published: &watch::Receiver<u64>, due: u64) {
        while *published.borrow() < due.min(self.scale.events) {
            let item = tokio::time::timeout(crate::PATIENCE, follower.recv()).await;
            self.note(item.unwrap_or_else(|_| panic!("{} got nothing, at {}", self.index, follower.position())));
        }
    }

    async fn follow_to_the_end(
        &mut self,
        client: &Client,
        follower: &mut Follower,
        published: &mut watch::Receiver<u64>,
    ) {
        // The slow one takes nothing until all is published: its inbox overflows.
        let mut reading = self.index != 1;
        let mut end = None;
        while end.is_none() {
            let over = async { published.wait_for(|count| *count >= self.scale.events).await.map(drop) };
            let is_over = tokio::select! {
                item = follower.recv(), if reading => {
                    self.note(item);
                    false
                }
                over = over => over.is_ok(),
            };
            if is_over {
                reading = true;
                let head = client.call("events.head", json!({})).await.expect("somebody leads");
                end = head["seq"].as_u64();
            }
        }
        while let Some(item) = follower.recv_upto(end.unwrap_or_default()).await {
            self.note(Some(item));
        }
    }

    fn note(&mut self, item: Option<Followed>) {
        match item {
            Some(Followed::Event(event)) => self.seen.extend(event.seq),
            Some(Followed::Lagged(_)) => {}
            other => panic!("follower {} got {other:?}", self.index),
        }
    }
}
