//! What the checks look at, gathered once.

use std::time::Duration;

use pando_dbproxy::catalog::Stats;
use pando_dbproxy::{ReadError, Readers, Settings, StoreError};
use pando_ipc::client::{CallError, Client, Options};
use pando_ipc::cursor::{Cursor, CursorError, Cursors};
use pando_ipc::{Envelope, Kind, LockError, LockInfo, Pattern, Workdir, read_lock_for_path};
use serde_json::{Value, json};

use crate::cli::lifecycle::{self, Stuck};
use crate::cli::standing::Standing;

/// How long the primary has to answer: long enough to know that it is silent.
const PATIENCE: Duration = Duration::from_secs(3);

/// What there is in a workdir.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) workdir: Workdir,
    pub(super) standing: Result<Standing, LockError>,
    /// What the lock file says, whoever holds it.
    pub(super) info: Option<LockInfo>,
    /// What the primary says of itself, or why it does not; `None` when nobody holds the lock.
    pub(super) answer: Option<Result<Value, CallError>>,
    /// Sizes and counts; `None` when there is no database file.
    pub(super) stats: Option<Result<Stats, ReadError>>,
    /// Whether this release can work with the schema.
    pub(super) schema: Result<(), StoreError>,
    pub(super) settings: Result<Settings, StoreError>,
    pub(super) last_event: Option<Envelope>,
    pub(super) cursors: Result<Vec<Cursor>, CursorError>,
    /// Lines of the lifecycle log, oldest first.
    pub(super) lifecycle: Vec<Value>,
    /// Who lives and cannot lead.
    pub(super) stuck: Option<Stuck>,
}

impl Room {
    /// Looks around.
    pub(super) async fn look(workdir: &Workdir) -> Self {
        let standing = Standing::of(workdir);
        let answer = match &standing {
            Ok(Standing::Held(_)) => Some(ask(workdir).await),
            _ => None,
        };
        let readers = Readers::open(workdir.database_path(), 1);
        let stats = if workdir.database_path().exists() { Some(readers.stats().await) } else { None };
        let schema = if stats.is_some() { readers.check_schema().await } else { Ok(()) };
        let last_event = match &stats {
            Some(Ok(stats)) if stats.head > 0 => {
                let page = readers.since(stats.head - 1, &[Pattern::All], 1).await;
                page.ok().and_then(|mut page| page.events.pop())
            }
            _ => None,
        };
        let lifecycle = lifecycle::lines(workdir);
        Self {
            standing,
            info: read_lock_for_path(workdir).ok(),
            answer,
            stats,
            schema,
            settings: Settings::of(&workdir.database_path()),
            last_event,
            cursors: Cursors::of(workdir).list(),
            stuck: Stuck::among(&lifecycle),
            lifecycle,
            workdir: workdir.clone(),
        }
    }

    /// Returns sizes and counts, when the database can be read.
    pub(super) fn stats(&self) -> Option<&Stats> {
        self.stats.as_ref()?.as_ref().ok()
    }

    /// Returns what the primary says of itself, when it does.
    pub(super) fn primary(&self) -> Option<&Value> {
        self.answer.as_ref()?.as_ref().ok()
    }
}

async fn ask(workdir: &Workdir) -> Result<Value, CallError> {
    let mut options = Options::new("doctor", Kind::Observer);
    (options.dial_timeout, options.call_timeout) = (PATIENCE, PATIENCE);
    let client = Client::open(workdir.clone(), options);
    let answer = client.call("instance.info", json!({})).await;
    client.close().await;
    answer
}
