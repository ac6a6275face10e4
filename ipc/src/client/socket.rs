//! The sockets of a link. Each lives for one connection.
//!
//! The DEALER is ours: what a caller says is written by the caller itself, and one task reads the answers. The SUB is the `zeromq` crate's,
//! which is known here alone: it does reconnect, but late, so it is dropped when the monitor says that its peer is gone.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqError};

use super::calls::Outcome;
use super::error::Cause;
use super::listen::Listening;
use crate::stream::{Came, Input, Output, Ring, look, split};
use crate::zmtp::{Engine, Event, SocketType, WireLimits};

/// How long connecting to one endpoint may take, ZMTP handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a subscription may take to be written; a peer that does not read is gone for us.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer that is read; Pando's own have at most 4 MiB. A larger one ends the link.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that wait to be written above which calls wait in their own queue.
const PAUSE_BYTES: usize = 1024 * 1024;
/// How long the primary may read nothing while bytes wait for it. Its silence is noticed earlier.
const READ_NOTHING_TIMEOUT: Duration = Duration::from_secs(30);

type Monitor = mpsc::Receiver<SocketEvent>;

/// Where the messages of a link go out, in order. Whoever has one hands it over and writes it.
#[derive(Debug)]
pub(super) struct Outlet {
    dealer: Arc<Dealer>,
    /// Messages handed over so far: the place of the last one in the stream.
    sent: u64,
}

impl Outlet {
    pub(super) fn new(dealer: Arc<Dealer>) -> Self {
        Self { dealer, sent: 0 }
    }

    /// Tells whether another message should be handed over now.
    pub(super) fn has_room(&self) -> bool {
        !self.ring().is_over()
    }

    /// Takes a message, and returns its place in the stream. It is written by the next [`Ring::flush`].
    pub(super) fn push(&mut self, message: Bytes) -> u64 {
        // A link that is gone takes nothing; that the message went with it is told when the loss is.
        let _pushed = self.ring().push(message);
        self.sent += 1;
        self.sent
    }

    /// Returns where the messages wait to be written.
    pub(super) fn ring(&self) -> &Arc<Ring> {
        &self.dealer.ring
    }

    /// Returns where the answers come in.
    pub(super) fn dealer(&self) -> &Arc<Dealer> {
        &self.dealer
    }
}

/// A connected DEALER: calls go out, answers come in. Whoever waits for an answer may read what has come.
#[derive(Debug)]
pub(super) struct Dealer {
    endpoint: String,
    input: Input,
    ring: Arc<Ring>,
    reader: Mutex<Reader>,
}

/// What was read of the answers. Whoever has it reads on.
#[derive(Debug)]
pub(super) struct Reader {
    engine: Engine,
    /// Answers that are about to be handed out.
    pub(super) answers: Vec<(u64, Outcome)>,
    /// Something has come since that was last asked.
    pub(super) has_heard: bool,
    /// Why nothing more is to be read, where a caller has found that.
    pub(super) ended: Option<Cause>,
    pub(super) listening: Listening,
}

impl Dealer {
    /// Connects to one endpoint.
    pub(super) async fn open(endpoint: &str) -> Result<(Arc<Self>, Outlet), Cause> {
        let opening = async {
            let (input, output) = dial(endpoint).await?;
            let dealer = Arc::new(Self::new(endpoint, input, output, PAUSE_BYTES));
            dealer.greet().await?;
            Ok((Arc::clone(&dealer), Outlet::new(dealer)))
        };
        let late = |_elapsed| failed(endpoint, &format_args!("no ZMTP handshake within {CONNECT_TIMEOUT:?}"));
        timeout(CONNECT_TIMEOUT, opening).await.map_err(late)?
    }

    /// A connection on which nothing was said yet. Calls wait while more than `pause` bytes are to be written.
    pub(super) fn new(endpoint: &str, input: Input, output: Output, pause: usize) -> Self {
        let limits = WireLimits { max_message_bytes: MAX_ANSWER_BYTES, ..WireLimits::default() };
        let reader = Reader {
            engine: Engine::new(SocketType::Dealer, limits),
            answers: Vec::new(),
            has_heard: false,
            ended: None,
            listening: Listening::default(),
        };
        let ring = Arc::new(Ring::new(usize::MAX, pause, output));
        Self { endpoint: endpoint.to_owned(), input, ring, reader: Mutex::new(reader) }
    }

    /// Returns where what is said waits to be written.
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    async fn greet(&self) -> Result<(), Cause> {
        loop {
            let event = self.step(&mut self.reader())?;
            match event {
                Some(Event::Ready(_)) => return Ok(()),
                Some(_) => {}
                None => self.receive().await?,
            }
        }
    }

    /// Returns the reader, for a moment: it is taken by callers that look for their answers.
    pub(super) fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the reader, unless somebody else reads.
    pub(super) fn free_reader(&self) -> Option<MutexGuard<'_, Reader>> {
        self.reader.try_lock().ok()
    }

    /// Returns the next event of what was received, and says what the wire asks for.
    fn step(&self, reader: &mut Reader) -> Result<Option<Event>, Cause> {
        let event = reader.engine.poll().map_err(|error| self.failure(&error))?;
        if let Some(Event::Send(bytes)) = &event {
            if self.ring.is_over() {
                return Err(self.failure(&"it asks on and on and does not read our answers"));
            }
            let _pushed = self.ring.push(bytes.clone());
            self.ring.flush().map_err(|error| self.failure(&error))?;
        }
        Ok(event)
    }

    /// Returns the next message body of what was received.
    pub(super) fn take(&self, reader: &mut Reader) -> Result<Option<Bytes>, Cause> {
        while let Some(event) = self.step(reader)? {
            if let Event::Message(body) = event {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }

    /// Takes in what has come, without waiting, or tells why nothing will come.
    pub(super) fn look(&self, reader: &mut Reader) -> Result<Came, Cause> {
        let came = look(&mut reader.engine, &self.input).map_err(|error| self.failure(&error))?;
        match came {
            Came::End => return Err(self.failure(&"the primary closed the connection")),
            Came::All(_) | Came::Part(_) => reader.has_heard = true,
            Came::Nothing => {}
        }
        Ok(came)
    }

    /// Waits until something may have come and takes it in, or tells why nothing will come; writes meanwhile what others have left. Safe to drop and call again.
    pub(super) async fn receive(&self) -> Result<(), Cause> {
        tokio::select! {
            ready = self.input.ready() => {
                let ready = ready.map_err(|error| self.failure(&error))?;
                ready.after(self.look(&mut self.reader())?);
                Ok(())
            }
            written = self.ring.write_out(READ_NOTHING_TIMEOUT) => match written {
                Ok(()) => Err(self.failure(&"the connection is closed")),
                Err(error) => Err(self.failure(&error)),
            },
        }
    }

    /// Waits for the next message body, or tells why there will be none. Safe to drop and call again.
    pub(super) async fn next(&self) -> Result<Bytes, Cause> {
        loop {
            let body = self.take(&mut self.reader())?;
            if let Some(body) = body {
                return Ok(body);
            }
            self.receive().await?;
        }
    }

    /// Returns the cause for something that is wrong with this peer.
    pub(super) fn failure(&self, detail: &dyn Display) -> Cause {
        failed(&self.endpoint, detail)
    }
}

impl Drop for Dealer {
    fn drop(&mut self) {
        self.ring.close();
    }
}

async fn dial(endpoint: &str) -> Result<(Input, Output), Cause> {
    let connecting = async {
        if let Some(path) = endpoint.strip_prefix("ipc://") {
            Ok(split(UnixStream::connect(path).await?.into_std()?)?)
        } else if let Some(address) = endpoint.strip_prefix("tcp://") {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(split(stream.into_std()?)?)
        } else {
            Err(io::Error::other("the endpoint is neither ipc:// nor tcp://"))
        }
    };
    connecting.await.map_err(|error| failed(endpoint, &error))
}

/// A connected SUB: frames come in.
pub(super) struct Ear {
    endpoint: String,
    socket: SubSocket,
    monitor: Monitor,
}

impl Ear {
    /// Connects to the first endpoint that works.
    pub(super) async fn open(endpoints: &[String]) -> Result<Self, Cause> {
        let mut trouble = failed("the primary", &"it advertises no PUB endpoint");
        for endpoint in endpoints {
            match subscriber(endpoint).await {
                Ok((socket, monitor)) => return Ok(Self { endpoint: endpoint.clone(), socket, monitor }),
                Err(cause) => trouble = cause,
            }
        }
        Err(trouble)
    }

    /// Asks for the frames that begin with `prefix`.
    pub(super) async fn subscribe(&mut self, prefix: &str) -> Result<(), Cause> {
        let subscribed = timeout(SUBSCRIBE_TIMEOUT, self.socket.subscribe(prefix)).await;
        self.written(subscribed)
    }

    /// Asks for them no longer.
    pub(super) async fn unsubscribe(&mut self, prefix: &str) -> Result<(), Cause> {
        let unsubscribed = timeout(SUBSCRIBE_TIMEOUT, self.socket.unsubscribe(prefix)).await;
        self.written(unsubscribed)
    }

    fn written<E>(&self, outcome: Result<Result<(), ZmqError>, E>) -> Result<(), Cause> {
        match outcome {
            Ok(written) => written.map_err(|error| failed(&self.endpoint, &error)),
            Err(_elapsed) => Err(self.failure(&"the primary does not read our subscriptions")),
        }
    }

    /// Waits for the next frame, or tells why there will be none. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Bytes, Cause> {
        let message = tokio::select! {
            // What came before the end is taken before it.
            biased;
            message = self.socket.recv() => message.map_err(|error| failed(&self.endpoint, &error))?,
            () = disconnected(&mut self.monitor) => return Err(self.failure(&"the primary closed the connection")),
        };
        // An event is one frame. Anything else is handed on as what is surely no event, and counted there.
        Ok(if message.len() == 1 { message.into_vecdeque().pop_back().unwrap_or_default() } else { Bytes::new() })
    }

    /// Returns the cause for something that is wrong with this peer.
    pub(super) fn failure(&self, detail: &dyn Display) -> Cause {
        failed(&self.endpoint, detail)
    }
}

pub(super) fn failed(endpoint: &str, detail: &dyn Display) -> Cause {
    Cause::ConnectionFailed { endpoint: endpoint.to_owned(), detail: detail.to_string() }
}

async fn subscriber(endpoint: &str) -> Result<(SubSocket, Monitor), Cause> {
    // The crate takes a missing socket file for "not yet" and waits, while the next door may be open.
    if let Some(path) = endpoint.strip_prefix("ipc://")
        && !Path::new(path).exists()
    {
        return Err(failed(endpoint, &"the socket file does not exist"));
    }
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    let mut socket = SubSocket::with_options(options);
    let monitor = socket.monitor();
    socket.connect(endpoint).await.map_err(|error| failed(endpoint, &error))?;
    Ok((socket, monitor))
}

/// Waits until the monitor says that the peer is gone.
async fn disconnected(monitor: &mut Monitor) {
    while let Some(event) = monitor.next().await {
        if matches!(event, SocketEvent::Disconnected(_) | SocketEvent::Closed) {
            return;
        }
    }
}
