//! The one handle of an application: local reads, writes that find the primary by themselves.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pando_ipc::client::LONGEST_WAIT;
use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use pando_ipc::{Fault, Topic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::batch::Batch;
use crate::client::Client;
use crate::deliver::{Route, WriteError, deliver_until_answered};
use crate::named::{NameTaken, Writes};
use crate::op::OpId;
use crate::params::Params;
use crate::readers::{QueryLimits, ReadError, Readers};
use crate::refusal::internal;
use crate::row::{Row, RowError};
use crate::tx::Tx;
use crate::write::{Ack, DEFAULT_TIMEOUT, Outcome, Statement, StatementResult, Work, WriteRequest};

/// How a [`Db`] reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbOptions {
    /// How long a write is tried.
    pub timeout: Duration,
    /// How much a query may take.
    pub limits: QueryLimits,
}

impl DbOptions {
    fn bounded(self) -> Self {
        Self { timeout: self.timeout.min(LONGEST_WAIT), ..self }
    }
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
pub struct Db {
    readers: Readers,
    shared: Arc<Shared>,
}

struct Shared {
    route: Route,
    writes: Writes,
    source: String,
    options: DbOptions,
    client: Client,
    /// What writes are meant for, once it is known.
    target: Mutex<Target>,
}

/// What writes are meant for.
#[derive(Debug, Clone, Copy, Default)]
struct Target {
    database: Option<Uuid>,
    /// The latest term known.
    epoch: u64,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("path", &self.readers.path())
            .field("source", &self.shared.source)
            .finish_non_exhaustive()
    }
}

impl Db {
    /// Returns a handle that reads from `readers` and writes along `route`; `source` is the instance's id, `writes` what it knows by name.
    pub fn new(readers: Readers, route: Route, writes: Writes, source: impl Into<String>, options: DbOptions) -> Self {
        let shared = Shared {
            route,
            writes,
            source: source.into(),
            options: options.bounded(),
            client: Client::default(),
            target: Mutex::default(),
        };
        Self { readers, shared: Arc::new(shared) }
    }

    /// Returns the connections by which this handle reads.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Returns the same handle with other options.
    #[must_use]
    pub fn with_options(&self, options: DbOptions) -> Self {
        let Shared { route, writes, source, client, .. } = &*self.shared;
        let (route, writes, source) = (route.clone(), writes.clone(), source.clone());
        let (client, target) = (client.clone(), Mutex::default());
        let shared = Shared { route, writes, source, options: options.bounded(), client, target };
        Self { readers: self.readers.clone(), shared: Arc::new(shared) }
    }

    /// Returns the same handle with reads that take the turns of `source`, see [`Readers::for_source`].
    #[must_use]
    pub fn for_source(&self, source: u64) -> Self {
        Self { readers: self.readers.for_source(source), shared: Arc::clone(&self.shared) }
    }

    /// Runs one statement that changes rows. `results` of the answer tells how many, the row id, and what RETURNING returned.
    pub async fn execute(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
    ) -> Result<Ack<StatementResult>, WriteError> {
        let Ack { seq, epoch, durability, mut results, replayed } =
            self.exec(vec![Statement::new(sql, params)]).await?;
        let results = results.pop().ok_or_else(|| internal("exec", "the primary's answer tells of no statement"))?;
        Ok(Ack { seq, epoch, durability, results, replayed })
    }

    /// Runs statements that commit or fail together; `results` of the answer has one entry for each.
    pub async fn transaction(&self, batch: Batch) -> Result<Ack<Vec<StatementResult>>, WriteError> {
        self.exec(batch.into_statements()).await
    }

    async fn exec(&self, statements: Vec<Statement>) -> Result<Ack<Vec<StatementResult>>, WriteError> {
        let ack = self.write(Work::Exec { statements, ddl: false }).await?;
        Ok(ack.typed().map_err(|why| internal("exec", format!("the primary's answer is malformed: {why}")))?)
    }

    /// Runs statements that may change the schema; they commit together or not at all.
    pub async fn exec_ddl(&self, statements: Vec<Statement>) -> Result<Ack, WriteError> {
        self.write(Work::Exec { statements, ddl: true }).await
    }

    /// Registers a named write with this process, see [`Writes::register`].
    ///
    /// An instance that leads refuses names it does not know: programs that join a workdir give their writes to `Options::writes` before they join.
    pub fn register<P, R, F>(&self, name: impl Into<String>, write: F) -> Result<(), NameTaken>
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(&Tx<'_>, P) -> Result<R, Fault> + Send + Sync + 'static,
    {
        self.shared.writes.register(name, write)
    }

    /// Runs a named write on the primary: one of the agent store, or a registered one. Returns its result.
    pub async fn named(&self, name: &str, params: &Value) -> Result<Value, WriteError> {
        let ack = self.write(self.shared.writes.work(name, params)?).await?.typed();
        Ok(ack.map_err(|why| internal(name, format!("the primary's answer is malformed: {why}")))?.results)
    }

    /// Appends an event to the journal; `session_id` may be empty. Returns its `seq`.
    pub async fn publish(&self, topic: Topic, payload: impl Into<Json>, session_id: &str) -> Result<u64, WriteError> {
        let payload = payload.into();
        let (session_id, project_id) = (session_id.to_owned(), String::new());
        Ok(self.write(Work::Publish { topic, payload, session_id, project_id }).await?.seq)
    }

    /// Runs one statement that only reads, on this host, and reads each row by `row`.
    pub async fn query<T>(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
        row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Vec<T>, ReadError> {
        Ok(self.readers.query(sql, params, self.shared.options.limits).await?.map(row)?)
    }

    /// Runs one statement that only reads and reads its first row by `row`; `None` when there is none.
    pub async fn query_one<T>(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
        mut row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Option<T>, ReadError> {
        let result = self.readers.query(sql, params, self.shared.options.limits).await?;
        Ok(result.rows().next().map(|first| row(&first)).transpose()?)
    }

    /// Waits until reads here see the event `min_seq`, and returns the handle that does: from then on it always will.
    ///
    /// Waits at most as long as a write is tried; then it is [`ReadError::Behind`], which says how far the database came.
    pub async fn read_at(&self, min_seq: u64) -> Result<ReadAt, ReadError> {
        let seq = self.readers.wait_for(min_seq, Instant::now() + self.shared.options.timeout).await?;
        Ok(ReadAt { db: self.clone(), seq })
    }

    /// Brings any write to the primary, under a new op id, until it is answered or its time is over.
    pub async fn write(&self, work: Work) -> Result<Ack, WriteError> {
        let begun = self.shared.client.begin();
        let answer = self.deliver(begun.op_id(), begun.acked, work).await;
        if matches!(answer, Err(WriteError::Unknown { .. })) {
            begun.leave_open();
        }
        answer
    }

    /// The same under an op id that the caller chose, or that [`WriteError::Unknown`] named: the same write under it applies once.
    pub async fn write_as(&self, op_id: &str, work: Work) -> Result<Ack, WriteError> {
        let op_id = OpId::parse(op_id);
        let answer = self.deliver(op_id.clone(), 0, work).await;
        if !matches!(answer, Err(WriteError::Unknown { .. } | WriteError::NotSent { .. })) {
            self.shared.client.close(&op_id);
        }
        answer
    }

    /// Tells what became of a write whose answer never came. After [`Outcome::NotApplied`] it is certain that it never will be applied.
    pub async fn outcome(&self, op_id: &str) -> Result<Outcome, WriteError> {
        let ack = self.write_as(op_id, Work::Settle).await?;
        let read =
            ack.typed().map_err(|why| internal("outcome", format!("the primary's answer is malformed: {why}")))?;
        Ok(read.results)
    }

    async fn deliver(&self, op_id: OpId, acked: u64, work: Work) -> Result<Ack, WriteError> {
        let deadline = Instant::now() + self.shared.options.timeout;
        let Target { database, epoch } = self.target().await;
        let request = WriteRequest::new(op_id, self.shared.source.clone(), deadline, work)?;
        let request = request.meant_for(database, epoch).acked(acked);
        let answer = deliver_until_answered(request, self.shared.route.clone()).await;
        match &answer {
            Ok(ack) => {
                let mut target = self.lock_target();
                target.epoch = target.epoch.max(ack.epoch);
            }
            // The file was replaced. This write stays refused; the next one is meant for the new database.
            Err(WriteError::Refused(fault)) if fault.is(Code::WrongDatabase) => *self.lock_target() = Target::default(),
            Err(_) => {}
        }
        answer
    }

    /// Returns what writes are meant for; any database and term while there is none yet.
    async fn target(&self) -> Target {
        let known = *self.lock_target();
        if known.database.is_some() {
            return known;
        }
        let read = futures::future::try_join(self.readers.database(), self.readers.head()).await;
        let found =
            read.map_or_else(|_| known, |(database, head)| Target { database: Some(database), epoch: head.epoch });
        *self.lock_target() = found;
        found
    }

    fn lock_target(&self) -> MutexGuard<'_, Target> {
        self.shared.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads that see everything up to an event, see [`Db::read_at`].
#[derive(Debug, Clone)]
pub struct ReadAt {
    db: Db,
    seq: u64,
}

impl ReadAt {
    /// Returns the number of the last event that was there when the wait ended: all reads see it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The same as [`Db::query`].
    pub async fn query<T>(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
        row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Vec<T>, ReadError> {
        self.db.query(sql, params, row).await
    }

    /// The same as [`Db::query_one`].
    pub async fn query_one<T>(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
        row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Option<T>, ReadError> {
        self.db.query_one(sql, params, row).await
    }
}
