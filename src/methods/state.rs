//! `state.sync`: a snapshot and the place in the journal from which to follow.

use pando_dbproxy::Querier;
use pando_dbproxy::store::Session;
use pando_ipc::access::Capability::Read;
use schemars::JsonSchema;
use serde::Serialize;

use super::instance::{Listed, list};
use super::{Method, NoParams};
use crate::methods::db::fault;

/// What `state.sync` answers. Follow the journal after `seq`: nothing is missed, though the snapshot may already show an event that comes again.
#[derive(Debug, Serialize, JsonSchema)]
struct Snapshot {
    /// Number of the last event that the snapshot surely shows.
    seq: u64,
    /// The primary's term.
    epoch: u64,
    /// The latest sessions, at most [`SNAPSHOT_SESSIONS`], newest first.
    sessions: Vec<Session>,
    /// Who is connected.
    instances: Vec<Listed>,
}

/// Sessions in one snapshot; `session.list` has the rest.
const SNAPSHOT_SESSIONS: u32 = 1_000;

pub(super) fn methods() -> Vec<Method> {
    vec![Method::new(
        "state.sync",
        Read,
        "Returns a snapshot and where to follow from.",
        |primary, caller, NoParams {}| async move {
            // The position first: what commits in between is seen twice, never missed.
            let (seq, epoch) = (primary.writer.head(), primary.writer.epoch());
            let sessions = primary.db(&caller).list_sessions(SNAPSHOT_SESSIONS, 0).await.map_err(fault)?;
            Ok(Snapshot { seq, epoch, sessions, instances: list(&primary) })
        },
    )]
}
