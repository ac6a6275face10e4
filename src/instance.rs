//! A process's membership in a workdir: who it is now, its database, its events and its calls.

mod agents;
mod binding;
mod depart;
mod events;
mod follow;
mod lead;
mod lifecycle;
mod metrics;
mod rates;
mod roster;
mod route;
mod silence;
mod terms;
mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pando_bridge::{Hub, HubSubscription};
use pando_dbproxy::{Db, DbOptions, Durability, Migrations, Readers, StoreError, WriteError, Writes};
use pando_ipc::bus::BusError;
use pando_ipc::client::{self, CallError, Cause, LONGEST_WAIT};
use pando_ipc::hello::STEP_DOWN;
use pando_ipc::{
    Code, Endpoints, Fault, Kind, LocalTrust, LockError, LockInfo, Pattern, PeerVerifier, Ports, TcpDoor, Workdir,
    topic,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use agents::Agents;
use route::Routes;

pub use events::Events;
pub(crate) use lead::Primary;
pub(crate) use roster::{Member, Presence};

/// How often every instance says that it is alive. Followers of the documented format give up after 15 s.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How many connections read the database of one instance.
const READERS: usize = 4;

/// How to join. The default needs nothing.
#[derive(Debug, Clone)]
pub struct Options {
    /// The instance's own id; a new one when `None`.
    pub instance_id: Option<String>,
    /// Whether `pando down` may ask this instance to leave, see [`Instance::stop_requested`].
    pub headless: bool,
    /// Fail with [`JoinError::PrimaryExists`] where another instance is the primary.
    pub require_primary: bool,
    /// Who may come in over TCP when this instance is the primary.
    pub tcp: TcpDoor,
    /// Decides which calls of other processes are answered when this instance is the primary; [`LocalTrust`] by default.
    pub verifier: Arc<dyn PeerVerifier>,
    /// What an acknowledged write has survived; the workdir keeps it from the term on in which this instance leads. `None` leaves it as it is: `disk`
    /// unless it was set.
    pub durability: Option<Durability>,
    /// The named writes that this instance knows when it leads: those of the agent store, and what the application registered.
    pub writes: Writes,
    /// The schemas of the application: brought up to date, on the primary, before [`Instance::join`] returns.
    pub migrations: Vec<Migrations>,
    /// How long to look for a primary.
    pub dial_timeout: Duration,
    /// How long a call or a write may take in all.
    pub call_timeout: Duration,
    /// After how long a primary that holds the lock but says nothing is ended, so that the next one takes over; never when `None`.
    ///
    /// It is known as silent after 2 s. Time in which this process was stopped itself does not count.
    pub evict_after: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let client = client::Options::new("", Kind::Instance);
        Self {
            instance_id: None,
            headless: false,
            require_primary: false,
            tcp: TcpDoor::OwnUser,
            verifier: Arc::new(LocalTrust),
            durability: None,
            writes: Writes::default(),
            migrations: Vec::new(),
            dial_timeout: client.dial_timeout,
            call_timeout: client.call_timeout,
            evict_after: None,
        }
    }
}

/// What an instance is now. It changes by itself; an application need not care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It looks for the primary, or is about to become it.
    Seeking,
    /// It follows.
    Secondary {
        /// The primary's instance id.
        primary: String,
        /// The primary's term.
        epoch: u64,
    },
    /// It leads.
    Primary {
        /// Its term.
        epoch: u64,
        /// Its TCP ports, where that door is open.
        ports: Option<Ports>,
        /// Where it is reached.
        endpoints: Endpoints,
    },
}

/// Why an instance could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Another instance is the primary, and [`Options::require_primary`] was set.
    #[error("instance {} (pid {}) is the primary since {}", .0.instance_id, .0.pid, .0.started_at)]
    PrimaryExists(Box<LockInfo>),
    /// The primary speaks another version of the wire; the text names both.
    #[error("{0}")]
    Version(Cause),
    /// The lock can be neither won nor lost.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sockets cannot be bound.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A schema of the application cannot be brought up to date.
    #[error("cannot bring the schema of {app} up to date: {source}")]
    Migrations {
        /// The application.
        app: String,
        /// Why.
        source: Box<WriteError>,
    },
}

/// What the parts of one instance share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: String,
    pub(crate) workdir: Workdir,
    pub(crate) options: Options,
    pub(crate) joined: Instant,
    pub(crate) hub: Hub,
    pub(crate) readers: Readers,
    pub(crate) db: Db,
    pub(crate) agents: Agents,
    routes: Routes,
    role: watch::Sender<Role>,
    /// Why the last attempt to begin a term failed, until one begins.
    failure: watch::Sender<Option<String>>,
    stop_requested: CancellationToken,
    /// How often this instance became the primary.
    terms: AtomicU64,
    placed: AtomicBool,
}

impl Shared {
    /// Takes a role. Whoever leads or follows has begun a term: what was in the way of that is over.
    fn take_role(&self, role: Role) {
        if role != Role::Seeking {
            self.failure.send_if_modified(|why| why.take().is_some());
        }
        self.role.send_replace(role);
    }

    /// Takes note of why a term could not begin. Tells whether that is news.
    fn note_failure(&self, why: &str) -> bool {
        self.failure.send_if_modified(|last| {
            let is_news = last.as_deref() != Some(why);
            if is_news {
                *last = Some(why.to_owned());
            }
            is_news
        })
    }

    /// Makes the hub start behind `head` the first time that a head is known; from then on it goes on where it is.
    fn place_hub(&self, head: u64) {
        if !self.placed.swap(true, Ordering::AcqRel) {
            self.hub.start_behind(head);
        }
    }

    fn is_placed(&self) -> bool {
        self.placed.load(Ordering::Acquire)
    }

    /// Returns how many sessions there are; 0 while there is no database.
    pub(crate) async fn count_sessions(&self) -> i64 {
        let counted = self.db.query_one("SELECT count(*) FROM sessions", (), |row| row.get(0)).await;
        counted.ok().flatten().unwrap_or(0)
    }

    /// Sees that the database's schema is one that this binary understands, and brings the application's up to date.
    async fn settle_schema(&self) -> Result<(), JoinError> {
        // Whoever leads has migrated the database itself; before anybody leads there may be none.
        if matches!(&*self.role.borrow(), Role::Secondary { .. }) {
            self.readers.check_schema().await?;
        }
        for migrations in &self.options.migrations {
            let migrated = self.db.migrate(migrations).await;
            migrated
                .map_err(|source| JoinError::Migrations { app: migrations.app.clone(), source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Returns the payload of this instance's heartbeat.
    async fn heartbeat(&self, role: &str, head: u64) -> Value {
        serde_json::json!({
            "instance_id": self.id,
            "role": role,
            "uptime": self.joined.elapsed().as_secs(),
            "session_count": self.count_sessions().await,
            "head": head,
        })
    }
}

/// A process's membership in a workdir.
///
/// It races for the primary's role, follows whoever has it and takes over when that one goes, all by itself. Dropping it leaves, too, but
/// only [`Instance::leave`] waits for the end.
#[derive(Debug)]
pub struct Instance {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Instance {
    /// Joins a workdir; returns once this instance leads or follows.
    ///
    /// A primary of another version of the wire is [`JoinError::Version`] within a second. One that does not answer within [`Options::dial_timeout`]
    /// is no error unless there are [`Options::migrations`]: the instance is [`Role::Seeking`], reads locally and goes on trying.
    pub async fn join(workdir: Workdir, options: Options) -> Result<Self, JoinError> {
        workdir.prepare().map_err(LockError::from)?;
        let (dial_timeout, call_timeout) =
            (options.dial_timeout.min(LONGEST_WAIT), options.call_timeout.min(LONGEST_WAIT));
        let options = Options { dial_timeout, call_timeout, ..options };
        let id = options.instance_id.clone().unwrap_or_else(new_id);
        let readers = Readers::open(workdir.database_path(), READERS);
        let routes = Routes::default();
        let db_options = DbOptions { timeout: options.call_timeout, ..DbOptions::default() };
        let shared = Arc::new(Shared {
            db: Db::new(readers.clone(), routes.deliver(), options.writes.clone(), id.clone(), db_options),
            id,
            workdir,
            joined: Instant::now(),
            hub: Hub::new(),
            readers,
            agents: Agents::default(),
            routes,
            role: watch::Sender::new(Role::Seeking),
            failure: watch::Sender::new(None),
            stop_requested: CancellationToken::new(),
            terms: AtomicU64::new(0),
            placed: AtomicBool::new(false),
            options,
        });
        let instance = Self { shared, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let watched = [topic::LLM_START, topic::LLM_END, topic::LEFT, topic::STOP].map(Pattern::known);
        instance.tasks.spawn(agents::watch(Arc::clone(&instance.shared), instance.shared.hub.subscribe(watched)));
        let lifecycle = lifecycle::keep(Arc::clone(&instance.shared), instance.stop.clone());
        instance.tasks.spawn(lifecycle);
        let (failed, failure) = tokio::sync::oneshot::channel();
        instance.tasks.spawn(terms::run(Arc::clone(&instance.shared), instance.stop.clone(), failed));
        instance.tasks.close();
        let mut role = instance.shared.role.subscribe();
        tokio::select! {
            // The sender is dropped when the first term has begun.
            Ok(error) = failure => Err(error),
            _ = role.wait_for(|role| *role != Role::Seeking) => Ok(()),
            () = tokio::time::sleep(instance.shared.options.dial_timeout) => Ok(()),
        }?;
        match instance.shared.settle_schema().await {
            Ok(()) => Ok(instance),
            Err(error) => {
                instance.leave().await;
                Err(error)
            }
        }
    }

    /// Returns the instance's id, as it stands in events and in the lock file.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Returns what the instance is, and tells when that changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.shared.role.subscribe()
    }

    /// Returns the database: writes go to the primary wherever it is, reads are local.
    pub fn db(&self) -> &Db {
        &self.shared.db
    }

    /// Returns the way to publish events.
    pub fn events(&self) -> Events {
        Events::new(Arc::clone(&self.shared))
    }

    /// Subscribes to the events that any of the patterns selects, from now on: durable ones in commit order, each once, across takeovers.
    pub fn subscribe(&self, patterns: impl IntoIterator<Item = Pattern>) -> HubSubscription {
        // Without a database there is nothing yet that could be too old.
        let head = self.shared.readers.head_now().map_or(0, |head| head.seq);
        self.shared.hub.subscribe_behind(head, patterns)
    }

    /// Calls a method of the primary, which may be this instance; see `docs/wire.md` for methods and shapes.
    ///
    /// A call that was sent to a primary that died ends as [`CallError::Unknown`]; one that was not sent waits for the next primary.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, CallError> {
        self.shared.routes.call(method, params, self.shared.options.call_timeout).await
    }

    /// Hands the primary's role to `successor`, or to the secondary that joined last, and waits until it leads. Returns its id.
    ///
    /// No call fails by it: what arrives meanwhile waits for the next primary. This instance stays, as a secondary. An instance that is not the
    /// primary is refused with `E_NOT_PRIMARY`, an unknown successor with `E_NOT_FOUND`. A successor that dies just then is not
    /// waited for longer than 250 ms: then any other instance leads.
    pub async fn step_down(&self, successor: Option<&str>) -> Result<String, CallError> {
        if !matches!(&*self.shared.role.borrow(), Role::Primary { .. }) {
            return Err(CallError::Refused(Fault::new(Code::NotPrimary, "this instance is not the primary")));
        }
        self.move_role(successor).await
    }

    /// Takes the primary's role over from whoever has it, and waits until this instance leads; see [`Instance::step_down`].
    pub async fn take_over(&self) -> Result<(), CallError> {
        let leader = self.move_role(Some(self.id())).await?;
        if leader == self.id() {
            return Ok(());
        }
        let why = format!("instance {leader} has become the primary meanwhile");
        Err(CallError::Refused(Fault::new(Code::Conflict, why)))
    }

    /// Asks the primary, whoever it is, to hand its role over, and waits for the next one. Returns its id.
    async fn move_role(&self, successor: Option<&str>) -> Result<String, CallError> {
        let mut role = self.shared.role.subscribe();
        let before = leader(&role.borrow_and_update(), self.id());
        let params = serde_json::json!({"to": successor});
        match self.call(STEP_DOWN, params).await {
            Ok(answer) if answer.get("successor").and_then(Value::as_str) == before.as_deref() => {
                return Ok(before.unwrap_or_default());
            }
            // It may leave, and we lead, before its answer is read: then who leads next is the answer.
            Ok(_) | Err(CallError::Unknown(Cause::Closed | Cause::ConnectionFailed { .. })) => {}
            Err(error) => return Err(error),
        }
        let within = self.shared.options.call_timeout;
        let next = role.wait_for(|role| leader(role, self.id()).is_some_and(|leader| Some(leader) != before));
        match tokio::time::timeout(within, next).await {
            Ok(Ok(role)) => Ok(leader(&role, self.id()).unwrap_or_default()),
            Ok(Err(_)) => Err(CallError::Unknown(Cause::Closed)),
            Err(_elapsed) => Err(CallError::Unknown(Cause::Timeout { after: within })),
        }
    }

    /// Waits until somebody asked this headless instance to leave (`pando down`). The caller then calls [`Instance::leave`].
    pub async fn stop_requested(&self) {
        self.shared.stop_requested.cancelled().await;
    }

    /// Leaves in good order and waits for the end: a primary finishes its writes, says goodbye and releases the lock last.
    pub async fn leave(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Returns who leads, as far as an instance of this role knows.
fn leader(role: &Role, own_id: &str) -> Option<String> {
    match role {
        Role::Seeking => None,
        Role::Secondary { primary, .. } => Some(primary.clone()),
        Role::Primary { .. } => Some(own_id.to_owned()),
    }
}

/// Returns an id short enough to be read, with 48 random bits: two instances of one workdir do not meet.
fn new_id() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("inst-{}", &random[..12])
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
