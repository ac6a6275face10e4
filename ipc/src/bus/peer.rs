//! One connection: who is it, handshake, then a reader and a writer until either ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::calls;
use super::doors::{Role, Stream};
use super::shared::{Peer, Shared};
use super::stats::{Offence, Refusal};
use crate::methods::Flush;
use crate::stream::{Input, Output, receive};
use crate::zmtp::{Engine, Event, Remote, ZmtpError};

/// How long the messages of one peer are worked on before it is the next peer's turn. A count would not do: messages differ by
/// a factor of a thousand in what they take.
const TURN: Duration = Duration::from_micros(200);

/// How long answers wait for others to leave with them: whoever reads them works while we do.
const GATHERING: Duration = Duration::from_micros(25);

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

    /// Runs a part of the handshake; `None` when its time is over.
    async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.over.run_until_cancelled(timeout_at(self.deadline, work)).await?.ok()
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
    let identity = match handshake.bound(stream.identify(number)).await {
        Some(Ok(Some(identity))) => identity,
        Some(Ok(None)) => return,
        Some(Err((why, offence))) => return shared.counters.refuse(why, || offence),
        None => return shared.counters.refuse(Refusal::Handshake, || Offence::at(stream.door())),
    };
    let (input, output) = match stream.split() {
        Ok(halves) => halves,
        Err(error) => return tracing::warn!(%error, "a connection cannot be served"),
    };
    let mut engine = Engine::new(role.into(), shared.limits.wire.clone());
    let greeted = handshake.bound(greet(&mut engine, &input, &output)).await;
    drop(handshake);
    let remote = match greeted {
        Some(Ok(Some(remote))) => remote,
        Some(Ok(None)) => return,
        Some(Err(error)) => {
            return shared.counters.refuse(Refusal::Protocol, || Offence::of(&identity.caller, error.to_string()));
        }
        None => {
            let detail = "the handshake took too long, or its place was needed";
            return shared.counters.refuse(Refusal::Handshake, || Offence::of(&identity.caller, detail));
        }
    };
    let (peer, started) = shared.join(identity, role, remote, output);
    // It may have said more already than its handshake.
    peer.bytes_in.store(engine.input().len() as u64, Relaxed);
    tracing::debug!(caller = ?peer.caller, "peer connected");
    if role == Role::Router {
        shared.connections.spawn(calls::run(Arc::downgrade(&peer), started));
    }
    shared.connections.spawn(write(Arc::clone(&shared), Arc::clone(&peer)));
    match peer.gone.run_until_cancelled(read(&shared, &peer, &mut engine, &input)).await {
        Some(Err(ReadError::Protocol(error))) => shared.refuse(&peer, Refusal::Protocol, || error.to_string()),
        Some(Err(ReadError::Slow)) => {
            shared.refuse(&peer, Refusal::SlowSender, || "began a message and did not finish it".to_owned());
        }
        Some(Err(ReadError::Io(error))) => tracing::debug!(peer = peer.caller.peer, %error, "peer cannot be read"),
        Some(Ok(())) | None => tracing::debug!(peer = peer.caller.peer, "peer disconnected"),
    }
    shared.part(&peer);
}

/// Runs the handshake; `None` when the peer left meanwhile.
async fn greet(engine: &mut Engine, input: &Input, output: &Output) -> Result<Option<Remote>, ZmtpError> {
    loop {
        match engine.poll()? {
            Some(Event::Ready(remote)) => return Ok(Some(remote)),
            Some(Event::Send(bytes)) => {
                if output.write_all(&bytes).await.is_err() {
                    return Ok(None);
                }
            }
            Some(_) => {}
            None => match receive(engine, input).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            },
        }
    }
}

#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    Protocol(ZmtpError),
    /// A message was begun and not finished in time.
    Slow,
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
async fn read(shared: &Arc<Shared>, peer: &Arc<Peer>, engine: &mut Engine, input: &Input) -> Result<(), ReadError> {
    if let Some(ended) = shared.closing.run_until_cancelled(read_all(shared, peer, engine, input)).await {
        return ended;
    }
    shared.take_leave(peer);
    while receive(engine, input).await? > 0 {
        engine.input().clear();
    }
    Ok(())
}

async fn read_all(shared: &Arc<Shared>, peer: &Arc<Peer>, engine: &mut Engine, input: &Input) -> Result<(), ReadError> {
    // When the message that is being received began.
    let mut begun = None;
    // What it took of our time since others last had their turn.
    let mut turn = Duration::ZERO;
    // What it took since answers last left.
    let mut gathered = Duration::ZERO;
    loop {
        while let Some(event) = engine.poll()? {
            begun = None;
            match event {
                Event::Send(bytes) => shared.send(peer, bytes),
                Event::Subscribe(prefix) => shared.subscribe(peer, &prefix)?,
                Event::Unsubscribe(prefix) => shared.unsubscribe(peer, &prefix),
                Event::Message(body) => {
                    if peer.ring.is_over() {
                        peer.flush();
                        peer.ring.room().await;
                    }
                    let began = Instant::now();
                    peer.read.fetch_add(1, Relaxed);
                    calls::serve(shared, peer, &body);
                    let took = began.elapsed();
                    (gathered, turn) = (gathered + took, turn + took);
                    let is_over = turn > TURN;
                    if is_over || gathered > GATHERING {
                        gathered = Duration::ZERO;
                        peer.flush();
                    }
                    if is_over {
                        turn = Duration::ZERO;
                        tokio::task::yield_now().await;
                    }
                }
                Event::Ready(_) => {}
            }
        }
        gathered = Duration::ZERO;
        peer.flush();
        if peer.ring.room().await {
            // While its answers waited we did not read: that time is not the sender's.
            begun = None;
        }
        if engine.is_amid() {
            begun.get_or_insert_with(Instant::now);
        }
        let receiving = receive(engine, input);
        let read = match begun {
            None => receiving.await?,
            Some(begun) => {
                timeout_at(begun + shared.limits.message_timeout, receiving).await.map_err(|_| ReadError::Slow)??
            }
        };
        if read == 0 {
            return Ok(());
        }
        peer.bytes_in.fetch_add(read as u64, Relaxed);
    }
}

/// Writes what is left in the ring until it is finished or closed.
async fn write(shared: Arc<Shared>, peer: Arc<Peer>) {
    match peer.gone.run_until_cancelled(peer.ring.write_out(shared.limits.read_nothing_timeout)).await {
        Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
            shared.cut_off(&peer, "cut off: it read nothing for too long");
        }
        Some(Err(error)) => peer.unwritable(&error),
        Some(Ok(())) | None => {}
    }
    peer.ring.close();
}
