//! One connection: who is it, handshake, then a reader and a writer until either ends.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{BufMut, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::calls;
use super::doors::Stream;
use super::ring::{OVERHEAD_BYTES, Ring};
use super::shared::{Peer, Shared};
use super::stats::Refusal;
use crate::methods::Caller;
use crate::zmtp::{Engine, Event, Remote, Role, ZmtpError};

/// Room for a read: the smallest, for a peer that says little, and the largest, for one that fills it.
const READ_BYTES: [usize; 2] = [4 * 1024, 64 * 1024];
/// Most messages in one write (`IOV_MAX` is 1024).
const MAX_SLICES: usize = 256;

/// Number of the next connection, for the life of the process. 0 is the process itself.
static NEXT_PEER: AtomicU64 = AtomicU64::new(1);

/// The bounds of a handshake; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Handshake {
    deadline: Instant,
    over: CancellationToken,
    _end: DropGuard,
    _slot: OwnedSemaphorePermit,
}

impl Handshake {
    /// A handshake until `deadline` or until `over` is cancelled, which is also how its end is told.
    pub(super) fn new(deadline: Instant, over: CancellationToken, slot: OwnedSemaphorePermit) -> Self {
        Self { deadline, _end: over.clone().drop_guard(), over, _slot: slot }
    }

    async fn bound<T>(&self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        match self.over.run_until_cancelled(timeout_at(self.deadline, work)).await {
            Some(Ok(done)) => done,
            Some(Err(_)) | None => Err(Refusal::Handshake),
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: Stream,
    role: Role,
    handshake: Handshake,
    _place: OwnedSemaphorePermit,
) {
    let number = NEXT_PEER.fetch_add(1, Relaxed);
    let caller = match handshake.bound(stream.identify(number)).await {
        Ok(caller) => caller,
        Err(why) => return shared.counters.refuse(why),
    };
    match stream {
        Stream::Unix(stream) => {
            let (input, output) = stream.into_split();
            converse(shared, caller, role, handshake, input, output).await;
        }
        Stream::Tcp(stream, _) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY is refused");
            }
            let (input, output) = stream.into_split();
            converse(shared, caller, role, handshake, input, output).await;
        }
    }
}

async fn converse<R, W>(
    shared: Arc<Shared>,
    caller: Caller,
    role: Role,
    handshake: Handshake,
    mut input: R,
    mut output: W,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut engine = Engine::new(role, shared.limits.wire.clone());
    let greeted = handshake.bound(greet(&mut engine, &mut input, &mut output)).await;
    drop(handshake);
    let remote = match greeted {
        Ok(Some(remote)) => remote,
        Ok(None) => return,
        Err(why) => return shared.counters.refuse(why),
    };
    let peer = shared.join(caller, role);
    tracing::debug!(caller = ?peer.caller, ?remote, "peer connected");
    shared.connections.spawn(write(Arc::clone(&peer), output));
    match peer.gone.run_until_cancelled(read(&shared, &peer, &mut engine, &mut input)).await {
        Some(Err(ReadError::Protocol(error))) => {
            shared.counters.refuse(Refusal::Protocol);
            tracing::warn!(caller = ?peer.caller, %error, "peer disconnected: it broke the protocol");
        }
        Some(Err(ReadError::Io(error))) => tracing::debug!(peer = peer.caller.peer, %error, "peer cannot be read"),
        Some(Ok(())) | None => tracing::debug!(peer = peer.caller.peer, "peer disconnected"),
    }
    shared.part(&peer);
}

/// Runs the handshake; `None` when the peer left meanwhile.
async fn greet<R, W>(engine: &mut Engine, input: &mut R, output: &mut W) -> Result<Option<Remote>, Refusal>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        match engine.poll() {
            Ok(Some(Event::Ready(remote))) => return Ok(Some(remote)),
            Ok(Some(Event::Send(bytes))) => {
                if output.write_all(&bytes).await.is_err() {
                    return Ok(None);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => match receive(engine, input, READ_BYTES[0]).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "handshake refused");
                return Err(Refusal::Protocol);
            }
        }
    }
}

#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    Protocol(ZmtpError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ZmtpError> for ReadError {
    fn from(error: ZmtpError) -> Self {
        Self::Protocol(error)
    }
}

/// Reads until the peer's end of stream. Once the bus closes, the peer is told so, and what still arrives is thrown away: closing a TCP socket with
/// unread bytes would reset it, and the peer could lose answers that it has not read yet.
async fn read<R>(shared: &Arc<Shared>, peer: &Arc<Peer>, engine: &mut Engine, input: &mut R) -> Result<(), ReadError>
where
    R: AsyncRead + Unpin,
{
    if let Some(ended) = shared.closing.run_until_cancelled(read_all(shared, peer, engine, input)).await {
        return ended;
    }
    shared.take_leave(peer);
    tokio::io::copy(input, &mut tokio::io::sink()).await?;
    Ok(())
}

async fn read_all<R>(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    engine: &mut Engine,
    input: &mut R,
) -> Result<(), ReadError>
where
    R: AsyncRead + Unpin,
{
    let [smallest, largest] = READ_BYTES;
    let mut room = smallest;
    loop {
        while let Some(event) = engine.poll()? {
            match event {
                Event::Send(bytes) => shared.send(peer, bytes),
                Event::Subscribe(prefix) => shared.subscribe(peer, &prefix)?,
                Event::Unsubscribe(prefix) => Shared::unsubscribe(peer, &prefix),
                Event::Message(parts) => {
                    peer.ring.room().await;
                    // The frames before the last are an envelope, with or without a delimiter.
                    peer.read.fetch_add(1, Relaxed);
                    if let Some(body) = parts.last() {
                        calls::serve(shared, peer, body);
                    }
                }
                Event::Ready(_) => {}
            }
        }
        peer.ring.room().await;
        let read = receive(engine, input, room).await?;
        if read == 0 {
            return Ok(());
        }
        room = if read == room { (room * 2).min(largest) } else { smallest.max(read) };
    }
}

async fn receive<R: AsyncRead + Unpin>(engine: &mut Engine, input: &mut R, room: usize) -> io::Result<usize> {
    let buffer = engine.input();
    buffer.reserve(room);
    input.read_buf(&mut buffer.limit(room)).await
}

/// Writes what the ring holds until it is finished or closed.
async fn write<W: AsyncWrite + Unpin>(peer: Arc<Peer>, mut output: W) {
    if let Some(Err(error)) = peer.gone.run_until_cancelled(write_all(&peer.ring, &mut output)).await {
        tracing::debug!(peer = peer.caller.peer, %error, "peer cannot be written to");
        peer.gone.cancel();
    }
}

async fn write_all<W: AsyncWrite + Unpin>(ring: &Ring, output: &mut W) -> io::Result<()> {
    let mut batch = VecDeque::new();
    while ring.take(&mut batch).await {
        write_batch(ring, &mut batch, output).await?;
    }
    output.shutdown().await
}

async fn write_batch<W: AsyncWrite + Unpin>(
    ring: &Ring,
    batch: &mut VecDeque<Bytes>,
    output: &mut W,
) -> io::Result<()> {
    // Bytes of the first message that are written already.
    let mut done = 0;
    while let Some(first) = batch.front() {
        let mut slices = Vec::with_capacity(batch.len().min(MAX_SLICES));
        slices.push(IoSlice::new(&first[done..]));
        slices.extend(batch.iter().skip(1).take(MAX_SLICES - 1).map(|message| IoSlice::new(message)));
        let written = output.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += written;
        let mut cost = 0;
        while let Some(first) = batch.front().filter(|first| first.len() <= done) {
            done -= first.len();
            cost += first.len() + OVERHEAD_BYTES;
            batch.pop_front();
        }
        ring.written(cost);
    }
    Ok(())
}
