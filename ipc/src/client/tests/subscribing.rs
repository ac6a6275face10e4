//! Events as they come.

use super::fake::{Fake, Setup};
use super::*;
use crate::envelope::Envelope;
use crate::hello::PUBLISH;
use crate::topic::Topic;

async fn linked(setup: Setup) -> (TempDir, Workdir, Fake, Client) {
    let (dir, workdir) = workdir();
    let fake = Fake::start(&workdir, setup).await;
    let client = soon(Client::connect(workdir.clone(), patient())).await.unwrap();
    (dir, workdir, fake, client)
}

/// Returns the payload of the next delivery, which must be an event.
async fn payload(subscription: &mut Subscription) -> Value {
    match soon(subscription.recv()).await {
        Some(Delivery::Event(event)) => event.payload.read().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_is_missed_once_subscribe_returned() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    for round in 0..20 {
        let mut subscription = soon(client.subscribe(pattern("a.b"))).await.unwrap();
        fake.publish("a.b", json!(round));
        assert_eq!(payload(&mut subscription).await, json!(round));
    }
}

#[tokio::test]
async fn subscribe_returns_once_a_probe_came_back() {
    let (_dir, _workdir, fake, client) = linked(Setup { deaf_probes: 3, ..Setup::default() }).await;
    let mut subscription = soon(client.subscribe(pattern("*"))).await.unwrap();
    assert!(fake.times_heard(PUBLISH) >= 4, "the first three never came back");
    fake.publish("a.b", json!("after"));
    assert_eq!(payload(&mut subscription).await, json!("after"), "what came before the proof is not ours");
}

#[tokio::test]
async fn whoever_subscribes_during_a_proof_gets_one_too() {
    let (_dir, _workdir, fake, client) = linked(Setup { deaf_probes: 3, ..Setup::default() }).await;
    let second = async {
        while fake.times_heard(PUBLISH) == 0 {
            client.call("echo", Value::Null).await.unwrap();
        }
        client.subscribe(pattern("c.d")).await
    };
    let (first, second) = soon(async { tokio::join!(client.subscribe(pattern("a.b")), second) }).await;
    let (_first, mut second) = (first.unwrap(), second.unwrap());
    fake.publish("c.d", json!(1));
    assert_eq!(payload(&mut second).await, json!(1));
}

#[tokio::test]
async fn what_comes_before_the_new_link_is_proven_belongs_to_the_gap() {
    let (_dir, workdir, fake, client) = linked(Setup::default()).await;
    let mut subscription = soon(client.subscribe(pattern("*"))).await.unwrap();
    fake.kill().await;
    let fake = Fake::start(&workdir, Setup { deaf_probes: 3, ..Setup::default().successor() }).await;
    assert_eq!(soon(subscription.recv()).await, Some(Delivery::Relinked { epoch: 2 }));
    fake.publish("a.b", json!("after"));
    assert_eq!(payload(&mut subscription).await, json!("after"));
}

#[tokio::test]
async fn each_subscriber_gets_what_it_asked_for_once() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut exact = soon(client.subscribe(pattern("a.b"))).await.unwrap();
    let mut below = soon(client.subscribe(pattern("a.*"))).await.unwrap();
    let mut all = soon(client.subscribe(pattern("*"))).await.unwrap();
    for (n, topic) in ["a.b", "a.bc", "x", "a.b"].into_iter().enumerate() {
        fake.publish(topic, json!(n));
    }
    for n in [0, 3] {
        assert_eq!(payload(&mut exact).await, json!(n));
    }
    for n in [0, 1, 3] {
        assert_eq!(payload(&mut below).await, json!(n));
    }
    for n in 0..4 {
        assert_eq!(payload(&mut all).await, json!(n));
    }
    drop(all);
    drop(below);
    fake.publish("a.bc", json!("not wanted any more"));
    fake.publish("a.b", json!("still wanted"));
    assert_eq!(payload(&mut exact).await, json!("still wanted"));
}

#[tokio::test]
async fn a_subscription_goes_on_with_the_next_primary() {
    let (_dir, workdir, mut fake, client) = linked(Setup::default()).await;
    let mut subscription = soon(client.subscribe(pattern("a.*"))).await.unwrap();
    for epoch in 1..5_u64 {
        fake.publish("a.b", json!(epoch));
        assert_eq!(payload(&mut subscription).await, json!(epoch));
        fake = fake.succeed(&workdir).await;
        assert_eq!(soon(subscription.recv()).await, Some(Delivery::Relinked { epoch: epoch + 1 }));
    }
}

#[tokio::test]
async fn a_slow_subscriber_is_told_what_it_lost_and_costs_nobody_else() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut slow = soon(client.subscribe(pattern("a.b"))).await.unwrap();
    let mut marker = soon(client.subscribe(pattern("marker"))).await.unwrap();
    for n in 0..INBOX_CAPACITY + 100 {
        fake.publish("a.b", json!(n));
    }
    fake.publish("marker", Value::Null);
    payload(&mut marker).await;
    for n in 0..INBOX_CAPACITY {
        assert_eq!(payload(&mut slow).await, json!(n));
    }
    assert_eq!(soon(slow.recv()).await, Some(Delivery::Lagged(100)));
    fake.publish("a.b", json!("on"));
    assert_eq!(payload(&mut slow).await, json!("on"));
}

#[tokio::test]
async fn a_frame_that_is_no_event_is_counted_and_skipped() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut all = soon(client.subscribe(pattern("*"))).await.unwrap();
    fake.publish_frame(&b"no nul"[..]);
    fake.publish_frame(&b"a.b\0{"[..]);
    fake.publish_frame(&b"\xff\0{}"[..]);
    let stray = Envelope::new("i", Topic::known("other"), Value::Null).to_frame();
    fake.publish_frame([b"an", &stray[..]].concat());
    fake.publish("a.b", json!("good"));
    assert_eq!(payload(&mut all).await, json!("good"));
    assert_eq!(client.skipped_frames(), 4);
}

#[tokio::test]
async fn probes_are_no_events() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut all = soon(client.subscribe(pattern("*"))).await.unwrap();
    for _ in 0..5 {
        soon(client.subscribe(pattern("x"))).await.unwrap();
    }
    fake.publish("a.b", json!("first"));
    assert_eq!(payload(&mut all).await, json!("first"));
}

#[tokio::test]
async fn a_server_that_publishes_no_probes_is_taken_at_its_word() {
    let (_dir, _workdir, fake, client) = linked(Setup { is_older: true, ..Setup::default() }).await;
    let mut subscription = soon(client.subscribe(pattern("a.b"))).await.unwrap();
    // Nothing tells when such a subscription is live: publish until it is.
    let received = soon(async {
        loop {
            fake.publish("a.b", json!(1));
            let wait = timeout(Duration::from_millis(20), subscription.recv());
            if let Ok(delivery) = wait.await {
                break delivery;
            }
        }
    });
    assert!(matches!(received.await, Some(Delivery::Event(_))));
}

#[tokio::test]
async fn without_a_primary_subscribe_says_so() {
    let (_dir, workdir) = workdir();
    let client = Client::open(workdir, impatient(Duration::from_millis(100)));
    let error = soon(client.subscribe(pattern("*"))).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(Cause::NoPrimary { .. })), "{error}");
    assert!(client.core.feeds().is_empty(), "a subscription that failed is forgotten");
}

#[tokio::test]
async fn a_closed_client_ends_its_subscriptions_behind_what_they_hold() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut subscription = soon(client.subscribe(pattern("a.b"))).await.unwrap();
    let mut marker = soon(client.subscribe(pattern("marker"))).await.unwrap();
    fake.publish("a.b", json!("held"));
    fake.publish("marker", Value::Null);
    payload(&mut marker).await;
    soon(client.close()).await;
    assert_eq!(payload(&mut subscription).await, json!("held"));
    assert_eq!(soon(subscription.recv()).await, None);
}
