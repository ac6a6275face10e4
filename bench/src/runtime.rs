//! The runtime of an application that is measured.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// How many threads it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Threads {
    /// As many as there are cores, as tokio's own.
    Cores,
    /// One, as a small program may have, and from which libzmq's peer calls.
    One,
}

impl Threads {
    /// Starts such a runtime.
    pub(crate) fn runtime(self) -> io::Result<Runtime> {
        let mut builder = match self {
            Self::Cores => Builder::new_multi_thread(),
            Self::One => Builder::new_current_thread(),
        };
        builder.enable_all().build()
    }
}
