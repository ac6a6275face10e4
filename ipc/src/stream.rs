//! One connected byte stream, whichever side has opened it: what is read goes to an [`Engine`], what is written waits in a [`Ring`].

mod output;
mod ring;

use std::io;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::zmtp::Engine;

pub(crate) use output::Output;
pub(crate) use ring::{Push, Ring};

/// Room for a read: the smallest, for a peer that says little, and the largest, for one that fills it.
const READ_BYTES: [usize; 2] = [4 * 1024, 64 * 1024];

/// How much is read at once: as much as comes at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(READ_BYTES[0])
    }
}

impl Room {
    /// Reads what has come into the engine, or waits until something comes; 0 bytes are the end of the stream. Safe to drop and call again.
    pub(crate) async fn receive<R>(&mut self, engine: &mut Engine, input: &mut R) -> io::Result<usize>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        let [smallest, largest] = READ_BYTES;
        let buffer = engine.input();
        buffer.reserve(self.0);
        let read = input.read_buf(&mut buffer.limit(self.0)).await?;
        self.0 = if read == self.0 { (self.0 * 2).min(largest) } else { smallest.max(read) };
        Ok(read)
    }
}
