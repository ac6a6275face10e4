//! Tests of the parts together, on real files and threads.

mod attacks;
mod batches;
mod copies;
mod crash;
mod delivery;
mod events;
mod guards;
mod migrations;
mod model;
mod named;
mod outcome;
mod reads;
mod standby;
mod steps;
mod store;
mod typed;
mod writes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pando_ipc::rpc::Json;
use pando_ipc::{Envelope, Fault, Pattern, Recorded};
use serde_json::{Value, json};

use crate::writer::Tuning;
use crate::{
    Ack, Durability, OpId, QueryLimits, Readers, Statement, Work, WriteRequest, Writer, WriterOptions, Writes,
};

/// A workdir with its database; the writer's commits are seen in `events`.
struct Bench {
    dir: tempfile::TempDir,
    events: Arc<Mutex<Vec<Arc<Envelope>>>>,
}

fn fresh_op() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn exec(sql: &[&str]) -> Work {
    Work::Exec { statements: sql.iter().map(|sql| Statement::new(*sql, ())).collect(), ddl: false }
}

fn ddl(sql: &[&str]) -> Work {
    Work::Exec { statements: sql.iter().map(|sql| Statement::new(*sql, ())).collect(), ddl: true }
}

fn named(method: &str, params: &Value) -> Work {
    Writes::new().work(method, params).unwrap()
}

fn session(id: &str) -> Work {
    named("CreateSession", &session_params(id))
}

fn session_params(id: &str) -> Value {
    json!({"id": id, "title": "t", "message_count": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0})
}

fn message(id: &str, session: &str) -> Work {
    named("CreateMessage", &json!({"id": id, "session_id": session, "role": "user", "parts": "[]"}))
}

/// Reads what is text.
fn tree(json: &Json) -> Value {
    json.read().unwrap()
}

fn request(op_id: &str, work: Work) -> WriteRequest {
    WriteRequest::new(OpId::parse(op_id), "inst-A".into(), Instant::now() + Duration::from_secs(20), work).unwrap()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".pando")).unwrap();
        Self { dir, events: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(".pando/pando.db")
    }

    fn options(&self) -> WriterOptions {
        let events = Arc::clone(&self.events);
        let mut options = WriterOptions::new("inst-A", "/w");
        options.durability = Some(Durability::Os);
        options.on_commit = Box::new(move |new| events.lock().unwrap().extend(new.iter().map(Recorded::envelope)));
        options
    }

    fn writer(&self) -> Writer {
        Writer::open(&self.path(), self.options()).unwrap()
    }

    fn tuned(&self, tuning: Tuning) -> Writer {
        Writer::open_with(&self.path(), self.options(), tuning).unwrap()
    }

    fn readers(&self) -> Readers {
        Readers::open(self.path(), 2)
    }

    /// The value in the first column of the first row, read locally.
    async fn value(&self, sql: &str) -> Value {
        let result = self.readers().query(sql, (), QueryLimits::default()).await.unwrap();
        result.rows[0][0].to_json()
    }

    /// `topic key` of every committed event that has a key, else its topic.
    /// Returns the events of rows and those that were published, without the summaries of writes.
    fn seen(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let events = events.iter().filter(|event| event.topic.as_str() != "db.changed");
        let line = |event: &Arc<Envelope>| match event.payload.read::<Value>().unwrap()["payload"]["key"].as_str() {
            Some(key) => format!("{} {key}", event.topic),
            None => event.topic.to_string(),
        };
        events.map(line).collect()
    }

    fn forget(&self) {
        self.events.lock().unwrap().clear();
    }

    /// Checks that the journal is dense from 1, that `prev` is right, and that the observer saw just these events.
    async fn check_journal(&self) -> u64 {
        let readers = self.readers();
        let head = readers.head().await.unwrap().seq;
        let all = [Pattern::All];
        let mut last = std::collections::HashMap::new();
        let (mut after, mut epoch) = (0, 0);
        while after < head {
            let page = readers.since(after, &all, 1_000).await.unwrap();
            assert_eq!(page.resync, None);
            for event in page.events {
                after += 1;
                assert_eq!(event.seq, Some(after), "the journal is dense");
                let prev = last.insert(event.topic.clone(), after).unwrap_or(0);
                assert_eq!(event.prev, Some(prev), "prev of {after} on {}", event.topic);
                assert!(event.epoch.unwrap() >= epoch);
                epoch = event.epoch.unwrap();
            }
        }
        let seen: Vec<_> = self.events.lock().unwrap().iter().map(|event| event.seq.unwrap()).collect();
        assert!(seen.windows(2).all(|pair| pair[0] + 1 == pair[1]), "the observer saw {seen:?}");
        assert!(seen.last().is_none_or(|last| *last == head));
        head
    }
}

async fn submit(writer: &Writer, work: Work) -> Result<Ack, Fault> {
    writer.submit(request(&fresh_op(), work)).await
}

async fn apply(writer: &Writer, work: Work) -> Ack {
    submit(writer, work).await.unwrap()
}
