//! ZMTP 3.x with the NULL mechanism, for ROUTER, PUB and DEALER: bytes in, events and bytes out, no sockets.
//!
//! ```text
//!  socket bytes ──► Engine::input ──► Engine::poll ──► Event::{Send, Ready, Message, Subscribe, Unsubscribe}
//!                                          └────────► ZmtpError: close the connection
//! ```
//!
//! Sources: <https://rfc.zeromq.org/spec/23/> (3.0) and <https://rfc.zeromq.org/spec/37/> (3.1). Every size that a peer
//! announces is held against [`WireLimits`] before anything is allocated for it.

mod command;
mod engine;
mod error;
mod frame;
mod greeting;
mod subscriptions;

pub use engine::{Engine, Event, Remote, SocketType};
pub use error::ZmtpError;
pub(crate) use frame::encode_message_with;
pub use frame::{encode_delimited, encode_message};
pub use subscriptions::{Prefixes, Subscriptions};

/// Largest message of a caller, all parts together. A larger one closes the connection before it is read.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most parts of a message. The part beyond closes the connection.
pub const MAX_PARTS: usize = 32;
/// Largest command, and largest subscription. A larger one closes the connection before it is read.
pub const MAX_COMMAND_BYTES: usize = 4 * 1024;
/// Most distinct subscriptions of a peer. The one beyond closes the connection.
pub const MAX_SUBSCRIPTIONS: usize = 1_024;
/// Most bytes of all distinct subscriptions of a peer. The one that exceeds it closes the connection.
pub const MAX_SUBSCRIPTION_BYTES: usize = 64 * 1024;

/// What one peer may send. Whatever exceeds a limit is a [`ZmtpError`], which costs that peer its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireLimits {
    /// See [`MAX_MESSAGE_BYTES`].
    pub max_message_bytes: usize,
    /// See [`MAX_PARTS`].
    pub max_parts: usize,
    /// See [`MAX_COMMAND_BYTES`].
    pub max_command_bytes: usize,
    /// See [`MAX_SUBSCRIPTIONS`].
    pub max_subscriptions: usize,
    /// See [`MAX_SUBSCRIPTION_BYTES`].
    pub max_subscription_bytes: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_parts: MAX_PARTS,
            max_command_bytes: MAX_COMMAND_BYTES,
            max_subscriptions: MAX_SUBSCRIPTIONS,
            max_subscription_bytes: MAX_SUBSCRIPTION_BYTES,
        }
    }
}
