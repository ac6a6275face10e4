//! Who a client is, and how long it waits.

use std::time::Duration;

use crate::hello::Kind;

/// How a client introduces itself, and how long it waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// The caller's own id; it stands in hello and is a label, never a key.
    pub instance_id: String,
    /// What the caller is.
    pub kind: Kind,
    /// Whether it is an instance that leaves when `pando down` asks.
    pub headless: bool,
    /// How long a call waits for a primary before it fails as not sent. 5 s.
    pub dial_timeout: Duration,
    /// How long a call takes at most: dial, queueing and answer together. 10 s.
    pub call_timeout: Duration,
}

impl Options {
    /// Returns the options of a caller with the usual waits.
    pub fn new(instance_id: impl Into<String>, kind: Kind) -> Self {
        Self {
            instance_id: instance_id.into(),
            kind,
            headless: false,
            dial_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(10),
        }
    }
}
