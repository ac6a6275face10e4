//! A ZMTP peer made of bare bytes, and the notation in which such bytes are pinned.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a subscription is given before it is probed again.
const MOMENT: Duration = Duration::from_millis(20);

/// Flag of a frame: more frames of this message follow.
const MORE: u8 = 1;
/// Flag of a frame: its length has 8 bytes.
const LONG: u8 = 2;

/// A connection of bare bytes.
pub(crate) struct RawPeer(TcpStream);

impl RawPeer {
    /// Connects to a port, and says nothing.
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Connects as a socket of this type and shakes hands.
    pub(crate) fn handshake(port: u16, socket_type: &str) -> Self {
        let mut peer = Self::connect(port);
        peer.send(&bytes_of("ff 00*8 7f 03 00 'NULL' 00*48"));
        let length = 22 + socket_type.len();
        let of_type = socket_type.len();
        peer.send(&bytes_of(&format!("04 {length:02x} 05 'READY' 0b 'Socket-Type' {of_type:08x} '{socket_type}'")));
        assert_eq!(peer.receive(64)[..10], bytes_of("ff 00*8 7f"));
        let (_, ready) = peer.frame();
        assert!(ready.starts_with(b"\x05READY"), "{ready:?}");
        peer
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Receives so many bytes.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{count} bytes did not come: {error}"));
        bytes
    }

    /// Sends a message of one frame behind an empty delimiter.
    pub(crate) fn request(&mut self, body: &[u8]) {
        self.send(&[MORE, 0, LONG]);
        self.send(&(body.len() as u64).to_be_bytes());
        self.send(body);
    }

    /// Subscribes in the way of ZMTP 3.0: by a message.
    pub(crate) fn subscribe(&mut self, prefix: &str) {
        self.send(&[0, u8::try_from(prefix.len() + 1).unwrap(), 1]);
        self.send(prefix.as_bytes());
    }

    /// Receives a whole message.
    pub(crate) fn message(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let (flags, frame) = self.frame();
            frames.push(frame);
            if flags & MORE == 0 {
                return frames;
            }
        }
    }

    /// Tells whether something comes within a moment.
    pub(crate) fn has_frame(&self) -> bool {
        self.0.set_read_timeout(Some(MOMENT)).unwrap();
        let is_there = matches!(self.0.peek(&mut [0]), Ok(1));
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        is_there
    }

    /// Reads until the other side has closed the connection; returns what it still said.
    pub(crate) fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            // Bytes that it did not read any more make it a reset.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        rest
    }

    fn frame(&mut self) -> (u8, Vec<u8>) {
        let flags = self.receive(1)[0];
        let length = if flags & LONG == 0 {
            u64::from(self.receive(1)[0])
        } else {
            u64::from_be_bytes(self.receive(8).try_into().unwrap())
        };
        (flags, self.receive(usize::try_from(length).unwrap()))
    }
}

/// Reads the notation of `tests/golden/*.bytes`: words of hex digits, `00*8`, and text in single quotes.
pub(crate) fn bytes_of(notation: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, part) in notation.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        for word in part.split_whitespace() {
            let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
            let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
            let word: Vec<u8> = pairs.collect();
            bytes.extend(word.repeat(times.parse().unwrap()));
        }
    }
    bytes
}
