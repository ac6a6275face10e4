//! The first 64 bytes of each side.

use super::error::ZmtpError;

/// Length of a greeting: signature 10, version 2, mechanism 20, as-server 1, filler 31.
pub(super) const GREETING_BYTES: usize = 64;
const MECHANISM: std::ops::Range<usize> = 12..32;

/// Our greeting: ZMTP 3.1, NULL.
pub(super) const GREETING: [u8; GREETING_BYTES] = {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    greeting[12] = b'N';
    greeting[13] = b'U';
    greeting[14] = b'L';
    greeting[15] = b'L';
    greeting
};

/// Reads the peer's greeting and returns its version; `None` while it is incomplete. A wrong byte is refused as soon as it is there.
pub(super) fn read(input: &[u8]) -> Result<Option<(u8, u8)>, ZmtpError> {
    for (at, expected) in [(0, 0xff), (9, 0x7f)] {
        match input.get(at) {
            Some(byte) if *byte != expected => return Err(ZmtpError::Signature { at, byte: *byte }),
            _ => {}
        }
    }
    match input.get(10) {
        Some(major) if *major < 3 => return Err(ZmtpError::Version(*major)),
        _ => {}
    }
    let Some(greeting) = input.get(..GREETING_BYTES) else { return Ok(None) };
    let mechanism = &greeting[MECHANISM];
    if mechanism != &GREETING[MECHANISM] {
        let end = mechanism.iter().position(|byte| *byte == 0).unwrap_or(mechanism.len());
        return Err(ZmtpError::Mechanism(String::from_utf8_lossy(&mechanism[..end]).into_owned()));
    }
    Ok(Some((greeting[10], greeting[11])))
}
