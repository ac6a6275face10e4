//! What a peer can do wrong on the byte stream.

/// Why the bytes of a peer are refused. The connection is of no use afterwards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZmtpError {
    /// The first bytes are no ZMTP signature: an HTTP client, TLS, a port scan.
    #[error("peer does not speak ZMTP (byte {at} of its greeting is {byte:#04x})")]
    Signature {
        /// Offset of the wrong byte.
        at: usize,
        /// The wrong byte.
        byte: u8,
    },
    /// The peer speaks ZMTP 1 or 2.
    #[error("peer speaks ZMTP {0}.x; 3.0 is the oldest served")]
    Version(u8),
    /// The peer wants another security mechanism than NULL.
    #[error("peer asks for mechanism {0:?}; only NULL is served")]
    Mechanism(String),
    /// Reserved flag bits are set, or a command has more parts.
    #[error("frame flags {0:#04x} are not valid")]
    Flags(u8),
    /// A message or an unknown command came before READY.
    #[error("peer sent something else than READY first")]
    NotReady,
    /// A known command does not have its form.
    #[error("command {0} is malformed")]
    Command(&'static str),
    /// READY came again.
    #[error("peer sent READY twice")]
    ReadyAgain,
    /// The peer's socket type does not fit ours.
    #[error("socket type {theirs:?} cannot talk to {ours}")]
    SocketType {
        /// Ours.
        ours: &'static str,
        /// What READY said.
        theirs: String,
    },
    /// The peer refuses us by an ERROR command.
    #[error("peer refuses the connection: {0:?}")]
    Refused(String),
    /// A command or subscription is larger than the limit.
    #[error("command of {bytes} bytes; the limit is {limit}")]
    CommandTooLong {
        /// What its header announces.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// A message is larger than the limit.
    #[error("message of at least {bytes} bytes; the limit is {limit}")]
    MessageTooLong {
        /// The parts so far and what the last header announces.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// A message has more parts than the limit.
    #[error("message of more than {limit} parts")]
    TooManyParts {
        /// The limit.
        limit: usize,
    },
    /// The peer has more subscriptions than the limit.
    #[error("more than {limit} subscriptions")]
    TooManySubscriptions {
        /// The limit.
        limit: usize,
    },
    /// The peer's subscriptions have more bytes than the limit.
    #[error("subscriptions of more than {limit} bytes in all")]
    SubscriptionsTooLong {
        /// The limit.
        limit: usize,
    },
    /// The engine was asked again after an error.
    #[error("connection has failed before")]
    Failed,
}
