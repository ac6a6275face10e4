//! Pando lets several editor and agent processes share one working directory.
//!
//! ```text
//!  Instance::join(workdir)
//!     │ instance/   who am I now: a loop over terms, each of which leads or follows
//!     ├── lead ──── dbproxy::Writer ─ commit ─► bridge::Outbound ─► ipc::Bus      methods/  what can be called
//!     └── follow ── ipc::Client ◄── calls, events ──┘                              (the binary: cli/, what a person types)
//! ```
//!
//! An application joins, writes and follows; it never asks whether it is the primary:
//!
//! ```no_run
//! use pando::{Instance, Options, Pattern, Querier, Workdir, store::CreateSession};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let instance = Instance::join(Workdir::open(".")?, Options::default()).await?;
//! let mut events = instance.subscribe([Pattern::new("db.session.*")?]);
//!
//! // On disk, exactly once, whoever dies meanwhile.
//! let session = CreateSession { id: "s-1".into(), title: "Plan".into(), ..CreateSession::default() };
//! instance.db().create_session(session).await?;
//! println!("{:?}", events.recv().await);
//! instance.leave().await;
//! # Ok(())
//! # }
//! ```

mod instance;
mod methods;

pub use instance::{Events, Instance, JoinError, Options, Role};
pub use methods::open_rpc;
pub use pando_bridge::{Delivery, HubSubscription};
pub use pando_dbproxy::{
    Ack, Batch, Db, DbOptions, Durability, FromValue, Migrated, Migration, Migrations, NameTaken, Outcome, Param,
    Params, Querier, QueryLimits, QueryResult, ReadAt, ReadError, Row, RowError, SqlValue, Statement, StatementResult,
    Tracked, Tx, Work, WriteError, Writes, store, time_ordered_id,
};
pub use pando_ipc::access::{Allow, AllowList, Capability, LocalTrust, PeerVerifier, Rule};
pub use pando_ipc::client::{CallError, Client};
pub use pando_ipc::methods::Caller;
pub use pando_ipc::rpc::Json;
pub use pando_ipc::{Code, Envelope, Fault, Pattern, TcpDoor, Topic, Workdir};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
