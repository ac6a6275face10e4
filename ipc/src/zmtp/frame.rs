//! Frames: flags, length, body.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::ZmtpError;

/// Flag: more parts of this message follow.
pub(super) const MORE: u8 = 0b001;
/// Flag: the length has 8 bytes.
pub(super) const LONG: u8 = 0b010;
/// Flag: the frame is a command.
pub(super) const COMMAND: u8 = 0b100;
/// Longest header: flags and 8 bytes of length.
const LONG_HEADER: usize = 9;
/// The empty delimiter frame in front of a body: flags (more follows), length 0.
const DELIMITER: [u8; 2] = [MORE, 0];

/// What a frame announces of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) more: bool,
    pub(super) command: bool,
    /// Bytes of the header itself.
    pub(super) own_bytes: usize,
    /// Bytes of the body: what the peer says, not to be trusted.
    pub(super) body_bytes: u64,
}

impl Header {
    /// Reads a header; `None` while it is incomplete.
    pub(super) fn read(input: &[u8]) -> Result<Option<Self>, ZmtpError> {
        let Some(&flags) = input.first() else { return Ok(None) };
        let (more, command) = (flags & MORE != 0, flags & COMMAND != 0);
        if flags & !(MORE | LONG | COMMAND) != 0 || (more && command) {
            return Err(ZmtpError::Flags(flags));
        }
        let (own_bytes, body_bytes) = if flags & LONG == 0 {
            let Some(&length) = input.get(1) else { return Ok(None) };
            (2, u64::from(length))
        } else {
            let Some(length) = input.get(1..LONG_HEADER).and_then(|bytes| bytes.try_into().ok()) else {
                return Ok(None);
            };
            (LONG_HEADER, u64::from_be_bytes(length))
        };
        Ok(Some(Self { more, command, own_bytes, body_bytes }))
    }
}

/// Writes a header: the short form wherever it fits.
fn put_header(out: &mut impl BufMut, flags: u8, body_bytes: usize) {
    if let Ok(short) = u8::try_from(body_bytes) {
        out.put_slice(&[flags, short]);
    } else {
        out.put_u8(flags | LONG);
        out.put_u64(body_bytes as u64);
    }
}

/// Returns the bytes of a frame.
fn encode(flags: u8, body: &[&[u8]]) -> Bytes {
    let body_bytes = body.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(LONG_HEADER + body_bytes);
    put_header(&mut out, flags, body_bytes);
    for part in body {
        out.put_slice(part);
    }
    out.freeze()
}

/// Returns the bytes of a command: its name with a length byte, then its data.
pub(super) fn encode_command(name: &'static str, data: &[&[u8]]) -> Bytes {
    #[expect(clippy::cast_possible_truncation, reason = "the names are ours and short")]
    let length = [name.len() as u8];
    let mut body: Vec<&[u8]> = vec![&length, name.as_bytes()];
    body.extend_from_slice(data);
    encode(COMMAND, &body)
}

/// Returns the bytes of a message of one frame.
pub fn encode_message(frame: &[u8]) -> Bytes {
    encode(0, &[frame])
}

/// Returns the bytes of the message `["", body]`, where `write` appends the body. Nothing is copied.
pub fn encode_delimited(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    /// Most bodies fit into so many bytes without a second allocation.
    const USUAL_BODY_BYTES: usize = 512;
    encode_written(&DELIMITER, USUAL_BODY_BYTES, write).0
}

/// Returns the bytes of a message of one frame, which `write` appends, and where in them the frame begins. Nothing is copied where it has no more
/// bytes than expected.
pub(crate) fn encode_message_with(expected_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> (Bytes, usize) {
    encode_written(&[], expected_bytes, write)
}

fn encode_written(before: &[u8], expected_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> (Bytes, usize) {
    const RESERVED: usize = DELIMITER.len() + LONG_HEADER;
    let mut out = Vec::with_capacity(RESERVED + expected_bytes);
    out.resize(RESERVED, 0);
    write(&mut out);
    let mut head = [0; RESERVED];
    let mut rest = &mut head[..];
    rest.put_slice(before);
    put_header(&mut rest, 0, out.len() - RESERVED);
    // The header stands right before the body, however long it is.
    let start = rest.len();
    out[start..RESERVED].copy_from_slice(&head[..RESERVED - start]);
    (Bytes::from(out).slice(start..), RESERVED - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_short_up_to_255_bytes() {
        assert_eq!(encode_message(b"ab").as_ref(), b"\x00\x02ab");
        assert_eq!(&encode_message(&[7; 255])[..3], [0, 255, 7]);
        assert_eq!(&encode_message(&[7; 256])[..10], [2, 0, 0, 0, 0, 0, 0, 1, 0, 7]);
    }

    #[test]
    fn a_delimited_message_is_a_delimiter_and_a_body() {
        assert_eq!(encode_delimited(|out| out.extend(b"{}")).as_ref(), b"\x01\x00\x00\x02{}");
        let long = encode_delimited(|out| out.extend([7; 300]));
        assert_eq!(&long[..12], [1, 0, 2, 0, 0, 0, 0, 0, 0, 1, 44, 7]);
        assert_eq!(long.len(), 311);
    }

    #[test]
    fn an_event_is_a_message_and_stands_behind_its_header() {
        for bytes in [0, 255, 256, 1_000] {
            let (message, at) = encode_message_with(300, |out| out.extend(vec![7; bytes]));
            assert_eq!(message, encode_message(&vec![7; bytes]));
            assert_eq!(message[at..], vec![7; bytes]);
        }
    }

    #[test]
    fn reserved_flags_and_commands_with_more_are_refused() {
        for flags in [0x08, 0x80, 0x05, 0x07, 0xff] {
            assert_eq!(Header::read(&[flags]), Err(ZmtpError::Flags(flags)));
        }
    }
}
