//! The handshake: before this answer, nobody is trusted and no write is sent.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failpoint;

/// Version of the wire that this build speaks.
pub const PROTOCOL: u32 = 1;

/// Returns the version of the wire that this process speaks: [`PROTOCOL`], unless a test makes it another release's.
pub fn protocol() -> u32 {
    failpoint::protocol().unwrap_or(PROTOCOL)
}

/// Method of the handshake.
pub const HELLO: &str = "instance.hello";
/// Method that asks whether the primary is alive; also the handshake of servers that know no [`HELLO`].
pub const PING: &str = "instance.ping";
/// Notification by which a leaving primary tells a peer that has said hello how many of its messages it has read:
/// `{"read": n}`. It is the last thing said on a connection; what was sent beyond those `n` was not read, and can be sent again.
pub const GOODBYE: &str = "instance.goodbye";
/// Method that makes the primary hand its role to a secondary.
pub const STEP_DOWN: &str = "instance.step_down";
/// Method that publishes an event; a client proves its subscriptions by it.
pub const PUBLISH: &str = "events.publish";
/// Method that reads the journal.
pub const SINCE: &str = "events.since";
/// Method that tells where the journal ends.
pub const HEAD: &str = "events.head";

/// What a peer is to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An instance: a candidate for the primary's role.
    Instance,
    /// A client that calls and follows.
    Client,
    /// A client that only follows.
    Observer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instance => "instance",
            Self::Client => "client",
            Self::Observer => "observer",
        })
    }
}

/// Params of [`HELLO`]: who calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The caller's own id.
    pub instance_id: String,
    /// What it is.
    pub kind: Kind,
    /// Its process.
    pub pid: u32,
    /// Its release, such as `0.1.0`.
    pub version: String,
    /// Its wire version, see [`PROTOCOL`].
    pub protocol: u32,
    /// Whether it is an instance that leaves when `pando down` asks.
    #[serde(default)]
    pub headless: bool,
}

/// Result of [`HELLO`]: who answers, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The primary's instance id; it must be the one in the lock file.
    pub instance_id: String,
    /// The primary's term; it must be the one in the lock file.
    pub epoch: u64,
    /// The primary's release.
    #[serde(default)]
    pub version: String,
    /// The primary's wire version.
    #[serde(default)]
    pub protocol: u32,
    /// The directory it coordinates.
    #[serde(default)]
    pub workdir: PathBuf,
    /// The database's own id; a write names it, so that it cannot land elsewhere.
    #[serde(default)]
    pub database: Uuid,
}
