//! One connection's byte stream as a state machine.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};

use super::WireLimits;
use super::command::Command;
use super::error::ZmtpError;
use super::frame::{Header, encode_command};
use super::greeting::{self, GREETING, GREETING_BYTES};

/// A body above this size leaves the input buffer as a whole, so that it does not pin a buffer of its size for later reads.
const LARGE_BODY_BYTES: usize = 64 * 1024;

/// What our side of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketType {
    /// Answers calls: peers are DEALER, REQ and ROUTER.
    Router,
    /// Sends events: peers are SUB and XSUB.
    Pub,
    /// Calls: peers are ROUTER, REP and DEALER.
    Dealer,
}

impl SocketType {
    /// Returns its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "ROUTER",
            Self::Pub => "PUB",
            Self::Dealer => "DEALER",
        }
    }

    fn accepts(self, socket_type: &[u8]) -> bool {
        match self {
            Self::Router => matches!(socket_type, b"DEALER" | b"REQ" | b"ROUTER"),
            Self::Pub => matches!(socket_type, b"SUB" | b"XSUB"),
            Self::Dealer => matches!(socket_type, b"ROUTER" | b"REP" | b"DEALER"),
        }
    }
}

/// What the peer says of itself. None of it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// ZMTP version, major and minor.
    pub version: (u8, u8),
    /// Its socket type.
    pub socket_type: String,
    /// The identity it claims: a label for people, never an address.
    pub identity: Box<[u8]>,
}

/// What came of the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These bytes go to the peer, in order.
    Send(Bytes),
    /// The handshake is done.
    Ready(Remote),
    /// The last frame of a whole message: those before it are an envelope, with or without a delimiter. Not to a PUB.
    Message(Bytes),
    /// The peer asks for frames that begin so. To a PUB only.
    Subscribe(Bytes),
    /// The peer takes back one such request. To a PUB only.
    Unsubscribe(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Greeting,
    Handshake { version: (u8, u8) },
    Open,
    Failed,
}

/// Our side of one connection.
///
/// Append what was read to [`Engine::input`], then [`poll`](Engine::poll) until it returns `None`. It holds at most one
/// incomplete message (see [`WireLimits`]) and what was appended beyond that.
#[derive(Debug)]
pub struct Engine {
    ours: SocketType,
    limits: WireLimits,
    state: State,
    input: BytesMut,
    /// Parts of the message that has begun, and their bytes.
    parts: usize,
    parts_bytes: usize,
}

impl Engine {
    /// Returns the engine of a new connection. The first poll yields our greeting.
    pub fn new(ours: SocketType, limits: WireLimits) -> Self {
        Self { ours, limits, state: State::Start, input: BytesMut::new(), parts: 0, parts_bytes: 0 }
    }

    /// Returns the buffer to which the peer's bytes are appended. Nothing else may be done to it.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Tells whether a message or a command has begun and not ended.
    pub fn is_amid(&self) -> bool {
        !self.input.is_empty() || self.parts > 0
    }

    /// Returns the next event; `None` when more bytes are needed. After an error only [`ZmtpError::Failed`] follows.
    pub fn poll(&mut self) -> Result<Option<Event>, ZmtpError> {
        let polled = self.step();
        if polled.is_err() {
            self.state = State::Failed;
            self.input = BytesMut::new();
            self.parts = 0;
        }
        polled
    }

    fn step(&mut self) -> Result<Option<Event>, ZmtpError> {
        match self.state {
            State::Failed => Err(ZmtpError::Failed),
            State::Start => {
                self.state = State::Greeting;
                Ok(Some(Event::Send(Bytes::from_static(&GREETING))))
            }
            State::Greeting => {
                let Some(version) = greeting::read(&self.input)? else { return Ok(None) };
                self.input.advance(GREETING_BYTES);
                self.state = State::Handshake { version };
                Ok(Some(Event::Send(self.ready())))
            }
            State::Handshake { .. } | State::Open => {
                while let Some((header, body)) = self.next_frame()? {
                    if let Some(event) = self.take_frame(header, body)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None)
            }
        }
    }

    fn ready(&self) -> Bytes {
        let socket_type = self.ours.name().as_bytes();
        #[expect(clippy::cast_possible_truncation, reason = "the names are short")]
        let length = (socket_type.len() as u32).to_be_bytes();
        encode_command("READY", &[b"\x0bSocket-Type", &length, socket_type])
    }

    /// Takes the next whole frame off the input, once its announced size has passed the limits. Those before the last of a message are counted and
    /// dropped.
    fn next_frame(&mut self) -> Result<Option<(Header, Bytes)>, ZmtpError> {
        while let Some(header) = Header::read(&self.input)? {
            let body_bytes = self.checked_size(header)?;
            if self.input.len() - header.own_bytes < body_bytes {
                return Ok(None);
            }
            self.input.advance(header.own_bytes);
            let body = self.take_body(body_bytes);
            if !header.more {
                return Ok(Some((header, body)));
            }
            self.parts += 1;
            self.parts_bytes += body_bytes;
        }
        Ok(None)
    }

    fn take_body(&mut self, bytes: usize) -> Bytes {
        match bytes {
            // Most delimiters: they share nothing of the buffer.
            0 => Bytes::new(),
            1..=LARGE_BODY_BYTES => self.input.split_to(bytes).freeze(),
            _ => {
                let rest = BytesMut::from(&self.input[bytes..]);
                self.input.truncate(bytes);
                mem::replace(&mut self.input, rest).freeze()
            }
        }
    }

    fn checked_size(&self, header: Header) -> Result<usize, ZmtpError> {
        let announced = header.body_bytes;
        if !header.command && self.state != State::Open {
            return Err(ZmtpError::NotReady);
        }
        // Subscribers send nothing but commands and subscriptions.
        let limit = if header.command || self.ours == SocketType::Pub {
            self.limits.max_command_bytes
        } else {
            self.limits.max_message_bytes
        };
        let size = usize::try_from(announced).ok().filter(|size| *size <= limit);
        let Some(size) = size else {
            return Err(if header.command || self.ours == SocketType::Pub {
                ZmtpError::CommandTooLong { bytes: announced, limit }
            } else {
                ZmtpError::MessageTooLong { bytes: announced, limit }
            });
        };
        if header.command {
            return Ok(size);
        }
        if self.parts >= self.limits.max_parts {
            return Err(ZmtpError::TooManyParts { limit: self.limits.max_parts });
        }
        let whole = self.parts_bytes + size;
        if whole > self.limits.max_message_bytes {
            return Err(ZmtpError::MessageTooLong { bytes: whole as u64, limit: self.limits.max_message_bytes });
        }
        Ok(size)
    }

    fn take_frame(&mut self, header: Header, body: Bytes) -> Result<Option<Event>, ZmtpError> {
        if header.command {
            return self.take_command(Command::read(body)?);
        }
        self.parts_bytes = 0;
        let before = mem::take(&mut self.parts);
        match self.ours {
            SocketType::Router | SocketType::Dealer => Ok(Some(Event::Message(body))),
            SocketType::Pub if before == 0 => Ok(subscription(&body)),
            SocketType::Pub => Ok(None),
        }
    }

    fn take_command(&mut self, command: Command) -> Result<Option<Event>, ZmtpError> {
        match (self.state, command) {
            (_, Command::Error { reason }) => Err(ZmtpError::Refused(String::from_utf8_lossy(&reason).into_owned())),
            (State::Handshake { version }, Command::Ready { socket_type, identity }) => {
                let named = String::from_utf8_lossy(&socket_type).into_owned();
                if !self.ours.accepts(&socket_type) {
                    return Err(ZmtpError::SocketType { ours: self.ours.name(), theirs: named });
                }
                self.state = State::Open;
                Ok(Some(Event::Ready(Remote { version, socket_type: named, identity: (*identity).into() })))
            }
            (State::Handshake { .. }, _) => Err(ZmtpError::NotReady),
            (_, Command::Ready { .. }) => Err(ZmtpError::ReadyAgain),
            // Whoever sends a PING knows the answer, so it is given whatever version the greeting named.
            (_, Command::Ping { context }) => Ok(Some(Event::Send(encode_command("PONG", &[&context])))),
            (_, Command::Subscribe(prefix)) if self.ours == SocketType::Pub => Ok(Some(Event::Subscribe(prefix))),
            (_, Command::Cancel(prefix)) if self.ours == SocketType::Pub => Ok(Some(Event::Unsubscribe(prefix))),
            (_, Command::Subscribe(_) | Command::Cancel(_) | Command::Unknown) => Ok(None),
        }
    }
}

/// Reads a subscription of the 3.0 form: one frame, `01` or `00`, then the prefix. Other messages to a PUB mean nothing.
fn subscription(frame: &Bytes) -> Option<Event> {
    match frame.first()? {
        1 => Some(Event::Subscribe(frame.slice(1..))),
        0 => Some(Event::Unsubscribe(frame.slice(1..))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
