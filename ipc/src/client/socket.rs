//! The sockets of a link, and how the `zeromq` crate's behave: the one place of the client that knows them.
//!
//! A socket here lives for one connection. `DEALER` never reconnects and its `recv` then hangs for ever, so
//! [`Dealer::next`] listens to the monitor as well; `SUB` does reconnect, but late, so it is dropped all the same.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend,
    SubSocket, ZmqError, ZmqMessage,
};

use super::error::Cause;

/// How long connecting to one endpoint may take, ZMTP handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a subscription may take to be written; a peer that does not read is gone for us.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

type Monitor = mpsc::Receiver<SocketEvent>;

/// A connected DEALER: calls go out, answers come in.
pub(super) struct Dealer {
    endpoint: String,
    send: DealerSendHalf,
    recv: DealerRecvHalf,
    monitor: Monitor,
    /// Messages handed over so far.
    sent: u64,
}

impl Dealer {
    /// Connects to one endpoint.
    pub(super) async fn open(endpoint: &str) -> Result<Self, Cause> {
        let (socket, monitor): (DealerSocket, _) = connect(endpoint).await?;
        let (send, recv) = socket.split();
        Ok(Self { endpoint: endpoint.to_owned(), send, recv, monitor, sent: 0 })
    }

    /// Returns how many messages were handed over so far: the place of the last one in the stream.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Hands a message body to the socket. On an error it was not sent.
    pub(super) async fn send(&mut self, body: Bytes) -> Result<(), Cause> {
        let mut message = ZmqMessage::from(Bytes::new());
        message.push_back(body);
        self.send.send(message).await.map_err(|error| failed(&self.endpoint, &error))?;
        self.sent += 1;
        Ok(())
    }

    /// Waits for the next message body, or tells why there will be none. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Bytes, Cause> {
        let message = tokio::select! {
            message = self.recv.recv() => message.map_err(|error| failed(&self.endpoint, &error))?,
            () = disconnected(&mut self.monitor) => return Err(self.failure(&"the primary closed the connection")),
        };
        Ok(message.into_vecdeque().pop_back().unwrap_or_default())
    }

    /// Returns the cause for something that is wrong with this peer.
    pub(super) fn failure(&self, detail: &dyn Display) -> Cause {
        failed(&self.endpoint, detail)
    }
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
            match connect(endpoint).await {
                Ok((socket, monitor)) => return Ok(Self { endpoint: endpoint.clone(), socket, monitor }),
                Err(cause) => trouble = cause,
            }
        }
        Err(trouble)
    }

    /// Asks for the frames that begin with `prefix`.
    pub(super) async fn subscribe(&mut self, prefix: &str) -> Result<(), Cause> {
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, self.socket.subscribe(prefix)).await;
        self.written(subscribed)
    }

    /// Asks for them no longer.
    pub(super) async fn unsubscribe(&mut self, prefix: &str) -> Result<(), Cause> {
        let unsubscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, self.socket.unsubscribe(prefix)).await;
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

async fn connect<S: Socket>(endpoint: &str) -> Result<(S, Monitor), Cause> {
    // The crate takes a missing socket file for "not yet" and waits, while the next door may be open.
    if let Some(path) = endpoint.strip_prefix("ipc://")
        && !Path::new(path).exists()
    {
        return Err(failed(endpoint, &"the socket file does not exist"));
    }
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    let mut socket = S::with_options(options);
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
