//! What a caller knows when a call failed: was it sent, and what came of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::fault::Fault;
use crate::hello;
use crate::lock::Holder;

/// Why a call has no result, told so that the caller can act.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The call never left this process: calling again is safe.
    #[error("not sent: {0}")]
    NotSent(Cause),
    /// The call was sent, and what came of it is not known: call again only with the same op id.
    #[error("outcome unknown: {0}")]
    Unknown(Cause),
    /// The primary refused it and applied nothing; the fault says whether to try again.
    #[error("{0}")]
    Refused(Fault),
}

impl CallError {
    /// Tells whether time ran out, be it on a primary that says nothing at all.
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause(), Some(Cause::Timeout { .. } | Cause::Unresponsive { .. }))
    }

    /// Tells whether no primary could be reached, or the link to it broke.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.cause(), Some(Cause::NoPrimary { .. } | Cause::ConnectionFailed { .. }))
    }

    /// Returns the refusal, when it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Refused(fault) => Some(fault),
            Self::NotSent(_) | Self::Unknown(_) => None,
        }
    }

    /// Returns what stood in the way, when it is no refusal.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::NotSent(cause) | Self::Unknown(cause) => Some(cause),
            Self::Refused(_) => None,
        }
    }

    pub(super) fn is_method_not_found(&self) -> bool {
        self.fault().is_some_and(Fault::is_method_not_found)
    }
}

/// What stood in the way of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Nobody leads the workdir.
    #[error("no primary in {} ({})", workdir.display(), if *held { "the lock is held, but its holder has not advertised itself" } else { "the lock is free" })]
    NoPrimary {
        /// The workdir.
        workdir: PathBuf,
        /// Whether someone holds the lock, but says nothing (yet) of itself.
        held: bool,
    },
    /// The primary could not be reached, is not who the lock file names, or the link to it broke.
    #[error("connection to {endpoint} failed: {detail}")]
    ConnectionFailed {
        /// The endpoint dialled, or the lock file when that cannot be read.
        endpoint: String,
        /// What went wrong, for people.
        detail: String,
    },
    /// Time ran out.
    #[error("no answer within {after:?}")]
    Timeout {
        /// How long the caller waited.
        after: Duration,
    },
    /// Whoever holds the lock says nothing: it hangs, or is stopped. Nobody can take over while it lives.
    #[error("the holder of the lock has been silent for {silent:?} ({holder:#})")]
    Unresponsive {
        /// Who it is.
        holder: Box<Holder>,
        /// How long it has said nothing.
        silent: Duration,
    },
    /// The primary speaks another version of the wire.
    #[error("primary {instance_id} (release {version}) speaks protocol {protocol}, this build speaks {ours}", ours = hello::protocol())]
    Version {
        /// The primary.
        instance_id: String,
        /// Its release; empty when it did not say.
        version: String,
        /// Its wire version; ours is [`hello::protocol`].
        protocol: u32,
    },
    /// Too many calls wait to be sent.
    #[error("{waiting} calls wait to be sent already")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}
