//! The byte stream of a peer, split anywhere: no panic, no memory beyond the limits, and the same events however it is split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pando_ipc::zmtp::{Engine, Event, Role, WireLimits, ZmtpError};

/// Feeds the chunks; returns every event and how it ended.
fn run<'a>(role: Role, chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), ZmtpError>) {
    let limits = WireLimits::default();
    let bound = limits.max_message_bytes + 64 * 1024;
    let mut engine = Engine::new(role, limits);
    let mut events = Vec::new();
    for chunk in chunks {
        engine.input().extend_from_slice(chunk);
        loop {
            match engine.poll() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Err(error)),
            }
        }
        assert!(engine.input().capacity() <= bound, "{} bytes are held", engine.input().capacity());
    }
    (events, Ok(()))
}

fuzz_target!(|data: &[u8]| {
    let [role, step, bytes @ ..] = data else { return };
    if bytes.is_empty() {
        return;
    }
    let role = if role % 2 == 0 { Role::Router } else { Role::Pub };
    let whole = run(role, std::iter::once(bytes));
    let split = run(role, bytes.chunks(usize::from(*step).max(1)));
    assert_eq!(whole.0, split.0);
    assert_eq!(whole.1.is_err(), split.1.is_err());
});
