//! The one handle of an application: local reads, writes that find the primary by themselves.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pando_ipc::Topic;
use pando_ipc::fault::Code;
use serde_json::Value;
use uuid::Uuid;

use crate::deliver::{Route, WriteError, deliver_until_answered};
use crate::readers::{QueryLimits, QueryResult, ReadError, Readers};
use crate::write::{Ack, DEFAULT_TIMEOUT, Params, Statement, Work, WriteRequest};

/// How a [`Db`] reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbOptions {
    /// How long a write is tried.
    pub timeout: Duration,
    /// How much a query may take.
    pub limits: QueryLimits,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, limits: QueryLimits::default() }
    }
}

/// The database as an application sees it: the same on primary and secondary. Clones share everything.
///
/// After an acknowledgement, later reads through any `Db` of this host see the write.
#[derive(Clone)]
pub struct Db(Arc<Shared>);

struct Shared {
    readers: Readers,
    route: Route,
    source: String,
    options: DbOptions,
    client: Uuid,
    counter: AtomicU64,
    /// The database that writes are meant for, once it is known.
    database: Mutex<Option<Uuid>>,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("path", &self.0.readers.path())
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl Db {
    /// Returns a handle that reads from `readers` and writes along `route`; `source` is the instance's id.
    pub fn new(readers: Readers, route: Route, source: impl Into<String>, options: DbOptions) -> Self {
        Self(Arc::new(Shared {
            readers,
            route,
            source: source.into(),
            options,
            client: Uuid::now_v7(),
            counter: AtomicU64::new(0),
            database: Mutex::default(),
        }))
    }

    /// Returns the connections by which this handle reads.
    pub fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Returns the same handle with other options.
    #[must_use]
    pub fn with_options(&self, options: DbOptions) -> Self {
        let Shared { readers, route, source, .. } = &*self.0;
        Self::new(readers.clone(), route.clone(), source.clone(), options)
    }

    /// Runs statements that change rows; they commit together or not at all.
    pub async fn exec(&self, statements: Vec<Statement>) -> Result<Ack, WriteError> {
        self.write(Work::Exec { statements, ddl: false }).await
    }

    /// Runs one statement that changes rows.
    pub async fn execute(&self, sql: impl Into<String>, params: impl Into<Params>) -> Result<Ack, WriteError> {
        self.exec(vec![Statement::new(sql, params)]).await
    }

    /// Runs statements that may change the schema; they commit together or not at all.
    pub async fn exec_ddl(&self, statements: Vec<Statement>) -> Result<Ack, WriteError> {
        self.write(Work::Exec { statements, ddl: true }).await
    }

    /// Runs a write of the agent store. Returns its row, or null.
    pub async fn named(&self, method: &str, params: &Value) -> Result<Value, WriteError> {
        Ok(self.write(Work::named(method, params)?).await?.results)
    }

    /// Appends an event to the journal; `session_id` may be empty. Returns its `seq`.
    pub async fn publish(&self, topic: Topic, payload: Value, session_id: &str) -> Result<u64, WriteError> {
        let (session_id, project_id) = (session_id.to_owned(), String::new());
        Ok(self.write(Work::Publish { topic, payload, session_id, project_id }).await?.seq)
    }

    /// Runs one statement that only reads, on this host.
    pub async fn query(&self, sql: impl Into<String>, params: impl Into<Params>) -> Result<QueryResult, ReadError> {
        self.0.readers.query(sql, params, self.0.options.limits).await
    }

    /// Runs a query that sees the event `min_seq`; waits for it at most as long as a write is tried.
    pub async fn query_at(
        &self,
        min_seq: u64,
        sql: impl Into<String>,
        params: impl Into<Params>,
    ) -> Result<QueryResult, ReadError> {
        self.0.readers.wait_for(min_seq, Instant::now() + self.0.options.timeout).await?;
        self.query(sql, params).await
    }

    /// Brings any write to the primary, under a new op id, until it is answered or its time is over.
    pub async fn write(&self, work: Work) -> Result<Ack, WriteError> {
        let op_id = format!("{}-{}", self.0.client, self.0.counter.fetch_add(1, Ordering::Relaxed));
        self.write_as(op_id, work).await
    }

    /// The same under an op id that the caller chose: a later call with it tells what became of the write.
    pub async fn write_as(&self, op_id: String, work: Work) -> Result<Ack, WriteError> {
        let deadline = Instant::now() + self.0.options.timeout;
        let request = WriteRequest::new(op_id, self.0.source.clone(), deadline, work)?;
        let request = request.for_database(self.database().await);
        let answer = deliver_until_answered(request, self.0.route.clone()).await;
        if matches!(&answer, Err(WriteError::Refused(fault)) if fault.is(Code::WrongDatabase)) {
            // The file was replaced. This write stays refused; the next one is meant for the new database.
            *self.0.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }

    /// Returns the database that writes are meant for, unless there is none yet.
    async fn database(&self) -> Option<Uuid> {
        let known = *self.0.database.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return known;
        }
        let found = self.0.readers.database().await.ok();
        *self.0.database.lock().unwrap_or_else(PoisonError::into_inner) = found;
        found
    }
}
