//! A connected socket in two halves: one task reads, whoever has something to say may try to write.
//!
//! Only reading is registered with the runtime, which registers its own streams for both. A Unix socket becomes writable anew with each message
//! that its peer reads, so whoever wrote one would be woken by its being read. Room to write is waited for where a socket was found full.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::{read, retry_on_intr, writev};
use rustix::net::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::Came;

/// Most messages in one write (`IOV_MAX` is 1024).
const MAX_SLICES: usize = 256;
/// How long a full socket is left alone where no descriptor is free to wait for it with.
const PAUSE: Duration = Duration::from_millis(10);

/// The reading half of a socket.
#[derive(Debug)]
pub(crate) struct Input(AsyncFd<Arc<OwnedFd>>);

/// The writing half of a socket; dropping it ends that half.
#[derive(Debug)]
pub(crate) struct Output(Arc<OwnedFd>);

/// Takes a connected stream that does not block into its halves.
pub(crate) fn split(stream: impl Into<OwnedFd>) -> io::Result<(Input, Output)> {
    let socket = Arc::new(stream.into());
    Ok((Input(registered(Arc::clone(&socket), Interest::READABLE)?), Output(socket)))
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for the sake of types whose descriptor changes; an OwnedFd keeps its own"
)]
fn registered(socket: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(socket, interest)
}

impl Input {
    /// Reads what is there, if anything is: `WouldBlock` when not. Whoever holds it may look; [`Input::ready`] tells when that is of use.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| read(self.0.get_ref(), &mut *buffer))?)
    }

    /// Waits until something may be there. Safe to drop and call again.
    pub(crate) async fn ready(&self) -> io::Result<Ready<'_>> {
        Ok(Ready(self.0.readable().await?))
    }
}

/// Something may be there to be read.
#[derive(Debug)]
pub(crate) struct Ready<'a>(AsyncFdReadyGuard<'a, Arc<OwnedFd>>);

impl Ready<'_> {
    /// Notes what a look has found, and hands it on: an empty socket is ready again with the next byte.
    pub(crate) fn after(mut self, came: Came) -> Came {
        if matches!(came, Came::Nothing | Came::All(_)) {
            self.0.clear_ready();
        }
        came
    }
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
        Ok(retry_on_intr(|| writev(&*self.0, slices))?)
    }

    /// Writes all of it, waiting for the socket.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write_slices(&[IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the socket may take something.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        // A descriptor of its own: the runtime knows the other one already.
        let Ok(socket) = self.0.try_clone() else {
            tokio::time::sleep(PAUSE).await;
            return Ok(());
        };
        registered(Arc::new(socket), Interest::WRITABLE)?.writable().await.map(drop)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // It fails where the connection has ended already.
        let _ended = shutdown(&*self.0, Shutdown::Write);
    }
}
