//! Commands: READY and what may follow it.

use bytes::{Buf, Bytes};

use super::error::ZmtpError;

/// Longest context of a PING, as the standard says.
const MAX_PING_CONTEXT: usize = 16;

/// A command, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ready {
        socket_type: Bytes,
        identity: Bytes,
    },
    Error {
        reason: Bytes,
    },
    Subscribe(Bytes),
    Cancel(Bytes),
    Ping {
        context: Bytes,
    },
    /// Any other name: a later standard may know it.
    Unknown,
}

impl Command {
    /// Reads the body of a command frame.
    pub(super) fn read(mut body: Bytes) -> Result<Self, ZmtpError> {
        let name = short(&mut body).ok_or(ZmtpError::Command("name"))?;
        Ok(match &name[..] {
            b"READY" => return ready(body).ok_or(ZmtpError::Command("READY")),
            b"ERROR" => Self::Error { reason: short(&mut body).ok_or(ZmtpError::Command("ERROR"))? },
            b"SUBSCRIBE" => Self::Subscribe(body),
            b"CANCEL" => Self::Cancel(body),
            b"PING" if !(2..=2 + MAX_PING_CONTEXT).contains(&body.len()) => return Err(ZmtpError::Command("PING")),
            b"PING" => Self::Ping { context: body.slice(2..) },
            _ => Self::Unknown,
        })
    }
}

/// Takes a text that begins with its length in one byte.
fn short(body: &mut Bytes) -> Option<Bytes> {
    let length = body.try_get_u8().ok()?;
    take(body, usize::from(length))
}

fn take(body: &mut Bytes, length: usize) -> Option<Bytes> {
    (body.len() >= length).then(|| body.split_to(length))
}

/// Reads the properties of READY; names are compared without case, as the standard says.
fn ready(mut body: Bytes) -> Option<Command> {
    let (mut socket_type, mut identity) = (Bytes::new(), Bytes::new());
    while body.has_remaining() {
        let name = short(&mut body)?;
        let length = body.try_get_u32().ok()?;
        let value = take(&mut body, usize::try_from(length).ok()?)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = value;
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = value;
        }
    }
    Some(Command::Ready { socket_type, identity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &'static [u8]) -> Result<Command, ZmtpError> {
        Command::read(Bytes::from_static(body))
    }

    #[test]
    fn commands_are_read() {
        let ready = read(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08identity\0\0\0\x02id").unwrap();
        assert_eq!(ready, Command::Ready { socket_type: "DEALER".into(), identity: "id".into() });
        assert_eq!(read(b"\x09SUBSCRIBEa.").unwrap(), Command::Subscribe("a.".into()));
        assert_eq!(read(b"\x06CANCEL").unwrap(), Command::Cancel(Bytes::new()));
        assert_eq!(read(b"\x04PING\0\x0actx").unwrap(), Command::Ping { context: "ctx".into() });
        assert_eq!(read(b"\x05ERROR\x02no").unwrap(), Command::Error { reason: "no".into() });
        assert_eq!(read(b"\x04PONG").unwrap(), Command::Unknown);
    }

    #[test]
    fn a_malformed_command_is_refused() {
        for body in [
            &b""[..],
            b"\x05READ",
            b"\x05READY\x0bSocket-Type",
            b"\x05READY\x0bSocket-Type\xff\xff\xff\xffx",
            b"\x04PING\0",
            b"\x04PING\0\0seventeen bytes..",
            b"\x05ERROR\x05no",
        ] {
            assert!(matches!(read(body), Err(ZmtpError::Command(_))), "{body:?}");
        }
    }
}
