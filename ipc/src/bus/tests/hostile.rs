use tokio::task::JoinSet;

use super::*;

#[tokio::test]
async fn an_oversized_header_costs_one_connection_and_nothing_else() {
    let fixture = Fixture::start().await;
    let mut bystander = Dealer::connect(&fixture.rpc()[1]).await;
    let mut count = 0;
    for bytes in [1_u64 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, u64::MAX] {
        for flags in [2_u8, 3, 6] {
            let header = [&[flags][..], &bytes.to_be_bytes()].concat();
            let mut peer = Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
            peer.write(&header).await;
            peer.closed().await;
            let mut peer = Raw::greet(fixture.unix(Role::Pub).await, 1, "SUB").await;
            peer.write(&header).await;
            peer.closed().await;
            count += 2;
        }
    }
    assert_eq!(fixture.refusals("protocol"), count);
    assert_eq!(bystander.call("now", json!([1])).await["result"], json!([1]));
}

#[tokio::test]
async fn what_is_no_zmtp_is_closed() {
    let fixture = Fixture::start().await;
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x16\x03\x01\x02\0", &[0; 64], &[0xff; 64]] {
        let mut peer = Raw(fixture.tcp(Role::Router).await);
        peer.write(bytes).await;
        peer.closed().await;
    }
    assert_eq!(fixture.refusals("protocol"), 4);
    fixture.check_alive().await;
}

#[tokio::test]
async fn silent_connections_block_nobody_and_are_closed_at_the_deadline() {
    let limits = Limits { handshake_timeout: Duration::from_millis(200), ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let silent = [fixture.tcp(Role::Router).await, fixture.tcp(Role::Pub).await];
    let mut half = Raw(fixture.unix(Role::Router).await);
    half.write(b"\xff\0\0").await;
    fixture.check_alive().await;
    for peer in silent {
        Raw(peer).closed().await;
    }
    half.closed().await;
    assert_eq!(fixture.refusals("handshake"), 3);
}

#[tokio::test]
async fn the_oldest_handshake_gives_way_to_a_new_connection() {
    let grace = Duration::from_millis(20);
    let fixture = Fixture::with(Limits { max_handshakes: 2, handshake_grace: grace, ..Limits::default() }).await;
    let silent = [fixture.unix(Role::Router).await, fixture.unix(Role::Router).await];
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    assert_eq!(peer.call("now", json!([1])).await["result"], json!([1]));
    let [first, _second] = silent;
    Raw(first).closed().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_their_places_come_back() {
    let fixture = Fixture::with(Limits { max_connections: 2, ..Limits::default() }).await;
    let first = Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
    let _second = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    Raw(fixture.tcp(Role::Router).await).closed().await;
    assert_eq!(fixture.refusals("connections"), 1);
    drop(first);
    eventually("gone", || fixture.bus.inner.shared.places.available_permits() == 1).await;
    Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_no_answers_delays_nobody_and_is_bounded() {
    let limits = Limits { reply_pause_bytes: 1 << 19, reply_ring_bytes: 1 << 20, ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"now","params":["0123456789012345678901234567890123456789"]}"#;
    let message = [&[1, 0, 0, u8::try_from(request.len()).unwrap()], request.as_bytes()].concat().repeat(1_000);
    let mut stuck = JoinSet::new();
    for _ in 0..4 {
        // The kernel holds much less for a Unix socket than for TCP, so they come to rest soon.
        let mut peer = Raw::greet(fixture.unix(Role::Router).await, 0, "DEALER").await;
        let message = message.clone();
        stuck.spawn(async move { while peer.0.write_all(&message).await.is_ok() {} });
    }
    // Above the pause no peer is read, so each comes to rest there.
    eventually("all are stuck", || fixture.bus.stats().queued_bytes > 4 << 19).await;
    assert!(fixture.bus.stats().queued_bytes < 4 << 20);
    fixture.check_alive().await;
    assert_eq!(fixture.bus.stats().refusals.len(), 0);
    stuck.shutdown().await;
    eventually("gone", || fixture.bus.stats().callers == 0).await;
    assert_eq!(fixture.bus.stats().queued_bytes, 0);
    fixture.check_alive().await;
}

#[tokio::test]
async fn answers_that_overflow_the_ring_cut_the_caller_off() {
    let limits = Limits { reply_ring_bytes: 8 << 20, ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let mut peer = Raw::greet(fixture.unix(Role::Router).await, 0, "DEALER").await;
    // All are in flight before the first is answered: else no more of them would be read.
    let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"wait","params":["{}"]}}"#, "x".repeat(4_000_000));
    for _ in 0..4 {
        peer.write(&[&[2][..], &(request.len() as u64).to_be_bytes(), request.as_bytes()].concat()).await;
    }
    eventually("all wait", || fixture.bus.stats().calls_in_flight == 4).await;
    fixture.gate.add_permits(4);
    eventually("cut off", || fixture.refusals("slow_caller") == 1).await;
    peer.closed().await;
    fixture.check_alive().await;
}

#[tokio::test]
async fn too_many_subscriptions_cost_the_connection() {
    let fixture = Fixture::start().await;
    let mut peer = Raw::greet(fixture.tcp(Role::Pub).await, 0, "SUB").await;
    let frames: Vec<u8> =
        (0..1_025).flat_map(|number| [&[0, 5, 1], format!("{number:04}").as_bytes()].concat()).collect();
    peer.write(&frames).await;
    peer.closed().await;
    assert_eq!(fixture.refusals("protocol"), 1);
    assert_eq!(fixture.bus.inner.shared.audience(b"0001"), 0);
}

#[tokio::test]
async fn a_message_that_is_begun_is_finished_in_time_or_costs_the_connection() {
    let patience = Duration::from_millis(100);
    let fixture = Fixture::with(Limits { message_timeout: patience, ..Limits::default() }).await;
    let request = br#"{"jsonrpc":"2.0","id":1,"method":"now"}"#;
    let frame = [&[0, u8::try_from(request.len()).unwrap()], request.as_slice()].concat();
    // A header, a part of a body, a message without its last part: each is a message that began.
    for begun in [&frame[..1], &frame[..20], b"\x01\x00".as_slice()] {
        let mut slow = Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
        slow.write(begun).await;
        slow.closed().await;
    }
    let mut drip = Raw::greet(fixture.unix(Role::Pub).await, 1, "SUB").await;
    drip.write(b"\x00\x05\x01ab").await;
    drip.closed().await;
    assert_eq!(fixture.refusals("slow_sender"), 4);
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_whole_messages_stays_for_ever() {
    let patience = Duration::from_millis(50);
    let limits = Limits { message_timeout: patience, read_nothing_timeout: patience, ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let mut caller = Dealer::connect(&fixture.rpc()[0]).await;
    let mut subscriber = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    subscriber.frame(0, b"\x01").await;
    eventually("subscribed", || fixture.bus.inner.shared.audience(b"e") == 1).await;
    // Others come and go by the deadline meanwhile: time has passed for those who said nothing, too.
    for _ in 0..4 {
        let mut slow = Raw::greet(fixture.tcp(Role::Router).await, 0, "DEALER").await;
        slow.write(&[0]).await;
        slow.closed().await;
    }
    assert_eq!(caller.call("now", json!([1])).await["result"], json!([1]));
    fixture.bus.publish_frame(b"e\0{}");
    assert_eq!(subscriber.read_frame().await, (0, b"e\0{}".to_vec()));
    assert_eq!(fixture.refusals("slow_sender"), 4);
    assert_eq!(fixture.bus.stats().refusals.len(), 1);
}

#[tokio::test]
async fn who_reads_nothing_is_cut_off_and_what_waited_is_freed() {
    let limits = Limits { read_nothing_timeout: Duration::from_millis(100), ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let mut subscriber = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    subscriber.frame(0, b"\x01").await;
    eventually("subscribed", || fixture.bus.inner.shared.audience(b"e") == 1).await;
    fixture.bus.publish_frame(&vec![b'e'; 3 << 20]);
    let mut caller = Raw::greet(fixture.unix(Role::Router).await, 0, "DEALER").await;
    caller.frame(0, br#"{"jsonrpc":"2.0","id":1,"method":"large","params":[4000000]}"#).await;
    eventually("both are gone", || fixture.bus.stats().callers + fixture.bus.stats().subscribers == 0).await;
    assert_eq!((fixture.refusals("slow_subscriber"), fixture.refusals("slow_caller")), (1, 1));
    assert_eq!(fixture.bus.stats().queued_bytes, 0);
    fixture.check_alive().await;
}

#[tokio::test]
async fn a_claimed_identity_takes_nothing_from_its_owner() {
    let fixture = Fixture::start().await;
    let greet = async |identity: &str| {
        let stream = fixture.tcp(Role::Router).await;
        let property = |name: &str, value: &str| {
            let length = u32::try_from(value.len()).unwrap().to_be_bytes();
            [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), &length, value.as_bytes()].concat()
        };
        let ready = [b"\x05READY".to_vec(), property("Socket-Type", "DEALER"), property("Identity", identity)].concat();
        Raw::greet_with(stream, 0, &ready).await
    };
    let mut peers = [greet("victim").await, greet("victim").await];
    for (number, peer) in peers.iter_mut().enumerate() {
        let request = format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"wait"}}"#);
        peer.frame(0, request.as_bytes()).await;
    }
    eventually("both wait", || fixture.bus.stats().calls_in_flight == 2).await;
    fixture.gate.add_permits(2);
    for (number, peer) in peers.iter_mut().enumerate() {
        assert_eq!(peer.read_frame().await, (1, Vec::new()));
        let (_, body) = peer.read_frame().await;
        assert_eq!(String::from_utf8(body).unwrap(), format!(r#"{{"jsonrpc":"2.0","id":{number},"result":null}}"#));
    }
    let identities: Vec<_> = fixture.bus.peers().into_iter().map(|peer| peer.identity).collect();
    assert_eq!(identities, ["victim", "victim"], "it is a label");
}
