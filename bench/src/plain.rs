//! The two framings that a plain socket speaks here: a length before each message, and as much ZMTP as a DEALER or SUB needs.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes of the length before a message, big-endian.
pub(crate) const LENGTH_BYTES: usize = 4;
/// ZMTP 3.0 with the mechanism NULL, as a client.
const GREETING_BYTES: usize = 64;
/// READY with the socket type, as one command frame.
const DEALER: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER";
const SUB: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB";
/// Flags of a frame.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Returns the length of the message at the start of `bytes`, when it is there as a whole.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    let (head, body) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*head)).ok()?;
    (body.len() >= length).then_some(length)
}

/// How messages are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A length before each.
    Length,
    /// ZMTP frames; a request has an empty one before it.
    Zmtp,
}

impl Framing {
    /// Appends a request.
    pub(crate) fn write(self, body: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Length => out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes()),
            Self::Zmtp => out.extend([MORE, 0, 0, u8::try_from(body.len()).unwrap_or(u8::MAX)]),
        }
        out.extend_from_slice(body);
    }

    /// Returns how many answers are whole in `bytes`, and how many bytes they are.
    pub(crate) fn count(self, bytes: &[u8]) -> (usize, usize) {
        let (mut answers, mut at) = (0, 0);
        match self {
            Self::Length => {
                while let Some(length) = length(&bytes[at..]) {
                    at += LENGTH_BYTES + length;
                    answers += 1;
                }
            }
            Self::Zmtp => {
                while let Some((flags, end)) = frame(&bytes[at..]) {
                    at += end;
                    answers += usize::from(flags & (MORE | COMMAND) == 0);
                }
            }
        }
        (answers, at)
    }
}

/// Returns the flags and the size of the frame at the start of `bytes`, when it is there as a whole.
fn frame(bytes: &[u8]) -> Option<(u8, usize)> {
    let (&flags, rest) = bytes.split_first()?;
    let (head, length) = if flags & LONG == 0 {
        (2, usize::from(*rest.first()?))
    } else {
        (9, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?)
    };
    (bytes.len() >= head + length).then_some((flags, head + length))
}

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    /// On a path.
    Unix(UnixStream),
    /// On a port.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects to `ipc://path` or `tcp://host:port`, and shakes hands where that is needed.
    pub(crate) fn connect(place: &str, framing: Framing) -> io::Result<Self> {
        let mut stream = if let Some(address) = place.strip_prefix("tcp://") {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Self::Tcp(stream)
        } else {
            Self::Unix(UnixStream::connect(place.trim_start_matches("ipc://"))?)
        };
        if framing == Framing::Zmtp {
            stream.shake_hands(DEALER)?;
        }
        Ok(stream)
    }

    fn shake_hands(&mut self, ready: &[u8]) -> io::Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.write_all(&greeting)?;
        self.read_exact(&mut greeting)?;
        self.write_all(ready)?;
        let mut head = [0; 2];
        self.read_exact(&mut head)?;
        if head[0] != COMMAND {
            return Err(io::Error::other("the server did not say READY"));
        }
        let mut metadata = [0; 255];
        self.read_exact(&mut metadata[..usize::from(head[1])])
    }

    /// Connects to a PUB socket and subscribes to what begins with `prefix`.
    pub(crate) fn subscribe(place: &str, prefix: &[u8]) -> io::Result<Self> {
        let mut stream = Self::connect(place, Framing::Length)?;
        stream.shake_hands(SUB)?;
        let mut message = vec![0, u8::try_from(prefix.len() + 1).unwrap_or(u8::MAX), 1];
        message.extend_from_slice(prefix);
        stream.write_all(&message)?;
        Ok(stream)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_when_they_are_whole() {
        for framing in [Framing::Length, Framing::Zmtp] {
            let mut bytes = Vec::new();
            framing.write(b"one", &mut bytes);
            let first = bytes.len();
            framing.write(&[b'x'; 200], &mut bytes);
            assert_eq!(framing.count(&bytes), (2, bytes.len()), "{framing:?}");
            assert_eq!(framing.count(&bytes[..bytes.len() - 1]).0, 1, "{framing:?}");
            assert_eq!(framing.count(&bytes[..first - 1]).0, 0, "{framing:?}");
        }
    }

    #[test]
    fn long_frames_and_commands_are_understood() {
        let long = [&[0, 0][..], &[LONG, 0, 0, 0, 0, 0, 0, 1, 4], &[7; 260]].concat();
        assert_eq!(Framing::Zmtp.count(&long), (2, long.len()));
        assert_eq!(Framing::Zmtp.count(DEALER), (0, DEALER.len()));
        assert_eq!(Framing::Zmtp.count(SUB), (0, SUB.len()));
    }
}
