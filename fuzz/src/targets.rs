//! What is fed, and what must hold of it for every input. Each function panics when it does not.

use std::hint::black_box;

use pando_ipc::rpc::{Incoming, Request, parse_request, parse_response};
use pando_ipc::zmtp::{Engine, Event, SocketType, WireLimits, ZmtpError};
use pando_ipc::{Envelope, LockInfo, Pattern, Topic};

/// A thing to feed.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 6] =
    [("zmtp", zmtp), ("rpc", rpc), ("envelope", envelope), ("lock", lock), ("topic", topic), ("proof", proof)];

/// Feeds the chunks to an engine; returns every event and how it ended.
fn converse<'a>(role: SocketType, chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), ZmtpError>) {
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

/// The byte stream of a peer: no memory beyond the limits, and the same events wherever it is split. The first two bytes
/// choose our socket and the size of the pieces.
pub fn zmtp(input: &[u8]) {
    let [role, step, bytes @ ..] = input else { return };
    if bytes.is_empty() {
        return;
    }
    let role = [SocketType::Router, SocketType::Pub, SocketType::Dealer][usize::from(role % 3)];
    let whole = converse(role, std::iter::once(bytes));
    let split = converse(role, bytes.chunks(usize::from(*step).max(1)));
    assert_eq!(whole, split);
}

/// A request body, and an answer: ids come back as they came, and what we write we read.
pub fn rpc(body: &[u8]) {
    let sent = String::from_utf8_lossy(body);
    match parse_request(body) {
        Ok(Incoming::Single(request)) => check_request(&request, &sent),
        Ok(Incoming::Batch(parts)) => parts.iter().flatten().for_each(|request| check_request(request, &sent)),
        Err(refusal) => assert!(refusal.outcome.is_err()),
    }
    if let Ok(response) = parse_response(body) {
        let written = serde_json::to_vec(&response).expect("an answer is JSON");
        assert_eq!(parse_response(&written).expect("what we write we read").outcome, response.outcome);
    }
}

/// Checks that a request is written as one that is read alike.
fn check_request(request: &Request, sent: &str) {
    if let Some(id) = &request.id {
        assert!(sent.contains(id.as_json()), "the id comes back as it came");
    }
    let written = serde_json::to_vec(request).expect("a request is JSON");
    match parse_request(&written) {
        Ok(Incoming::Single(again)) => assert_eq!(&again, request),
        other => panic!("{request:?} was read again as {other:?}"),
    }
}

/// A PUB frame: what is read is written and read again as the same event, and its envelope is what its type says.
pub fn envelope(frame: &[u8]) {
    if let Some((_, json)) = std::str::from_utf8(frame).ok().and_then(|text| text.split_once('\0')) {
        assert_eq!(Envelope::from_json(json).ok(), serde_json::from_str(json).ok());
    }
    if let Ok(event) = Envelope::from_frame(frame) {
        assert_eq!(Envelope::from_frame(&event.to_frame()).expect("what we write we read"), event);
    }
}

/// The content of a lock file: what is read is written and read again as the same.
pub fn lock(content: &[u8]) {
    if let Ok(info) = serde_json::from_slice::<LockInfo>(content) {
        let again: LockInfo = serde_json::from_str(&info.to_text()).expect("what we write we read");
        assert_eq!(again, info);
        drop(info.doors());
    }
}

/// A pattern and a topic, a line feed between them: the pattern matches what a slow and simple matcher says, its ZeroMQ
/// subscription selects the frames of all topics that it matches, and its text reads as the same pattern.
pub fn topic(lines: &[u8]) {
    let text = String::from_utf8_lossy(lines);
    let Some((glob, topic)) = text.split_once('\n') else { return };
    let (Ok(pattern), Ok(topic)) = (Pattern::new(glob), Topic::new(topic)) else { return };
    assert_eq!(pattern.matches(topic.as_str()), fits(glob.as_bytes(), topic.as_str().as_bytes()));
    if pattern.matches(topic.as_str()) {
        assert!(format!("{topic}\0").starts_with(&pattern.subscription()));
    }
    assert_eq!(Pattern::new(&pattern.to_string()), Ok(pattern));
}

/// Matches byte by byte, with every way to read each star at once: `open[i]` tells whether the glob up to `i` fits.
fn fits(glob: &[u8], text: &[u8]) -> bool {
    let mut open = vec![false; glob.len() + 1];
    open[0] = true;
    let skip_stars = |open: &mut Vec<bool>| {
        for at in 0..glob.len() {
            open[at + 1] |= open[at] && glob[at] == b'*';
        }
    };
    skip_stars(&mut open);
    for byte in text {
        let mut next = vec![false; glob.len() + 1];
        for at in 0..glob.len() {
            next[at] |= open[at] && glob[at] == b'*';
            next[at + 1] |= open[at] && glob[at] == *byte;
        }
        skip_stars(&mut next);
        open = next;
    }
    open[glob.len()]
}

/// Breaks for one input in 2^40, which only who sees how far each came will find: the proof that the driver is not blind.
pub fn proof(input: &[u8]) {
    let is = |at: usize, byte: u8| black_box(input.get(at).copied()) == Some(byte);
    if is(0, b'p') && is(1, b'a') && is(2, b'n') && is(3, b'd') && is(4, b'o') {
        panic!("found");
    }
}
