use proptest::prelude::*;

use super::*;

const HEADROOM: usize = 64 * 1024;

fn greeting(minor: u8) -> Vec<u8> {
    let mut greeting = GREETING.to_vec();
    greeting[11] = minor;
    greeting
}

fn ready(socket_type: &str) -> Vec<u8> {
    let length = u32::try_from(socket_type.len()).unwrap().to_be_bytes();
    encode_command("READY", &[b"\x0bSocket-Type", &length, socket_type.as_bytes()]).to_vec()
}

fn hello(socket_type: &str) -> Vec<u8> {
    [greeting(0), ready(socket_type)].concat()
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![flags];
    if let Ok(short) = u8::try_from(body.len()) {
        out.push(short);
    } else {
        out[0] |= 2;
        out.extend((body.len() as u64).to_be_bytes());
    }
    out.extend(body);
    out
}

/// Feeds the chunks and returns every event, and how it ended.
fn run<'a>(
    role: SocketType,
    limits: &WireLimits,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Result<(), ZmtpError>) {
    let mut engine = Engine::new(role, limits.clone());
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
    }
    (events, Ok(()))
}

#[track_caller]
fn check_refused(role: SocketType, bytes: &[u8], expected: &ZmtpError) {
    let (_, ended) = run(role, &WireLimits::default(), [bytes]);
    assert_eq!(ended.as_ref(), Err(expected));
    let (_, ended) = run(role, &WireLimits::default(), bytes.chunks(1));
    assert_eq!(ended.as_ref(), Err(expected), "byte by byte");
}

#[test]
fn a_dealer_is_greeted_and_its_messages_arrive() {
    let bytes = [hello("DEALER"), frame(1, b""), frame(0, b"{}"), frame(0, &[b'x'; 300])].concat();
    let (events, ended) = run(SocketType::Router, &WireLimits::default(), [&bytes[..]]);
    assert_eq!(ended, Ok(()));
    assert_eq!(events[0], Event::Send(Bytes::from_static(&GREETING)));
    assert_eq!(events[1], Event::Send(Bytes::from_static(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER")));
    let remote = Remote { version: (3, 0), socket_type: "DEALER".into(), identity: [].into() };
    assert_eq!(events[2], Event::Ready(remote));
    assert_eq!(events[3], Event::Message("{}".into()));
    assert_eq!(events[4], Event::Message(Bytes::from(vec![b'x'; 300])));
    assert_eq!(events.len(), 5);
}

/// Lets two sides talk until both have nothing more to say; returns what each has heard.
fn converse(sides: &mut [Engine; 2]) -> [Vec<Event>; 2] {
    let mut heard = [const { Vec::new() }; 2];
    let mut silent = 0;
    for from in [0, 1].into_iter().cycle() {
        silent += 1;
        while let Some(event) = sides[from].poll().unwrap() {
            silent = 0;
            if let Event::Send(bytes) = &event {
                sides[1 - from].input().extend_from_slice(bytes);
            } else {
                heard[from].push(event);
            }
        }
        if silent == 2 {
            break;
        }
    }
    heard
}

#[test]
fn our_dealer_and_our_router_understand_each_other() {
    let mut sides = [SocketType::Dealer, SocketType::Router].map(|ours| Engine::new(ours, WireLimits::default()));
    let remote = |name: &str| Remote { version: (3, 1), socket_type: name.into(), identity: [].into() };
    assert_eq!(converse(&mut sides), [[Event::Ready(remote("ROUTER"))], [Event::Ready(remote("DEALER"))]]);
    let message = crate::zmtp::encode_delimited(|out| out.push(b'x'));
    for side in &mut sides {
        side.input().extend_from_slice(&message);
    }
    let said = || [Event::Message("x".into())];
    assert_eq!(converse(&mut sides), [said(), said()]);
    check_refused(SocketType::Dealer, &hello("PUB"), &ZmtpError::SocketType { ours: "DEALER", theirs: "PUB".into() });
}

#[test]
fn subscriptions_come_as_commands_and_as_messages() {
    let bytes = [
        hello("SUB"),
        frame(4, b"\x09SUBSCRIBEa."),
        frame(4, b"\x06CANCELa."),
        frame(0, b"\x01b"),
        frame(0, b"\x00b"),
        frame(0, b"chatter"),
        frame(0, b"\x01"),
    ]
    .concat();
    let (events, ended) = run(SocketType::Pub, &WireLimits::default(), [&bytes[..]]);
    assert_eq!(ended, Ok(()));
    let expected = [
        Event::Subscribe("a.".into()),
        Event::Unsubscribe("a.".into()),
        Event::Subscribe("b".into()),
        Event::Unsubscribe("b".into()),
        Event::Subscribe(Bytes::new()),
    ];
    assert_eq!(events[3..], expected);
}

#[test]
fn a_ping_gets_its_pong_and_no_ping_is_sent() {
    let bytes = [greeting(1), ready("SUB"), frame(4, b"\x04PING\0\x0actx")].concat();
    let (events, _) = run(SocketType::Pub, &WireLimits::default(), [&bytes[..]]);
    assert_eq!(events[3..], [Event::Send(Bytes::from_static(b"\x04\x08\x04PONGctx"))]);
}

#[test]
fn what_is_no_zmtp_is_refused_at_its_first_wrong_byte() {
    check_refused(SocketType::Router, b"GET / HTTP/1.1", &ZmtpError::Signature { at: 0, byte: b'G' });
    check_refused(SocketType::Router, b"\x16\x03\x01", &ZmtpError::Signature { at: 0, byte: 0x16 });
    check_refused(SocketType::Router, b"\xff\0\0\0\0\0\0\0\0\0", &ZmtpError::Signature { at: 9, byte: 0 });
    check_refused(SocketType::Router, b"\xff\0\0\0\0\0\0\0\x01\x7f\x01", &ZmtpError::Version(1));
    let mut curve = greeting(0);
    curve[12..17].copy_from_slice(b"CURVE");
    check_refused(SocketType::Router, &curve, &ZmtpError::Mechanism("CURVE".into()));
}

#[test]
fn a_handshake_out_of_order_is_refused() {
    let after = |rest: Vec<u8>| [greeting(0), rest].concat();
    check_refused(SocketType::Router, &after(frame(0, b"x")), &ZmtpError::NotReady);
    check_refused(SocketType::Router, &after(frame(4, b"\x04PING\0\0")), &ZmtpError::NotReady);
    check_refused(SocketType::Router, &after(frame(4, b"\x05READ")), &ZmtpError::Command("name"));
    check_refused(SocketType::Router, &after(frame(4, b"\x05ERROR\x02no")), &ZmtpError::Refused("no".into()));
    check_refused(SocketType::Router, &[hello("REQ"), ready("REQ")].concat(), &ZmtpError::ReadyAgain);
    let wrong = |ours, theirs: &str| ZmtpError::SocketType { ours, theirs: theirs.into() };
    check_refused(SocketType::Router, &hello("SUB"), &wrong("ROUTER", "SUB"));
    check_refused(SocketType::Pub, &hello("DEALER"), &wrong("PUB", "DEALER"));
    check_refused(SocketType::Router, &after(frame(4, b"\x05READY")), &wrong("ROUTER", ""));
}

#[test]
fn announced_sizes_are_held_against_the_limits_before_they_arrive() {
    let limit = WireLimits::default().max_message_bytes;
    for bytes in [limit as u64 + 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, u64::MAX] {
        let long = |flags: u8| [hello("DEALER"), vec![flags | 2], bytes.to_be_bytes().to_vec()].concat();
        check_refused(SocketType::Router, &long(0), &ZmtpError::MessageTooLong { bytes, limit });
        check_refused(SocketType::Router, &long(4), &ZmtpError::CommandTooLong { bytes, limit: 4096 });
        let before = [greeting(0), vec![6], bytes.to_be_bytes().to_vec()].concat();
        check_refused(SocketType::Router, &before, &ZmtpError::CommandTooLong { bytes, limit: 4096 });
        let sub = [hello("SUB"), vec![2], bytes.to_be_bytes().to_vec()].concat();
        check_refused(SocketType::Pub, &sub, &ZmtpError::CommandTooLong { bytes, limit: 4096 });
    }
}

#[test]
fn endless_parts_are_refused() {
    let empty = [hello("DEALER"), frame(1, b"").repeat(33)].concat();
    check_refused(SocketType::Router, &empty, &ZmtpError::TooManyParts { limit: 32 });
    let large = [hello("DEALER"), frame(1, &vec![0; 3 << 20]), frame(1, &vec![0; 2 << 20])].concat();
    let (_, ended) = run(SocketType::Router, &WireLimits::default(), [&large[..]]);
    assert_eq!(ended, Err(ZmtpError::MessageTooLong { bytes: 5 << 20, limit: 4 << 20 }));
}

#[test]
fn a_failed_engine_stays_failed() {
    let mut engine = Engine::new(SocketType::Pub, WireLimits::default());
    engine.poll().unwrap();
    engine.input().extend_from_slice(b"GET /");
    assert!(engine.poll().is_err());
    engine.input().extend_from_slice(&hello("SUB"));
    assert_eq!(engine.poll(), Err(ZmtpError::Failed));
}

fn router_frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let body = prop::collection::vec(any::<u8>(), 0..400);
    let message = prop::collection::vec(body, 1..4).prop_map(|parts| {
        let last = parts.len() - 1;
        parts.iter().enumerate().flat_map(|(at, part)| frame(u8::from(at < last), part)).collect()
    });
    let command = prop_oneof![Just(frame(4, b"\x04PING\0\x01ab")), Just(frame(4, b"\x05OTHERxyz"))];
    prop::collection::vec(prop_oneof![4 => message, 1 => command], 0..12)
}

proptest! {
    #[test]
    fn how_a_stream_is_cut_into_reads_changes_nothing(
        frames in router_frames(),
        cuts in prop::collection::vec(1_usize..200, 1..40),
    ) {
        let bytes = [hello("DEALER"), frames.concat()].concat();
        let (whole, ended) = run(SocketType::Router, &WireLimits::default(), [&bytes[..]]);
        prop_assert_eq!(ended, Ok(()));
        let mut chunks = Vec::new();
        let (mut rest, mut sizes) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            chunks.push(chunk);
            rest = tail;
        }
        let (cut, ended) = run(SocketType::Router, &WireLimits::default(), chunks);
        prop_assert_eq!(ended, Ok(()));
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_pile_up(
        role in prop_oneof![Just(SocketType::Router), Just(SocketType::Pub), Just(SocketType::Dealer)],
        handshake in 0_usize..3,
        noise in prop::collection::vec(
            prop_oneof![prop::collection::vec(any::<u8>(), 0..64), prop::collection::vec(0_u8..8, 0..600)], 0..40),
    ) {
        let limits = WireLimits { max_message_bytes: 1_000, max_parts: 4, max_command_bytes: 200, ..WireLimits::default() };
        let socket_type = if role == SocketType::Pub { "SUB" } else { "DEALER" };
        let mut engine = Engine::new(role, limits);
        let prefix = [vec![], greeting(1), hello(socket_type)];
        'stream: for chunk in std::iter::once(&prefix[handshake]).chain(&noise) {
            engine.input().extend_from_slice(chunk);
            loop {
                match engine.poll() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
            prop_assert!(engine.input.len() <= 1_000 + 200 + 9, "{} bytes held", engine.input.len());
            prop_assert!(engine.input.capacity() <= HEADROOM);
        }
    }
}

/// What the peers of the pinned conversations send.
fn golden() -> Vec<Vec<u8>> {
    let scripts = [
        include_str!("../../../../tests/golden/caller.bytes"),
        include_str!("../../../../tests/golden/subscriber.bytes"),
    ];
    scripts.map(|script| script.lines().filter_map(|line| line.strip_prefix('>')).flat_map(bytes_of).collect()).into()
}

/// Reads the notation of `tests/golden/*.bytes`: words of hex digits, `00*8`, and text in single quotes.
fn bytes_of(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        for word in part.split_whitespace() {
            let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
            let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
            bytes.extend(pairs.collect::<Vec<_>>().repeat(times.parse().unwrap()));
        }
    }
    bytes
}

/// A change to a conversation, its places as fractions of the length.
#[derive(Debug, Clone)]
enum Mutation {
    Set(f64, u8),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Repeat(f64, usize),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a short text"
        )]
        let place = |fraction: f64| (fraction * bytes.len() as f64) as usize;
        match self {
            Self::Set(at, byte) => {
                let at = place(*at);
                bytes.splice(at..(at + 1).min(bytes.len()), [*byte]);
            }
            Self::Insert(at, what) => {
                let at = place(*at);
                bytes.splice(at..at, what.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = place(*at);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Repeat(at, count) => {
                let at = place(*at);
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let header = any::<u64>().prop_map(|length| [&[2][..], &length.to_be_bytes()].concat());
    let noise = prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        (0.0..1.0, any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (0.0..1.0, prop_oneof![header, noise]).prop_map(|(at, what)| Mutation::Insert(at, what)),
        (0.0..1.0, 1..80_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (0.0..1.0, 1..200_usize).prop_map(|(at, count)| Mutation::Repeat(at, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn mutated_conversations_end_alike_however_they_are_split(
        which in 0..2_usize,
        role in prop_oneof![Just(SocketType::Router), Just(SocketType::Pub)],
        mutations in prop::collection::vec(mutation(), 0..6),
        step in 1..100_usize,
    ) {
        let mut bytes = golden().swap_remove(which);
        let is_golden = mutations.is_empty() && (which == 0) == (role == SocketType::Router);
        for mutation in &mutations {
            mutation.apply(&mut bytes);
        }
        prop_assume!(!bytes.is_empty());
        let limits = WireLimits { max_message_bytes: 1_000, max_command_bytes: 100, ..WireLimits::default() };
        let (whole, ended) = run(role, &limits, [&bytes[..]]);
        let (split, ended_split) = run(role, &limits, bytes.chunks(step));
        prop_assert_eq!(&whole, &split);
        prop_assert_eq!(&ended, &ended_split);
        prop_assert!(!is_golden || (ended.is_ok() && whole.len() > 4), "the conversation itself is served");
        let largest = whole.iter().map(|event| match event {
            Event::Message(bytes) | Event::Send(bytes) | Event::Subscribe(bytes) | Event::Unsubscribe(bytes) => bytes.len(),
            Event::Ready(_) => 0,
        });
        prop_assert!(largest.max().unwrap_or(0) <= limits.max_message_bytes);
    }
}
