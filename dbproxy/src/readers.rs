//! Local reads: a small pool of read-only connections, on every instance.

mod turns;

use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fnv::{FnvHashSet, FnvHasher};
use futures::future::BoxFuture;
use pando_ipc::client::{History, HistoryError, LONGEST_WAIT, Page};
use pando_ipc::cursor::Bookmark;
use pando_ipc::fault::Code;
use pando_ipc::{Fault, Pattern, Timestamp};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::coop::consume_budget;
use uuid::Uuid;

use crate::guard::{Guard, Mode};
use crate::incarnation::FileId;
use crate::journal;
use crate::params::Params;
use crate::read_only::ReadOnly;
use crate::refusal::{Word, from_sqlite, internal, message_of, refuse};
use crate::row::{Row, RowError};
use crate::run::{Limits, Ran, Runner};
use crate::schema::{self, STATEMENTS_KEPT, StoreError};
use crate::value::SqlValue;
use crate::write::Statement;
use turns::Turns;

/// How long a read waits for a lock; WAL readers wait only for a recovery.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that a read is to run on the caller's thread, which other tasks wait for; then it begins anew on a thread of its own. Nothing interrupts SQLite within
/// a function, or where it counts a whole table: a statement runs there once it has been seen to take no longer.
const INLINE_TIME: Duration = Duration::from_millis(1);
/// Statements that are known to be quick. When there are more, they are forgotten.
const MOST_QUICK: usize = 1_024;
/// Shortest and longest pause between two looks at the journal's head.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// How much one query may take. Beyond it the query fails with `E_TOO_LARGE`, or `E_DEADLINE` for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// Most rows.
    pub rows: usize,
    /// Most bytes, as JSON.
    pub bytes: usize,
    /// Longest run: a read transaction keeps the WAL from shrinking.
    pub time: Duration,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self { rows: 10_000, bytes: 8 << 20, time: Duration::from_secs(5) }
    }
}

/// The rows of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryResult {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<SqlValue>>,
}

impl QueryResult {
    /// Returns the rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row::new(&self.columns, values))
    }

    /// Reads each row by `row`.
    pub fn map<T>(&self, mut row: impl FnMut(&Row<'_>) -> Result<T, RowError>) -> Result<Vec<T>, RowError> {
        self.rows().map(|found| row(&found)).collect()
    }
}

/// Where the journal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the last event, 0 when there is none.
    pub seq: u64,
    /// The latest term.
    pub epoch: u64,
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// There is no database yet: no primary has opened it. Try again.
    #[error("database {path} is not there yet: {why}")]
    NotReady {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The read was refused, or SQLite failed.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// A row does not read as wanted.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The journal did not reach the wanted number in time.
    #[error("database is at event {head}, before {wanted}, and the wait is over")]
    Behind {
        /// The number waited for.
        wanted: u64,
        /// Where the journal stands.
        head: u64,
    },
    /// The runtime is shutting down, or the read panicked.
    #[error("the read was cut off: {0}")]
    CutOff(String),
}

impl History for Readers {
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>> {
        Box::pin(async move { Self::since(self, after, patterns, limit).await.map_err(HistoryError::from) })
    }

    fn last_before(&self, time: Option<Timestamp>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move { Self::last_before(self, time).await.map_err(HistoryError::from) })
    }
}

impl From<ReadError> for HistoryError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotReady { .. } => Self::Absent(Box::new(error)),
            error => Self::Storage(Box::new(error)),
        }
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::Refused(fault) => fault,
            ReadError::NotReady { .. } => refuse(Code::NotPrimary, Word::Unreachable, "query", text),
            ReadError::Behind { head, .. } => refuse(Code::Deadline, Word::Timeout, "query", text).with("head", head),
            ReadError::Row(why) => internal("query", why),
            ReadError::CutOff(_) => refuse(Code::Storage, Word::Internal, "query", text),
        }
    }
}

/// A pool of read-only connections. Clones share it. Opened when first used, and anew when the file, or its log, was replaced.
///
/// Whose reads they are is the [source](Readers::for_source); sources take turns at the connections.
#[derive(Debug, Clone)]
pub struct Readers {
    pool: Arc<Pool>,
    source: u64,
}

/// The source of this process's own reads.
const OWN: u64 = 0;

#[derive(Debug)]
struct Pool {
    path: PathBuf,
    /// Where its log is, while it has one.
    log: PathBuf,
    /// Who waits for one waits at most for one read of each other source, and those have time limits.
    turns: Turns,
    idle: Mutex<Vec<Reader>>,
    /// Hashes of statements that took no longer than [`INLINE_TIME`] when they last ran.
    quick: Mutex<FnvHashSet<u64>>,
}

#[derive(Debug)]
struct Reader {
    database: ReadOnly,
    guard: Guard,
    files: Files,
}

/// The files that a connection has open: the database, and its log where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Files {
    database: Option<FileId>,
    log: Option<FileId>,
}

impl Readers {
    /// Returns a pool of at most `count` connections to the database at `path`, which need not exist yet.
    pub fn open(path: impl Into<PathBuf>, count: usize) -> Self {
        let path = path.into();
        let (log, turns) = (schema::beside(&path, "-wal"), Turns::new(count));
        let pool = Pool { path, log, turns, idle: Mutex::default(), quick: Mutex::default() };
        Self { pool: Arc::new(pool), source: OWN }
    }

    /// Returns the same pool for the reads of `source`, such as a connection by its number; 0 is this process itself.
    ///
    /// Reads of one source wait for each other's turns, and for one turn of each other source.
    #[must_use]
    pub fn for_source(&self, source: u64) -> Self {
        Self { pool: Arc::clone(&self.pool), source }
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.pool.path
    }

    /// Closes the connections that nobody uses now: an open one keeps the WAL from being removed. The next read opens one anew.
    pub fn close_idle(&self) {
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs one statement that only reads, in a read transaction of its own.
    pub async fn query(
        &self,
        sql: impl Into<String>,
        params: impl Into<Params>,
        limits: QueryLimits,
    ) -> Result<QueryResult, ReadError> {
        let statement = Statement::new(sql, params);
        // Who reads on and on gives way now and then, as if each had been waited for.
        consume_budget().await;
        if let Some(result) = self.query_here(&statement, limits) {
            return result;
        }
        let pool = Arc::clone(&self.pool);
        self.with(move |reader| Ok(pool.query(reader, &statement, limits)?)).await
    }

    /// Runs it on this thread, unless it turns out to take its time, or something is to be waited for.
    ///
    /// For reads of this process: to hand one over and be woken takes longer than most of them. In a runtime of one thread everything else would wait.
    fn query_here(&self, statement: &Statement, limits: QueryLimits) -> Option<Result<QueryResult, ReadError>> {
        if self.source != OWN || Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread {
            return None;
        }
        if !self.pool.is_quick(statement) {
            return None;
        }
        let _turn = self.pool.turns.free()?;
        let reader = self.pool.idle().ok()?.ok()?;
        let wait = |time| reader.database.connection.busy_timeout(time).ok();
        wait(Duration::ZERO)?;
        let result = self.pool.query(&reader, statement, QueryLimits { time: limits.time.min(INLINE_TIME), ..limits });
        wait(BUSY_TIMEOUT)?;
        self.pool.put_back(reader).ok()?;
        let takes_time = matches!(&result, Err(fault) if fault.is(Code::Deadline) || fault.is(Code::Busy));
        (!takes_time).then(|| Ok(result?))
    }

    /// Checks that the schema is the one that this binary knows; for an instance that follows, and so does not migrate.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let path = self.path().to_owned();
        let checked = self.own(move |connection| Ok(schema::check_current(connection, &path))).await;
        // What cannot be read now is said by the first read that needs it.
        checked.unwrap_or(Ok(()))
    }

    /// Returns where the journal stands.
    pub async fn head(&self) -> Result<Head, ReadError> {
        self.own(|connection| journal::head(connection).map(|(seq, epoch)| Head { seq, epoch })).await
    }

    /// Returns the same without waiting for a connection: it blocks for one small read.
    pub fn head_now(&self) -> Result<Head, ReadError> {
        let reader = self.pool.take()?;
        let head = journal::head(&reader.database.connection);
        self.pool.put_back(reader)?;
        let (seq, epoch) = head.map_err(|error| ReadError::Refused(from_sqlite("query", &error, None)))?;
        Ok(Head { seq, epoch })
    }

    /// Returns the database's own id.
    pub async fn database(&self) -> Result<Uuid, ReadError> {
        self.own(schema::database_id).await
    }

    /// Returns the events after `after` that match any of the patterns: the oldest ones, at most `limit`.
    ///
    /// A page may be shorter than the limit, and even empty; it is the last when its `upto` is its `head`.
    pub async fn since(&self, after: u64, patterns: &[Pattern], limit: usize) -> Result<Page, ReadError> {
        let patterns = patterns.to_vec();
        self.own(move |connection| journal::since(connection, after, &patterns, limit)).await
    }

    /// Counts the events behind a place that match any of the patterns; `None` when its database is not this one.
    pub async fn unread(&self, bookmark: Bookmark, patterns: &[Pattern]) -> Result<Option<u64>, ReadError> {
        let patterns = patterns.to_vec();
        let count = move |connection: &Connection| {
            let is_here = schema::database_id(connection)? == bookmark.database;
            is_here.then(|| journal::count(connection, bookmark.seq, &patterns)).transpose()
        };
        match self.own(count).await {
            Err(ReadError::NotReady { .. }) => Ok(None),
            counted => counted,
        }
    }

    /// Returns the number of the last event before `time`, or of the last event of all; 0 when there is none.
    pub async fn last_before(&self, time: Option<Timestamp>) -> Result<u64, ReadError> {
        match time {
            Some(time) => self.own(move |connection| journal::last_before(connection, time)).await,
            None => Ok(self.head().await?.seq),
        }
    }

    /// Waits until reads here see the event `min_seq`. Returns where the journal stands then.
    pub async fn wait_for(&self, min_seq: u64, deadline: Instant) -> Result<u64, ReadError> {
        let deadline = tokio::time::Instant::from_std(deadline);
        let mut pause = POLL.0;
        loop {
            let head = self.head().await?.seq;
            if head >= min_seq {
                return Ok(head);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ReadError::Behind { wanted: min_seq, head });
            }
            tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + pause)).await;
            pause = (pause * 2).min(POLL.1);
        }
    }

    /// Runs our own SQL on a connection.
    pub(crate) async fn own<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        self.own_within(None, work).await
    }

    /// Runs our own SQL on a connection, interrupted after `limit`: what goes through the whole file takes long.
    pub(crate) async fn own_within<T: Send + 'static>(
        &self,
        limit: impl Into<Option<Duration>>,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let (path, limit) = (self.pool.path.clone(), limit.into());
        self.with(move |reader| {
            let done = match limit {
                None => work(&reader.database.connection),
                Some(limit) => {
                    reader.guard.run(Mode::Internal, Instant::now() + limit, || work(&reader.database.connection))
                }
            };
            done.map_err(|error| {
                let why = message_of(&error);
                // The file is made before it is migrated.
                if why.contains("no such table: _pando_") || matches!(error, rusqlite::Error::QueryReturnedNoRows) {
                    ReadError::NotReady { path, why }
                } else {
                    ReadError::Refused(from_sqlite("query", &error, None))
                }
            })
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let pool = Arc::clone(&self.pool);
        let permit = pool.turns.next(self.source).await.map_err(|why| ReadError::CutOff(why.to_string()))?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let reader = pool.take()?;
            let result = work(&reader);
            pool.put_back(reader)?;
            result
        });
        done.await.map_err(|why| ReadError::CutOff(why.to_string()))?
    }
}

impl Pool {
    /// Runs a statement, and notes whether it was quick.
    fn query(&self, reader: &Reader, statement: &Statement, limits: QueryLimits) -> Result<QueryResult, Fault> {
        let began = Instant::now();
        let runner = Runner {
            connection: &reader.database.connection,
            guard: &reader.guard,
            mode: Mode::Read,
            deadline: began + limits.time.min(LONGEST_WAIT),
            limits: Limits { rows: limits.rows, bytes: limits.bytes },
            method: "query",
        };
        let ran = runner.run(statement);
        self.note(statement, began.elapsed() <= INLINE_TIME);
        let Ran { columns, rows } = ran?;
        Ok(QueryResult { columns, rows })
    }

    fn is_quick(&self, statement: &Statement) -> bool {
        self.quick.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash(statement))
    }

    fn note(&self, statement: &Statement, is_quick: bool) {
        let mut quick = self.quick.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_quick {
            quick.remove(&hash(statement));
            return;
        }
        if quick.len() >= MOST_QUICK {
            quick.clear();
        }
        quick.insert(hash(statement));
    }

    /// Puts a connection back, for others to use. An error says that what it read is no state of the database.
    fn put_back(&self, reader: Reader) -> Result<(), ReadError> {
        if reader.database.is_frozen() {
            return reader.database.check().map_err(|error| ReadError::Refused(from_sqlite("query", &error, None)));
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        Ok(())
    }

    /// Returns an idle connection to the files that are at the path now, or those.
    fn idle(&self) -> io::Result<Result<Reader, Files>> {
        let files = Files { database: FileId::at(&self.path)?, log: FileId::at(&self.log)? };
        loop {
            match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                Some(reader) if reader.files == files => return Ok(Ok(reader)),
                Some(_replaced) => {}
                None => return Ok(Err(files)),
            }
        }
    }

    /// Returns an idle connection to the files that are at the path now, or a new one.
    fn take(&self) -> Result<Reader, ReadError> {
        let not_ready = |why: String| ReadError::NotReady { path: self.path.clone(), why };
        let files = match self.idle().map_err(|why| not_ready(why.to_string()))? {
            Ok(reader) => return Ok(reader),
            Err(files) => files,
        };
        let path = fs::canonicalize(&self.path).map_err(|why| not_ready(why.to_string()))?;
        connect(&path, files).map_err(|error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::CannotOpen) => not_ready(message_of(&error)),
            _ => ReadError::Refused(from_sqlite("query", &error, None)),
        })
    }
}

/// Returns a number for a statement's text. Two texts of one number are taken for one another, which costs time and nothing else.
fn hash(statement: &Statement) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(statement.sql.as_bytes());
    hasher.finish()
}

fn connect(path: &Path, files: Files) -> rusqlite::Result<Reader> {
    let mut database = ReadOnly::open(path)?;
    let connection = &mut database.connection;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // Large sorts go to a temporary file: in memory nothing would bound them.
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = FILE;")?;
    let guard = Guard::install(connection)?;
    Ok(Reader { database, guard, files })
}
