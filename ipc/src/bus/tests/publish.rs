use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::task::JoinSet;
use zeromq::XSubSocket;

use super::*;
use crate::topic::Topic;

async fn recv(sub: &mut SubSocket) -> String {
    let frames = within(sub.recv()).await.unwrap().into_vec();
    assert_eq!(frames.len(), 1, "an event is one frame");
    String::from_utf8(frames[0].to_vec()).unwrap()
}

#[tokio::test]
async fn a_subscriber_gets_what_begins_with_its_prefix_over_both_doors() {
    let fixture = Fixture::start().await;
    for door in [0, 1] {
        let mut sub = fixture.subscriber(door, "db.").await;
        for frame in ["dba\0{}", "db\0{}", "db.x\0{1}", "message.append\0{}", "db.y\0{2}"] {
            fixture.bus.publish_frame(frame.as_bytes());
        }
        assert_eq!(recv(&mut sub).await, "db.x\0{1}");
        assert_eq!(recv(&mut sub).await, "db.y\0{2}");
        sub.subscribe("message.").await.unwrap();
        eventually("subscribed", || fixture.bus.inner.shared.audience(b"message.") == 1).await;
        sub.unsubscribe("db.").await.unwrap();
        eventually("unsubscribed", || fixture.bus.inner.shared.audience(b"db.x\0") == 0).await;
        fixture.bus.publish_frame(b"db.x\0{3}");
        fixture.bus.publish_frame(b"message.append\0{4}");
        assert_eq!(recv(&mut sub).await, "message.append\0{4}");
        drop(sub);
        eventually("gone", || fixture.bus.stats().subscribers == 0).await;
    }
}

#[tokio::test]
async fn who_asks_for_it_twice_gets_an_event_once_and_who_leaves_is_forgotten() {
    let fixture = Fixture::start().await;
    let audience = |frame: &[u8]| fixture.bus.inner.shared.audience(frame);
    let mut sub = fixture.subscriber(0, "a.").await;
    for prefix in ["", "a.b", "a.c"] {
        sub.subscribe(prefix).await.unwrap();
    }
    let other = fixture.subscriber(0, "a.c").await;
    eventually("all are there", || audience(b"x") == 1 && audience(b"a.b\0") == 1 && audience(b"a.c\0") == 2).await;
    for frame in ["a.b\0{\"n\":1}", "a.c\0{\"n\":2}", "x\0{\"n\":3}"] {
        fixture.bus.publish_frame(frame.as_bytes());
    }
    for frame in ["a.b\0{\"n\":1}", "a.c\0{\"n\":2}", "x\0{\"n\":3}"] {
        assert_eq!(recv(&mut sub).await, frame);
    }
    drop(sub);
    eventually("one is left", || audience(b"x") == 0 && audience(b"a.c\0") == 1).await;
    drop(other);
    eventually("nobody is left", || !fixture.bus.inner.shared.has_audience("a.c")).await;
}

#[tokio::test]
async fn an_xsub_of_the_zeromq_crate_follows_too() {
    let fixture = Fixture::start().await;
    for endpoint in fixture.bus.endpoints().publish {
        let mut xsub = XSubSocket::new();
        within(xsub.connect(&endpoint)).await.unwrap();
        xsub.subscribe("db.").await.unwrap();
        eventually("subscribed", || fixture.bus.inner.shared.audience(b"db.") == 1).await;
        fixture.bus.publish_frame(b"message.append\0{}");
        fixture.bus.publish_frame(b"db.x\0{}");
        let frames = within(xsub.recv()).await.unwrap().into_vec();
        assert_eq!(frames, [&b"db.x\0{}"[..]]);
        drop(xsub);
        eventually("gone", || fixture.bus.stats().subscribers == 0).await;
    }
}

#[tokio::test]
async fn an_envelope_arrives_as_it_was_published() {
    let fixture = Fixture::start().await;
    let mut sub = fixture.subscriber(1, "a.b\0").await;
    let event = Envelope::new("i", Topic::new("a.b").unwrap(), json!({"text": "x".repeat(70_000)}));
    fixture.bus.publish(&event);
    assert_eq!(Envelope::from_frame(recv(&mut sub).await.as_bytes()).unwrap(), event);
}

/// Subscribes and cancels by raw frames, and checks that each takes effect in order with a PING behind it.
async fn check_raw(fixture: &Fixture, minor: u8, subscribe: (u8, &[u8]), cancel: (u8, &[u8])) {
    let mut peer = Raw::greet(fixture.tcp(Role::Pub).await, minor, "SUB").await;
    let (ping, answer) = (b"\x04PING\0\x0actx", b"\x04PONGctx".to_vec());
    peer.frame(subscribe.0, subscribe.1).await;
    peer.frame(4, ping).await;
    assert_eq!(peer.read_frame().await, (4, answer.clone()));
    fixture.bus.publish_frame(b"a.b\0{1}");
    assert_eq!(peer.read_frame().await, (0, b"a.b\0{1}".to_vec()));
    peer.frame(cancel.0, cancel.1).await;
    peer.frame(4, ping).await;
    assert_eq!(peer.read_frame().await, (4, answer.clone()));
    fixture.bus.publish_frame(b"a.b\0{2}");
    peer.frame(4, ping).await;
    assert_eq!(peer.read_frame().await, (4, answer), "the event went out to nobody");
}

#[tokio::test]
async fn subscriptions_of_zmtp_3_0_and_3_1_take_effect_in_order() {
    let fixture = Fixture::start().await;
    check_raw(&fixture, 0, (0, b"\x01a."), (0, b"\x00a.")).await;
    check_raw(&fixture, 1, (4, b"\x09SUBSCRIBEa."), (4, b"\x06CANCELa.")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_subscriber_is_cut_off_and_the_others_get_everything() {
    const EVENTS: usize = 4_000;
    let ring = 256 * 1024;
    let fixture = Fixture::with(Limits { event_ring_bytes: ring, ..Limits::default() }).await;
    let mut stopped = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    stopped.frame(0, b"\x01").await;
    let mut sub = fixture.subscriber(0, "").await;
    eventually("both subscribed", || fixture.bus.inner.shared.audience(b"e") == 2).await;
    let (bus, read) = (fixture.bus.clone(), Arc::new(AtomicUsize::new(0)));
    let reader = Arc::clone(&read);
    let publisher = std::thread::spawn(move || {
        let tail = "x".repeat(1_000);
        let mut most_queued = 0;
        for number in 0..EVENTS {
            // The good subscriber is never far behind, so only the stopped one can overflow.
            while number > reader.load(Relaxed) + 100 {
                std::thread::yield_now();
            }
            bus.publish_frame(format!("e\0{number} {tail}").as_bytes());
            most_queued = most_queued.max(bus.stats().queued_bytes);
        }
        most_queued
    });
    for number in 0..EVENTS {
        let frame = recv(&mut sub).await;
        assert!(frame.starts_with(&format!("e\0{number} ")), "event {number} is missing");
        read.store(number, Relaxed);
    }
    let most_queued = publisher.join().unwrap();
    assert!(most_queued <= 2 * ring, "{most_queued} bytes were queued");
    assert_eq!(fixture.refusals("slow_subscriber"), 1);
    assert_eq!(fixture.bus.stats().subscribers, 1);
    stopped.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_shutdown_is_delivered() {
    // More than the kernel's buffers hold, so that it cannot be delivered by luck.
    const EVENTS: usize = 4_000;
    let tail = "x".repeat(1_000);
    for round in 0..10 {
        let fixture = Fixture::start().await;
        let mut subscribers = JoinSet::new();
        for door in [0, 1] {
            let mut sub = fixture.subscriber(door, "").await;
            let shared = Arc::clone(&fixture.bus.inner.shared);
            subscribers.spawn(async move {
                // It is slower than the closing bus would wait for its peers once all is written.
                shared.accepting.cancelled().await;
                let killed = timeout(2 * LINGER, shared.kill.cancelled()).await;
                assert!(killed.is_err(), "round {round}: closed before all was written");
                for number in 0..EVENTS {
                    assert!(recv(&mut sub).await.starts_with(&format!("e\0{number} ")), "round {round}");
                }
                assert_eq!(recv(&mut sub).await, "instance.shutdown\0{}", "round {round}");
            });
        }
        for number in 0..EVENTS {
            fixture.bus.publish_frame(format!("e\0{number} {tail}").as_bytes());
        }
        fixture.bus.publish_frame(b"instance.shutdown\0{}");
        within(fixture.bus.shutdown(PATIENCE)).await;
        subscribers.join_all().await;
    }
}

#[tokio::test]
async fn flush_tells_whether_everything_is_written() {
    let fixture = Fixture::start().await;
    let mut stopped = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    assert!(fixture.bus.flush(Duration::ZERO).await);
    stopped.frame(0, b"\x01").await;
    eventually("subscribed", || fixture.bus.inner.shared.audience(b"e") == 1).await;
    let event = [b"e\0".as_slice(), &vec![b'x'; 3 << 20]].concat();
    fixture.bus.publish_frame(&event);
    assert!(!fixture.bus.flush(Duration::from_millis(20)).await);
    assert_eq!(stopped.read_frame().await, (2, event));
    assert!(fixture.bus.flush(PATIENCE).await);
}

#[tokio::test]
async fn an_event_beyond_the_limit_is_dropped_and_counted() {
    let fixture = Fixture::with(Limits { max_outgoing_bytes: 100, ..Limits::default() }).await;
    let mut sub = fixture.subscriber(0, "").await;
    fixture.bus.publish_frame(&[b'x'; 101]);
    fixture.bus.publish_frame(b"marker");
    assert_eq!(recv(&mut sub).await, "marker");
    assert_eq!(fixture.refusals("event_too_large"), 1);
}
