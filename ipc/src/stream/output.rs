//! Our writing half of a connection, which whoever has something to say may try to write to.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use tokio::net::{tcp, unix};

/// Most messages in one write (`IOV_MAX` is 1024).
const MAX_SLICES: usize = 256;

/// The writing half of a socket; dropping it ends that half.
#[derive(Debug)]
pub(crate) enum Output {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
}

impl Output {
    /// Writes messages, without the bytes of the first that are written already, as far as the socket takes them now. Returns how many bytes
    /// that were, and `WouldBlock` when it takes none.
    pub(crate) fn try_write(&self, messages: &VecDeque<Bytes>, done: usize) -> io::Result<usize> {
        let Some(first) = messages.front() else { return Ok(0) };
        let first = IoSlice::new(&first[done..]);
        if messages.len() == 1 {
            // Most often: that needs no list.
            return self.try_write_slices(&[first]);
        }
        let mut slices = Vec::with_capacity(messages.len().min(MAX_SLICES));
        slices.push(first);
        slices.extend(messages.iter().skip(1).take(MAX_SLICES - 1).map(|message| IoSlice::new(message)));
        self.try_write_slices(&slices)
    }

    fn try_write_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(half) => half.try_write_vectored(slices),
            Self::Tcp(half) => half.try_write_vectored(slices),
        }
    }

    /// Writes all of it, waiting for the socket.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.writable().await?;
            match self.try_write_slices(&[IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the socket may take something.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Unix(half) => half.writable().await,
            Self::Tcp(half) => half.writable().await,
        }
    }
}
