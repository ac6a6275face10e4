//! Pando's database: it looks local, and has one writer.
//!
//! ```text
//!  Db ──reads──► Readers (read-only pool, guard) ────────────────────────────► SQLite file + WAL
//!   └──writes──► deliver (same op id until answered) ─► Writer ─► batch ─────► ▲ one transaction:
//!                   └─ Remote ─ wire ─► primary's Writer ─┘  apply, track,     │ epoch, op id, rows,
//!                                                            journal, dedup    │ events, answer
//!                                              Checkpointer ───────────────────┘ beside it
//! ```
//!
//! A write that was acknowledged is on disk, exactly once; its events are in the journal, in the same transaction.
//! The crate is the only user of SQLite, and knows nothing of sockets: [`deliver::Caller`] is where they plug in.

pub mod backup;
pub mod batch;
pub mod catalog;
mod checkpoint;
mod client;
pub mod db;
pub mod deliver;
pub mod file_system;
mod fingerprint;
mod guard;
pub mod incarnation;
pub mod journal;
mod meter;
pub mod migrate;
pub mod named;
pub mod op;
pub mod params;
mod read_only;
pub mod readers;
mod recent;
mod refusal;
pub mod restore;
pub mod row;
mod run;
mod schema;
pub mod settings;
mod standby;
pub mod store;
#[cfg(test)]
mod tests;
mod track;
pub mod tracked;
mod trouble;
pub mod tx;
pub mod value;
pub mod wire;
pub mod write;
pub mod writer;

pub use batch::{Batch, Earlier};
pub use checkpoint::{PINNED_BYTES, Pinned, ReaderProcess, log_readers};
pub use db::{Db, DbOptions, ReadAt};
pub use deliver::{Caller, Deliver, DeliverError, Remote, Route, WriteError, deliver_until_answered};
pub use guard::{MAX_PATTERN_BYTES, MAX_SQL_BYTES, MAX_VALUE_BYTES};
pub use journal::Retention;
pub use meter::WriterMeter;
pub use migrate::{Migrated, Migration, Migrations};
pub use named::{NameTaken, Writes};
pub use op::OpId;
pub use params::{Param, Params};
pub use readers::{Head, QueryLimits, QueryResult, ReadError, Readers};
pub use recent::RecentStatements;
pub use row::{Column, FromValue, Row, RowError};
pub use schema::{StoreError, tidy};
pub use settings::Settings;
pub use standby::{CALM, Standby};
pub use store::{DbError, Querier};
pub use track::{MAX_COLUMNS_BYTES, MAX_ROW_EVENTS};
pub use tracked::Tracked;
pub use trouble::Trouble;
pub use tx::Tx;
pub use value::SqlValue;
pub use write::{Ack, Durability, Outcome, Statement, StatementResult, Work, WriteRequest, check_payload};
pub use writer::{Fenced, MAX_WAL_BYTES, Writer, WriterOptions};

/// Returns an id for a row: a UUID of version 7 as text. Later ones sort behind earlier ones, which keeps indexes dense: inserts go to their end.
pub fn time_ordered_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
