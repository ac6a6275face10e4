//! Calls and notifications over a link.

use futures::future::join_all;
use tokio::time::Instant;

use super::fake::{Fake, Setup};
use super::*;

async fn linked() -> (TempDir, Workdir, Fake, Client) {
    let (dir, workdir) = workdir();
    let fake = Fake::start(&workdir, Setup::default()).await;
    let client = soon(Client::connect(workdir.clone(), patient())).await.unwrap();
    (dir, workdir, fake, client)
}

/// Waits until the fake has heard a method so many times.
async fn heard(client: &Client, fake: &Fake, method: &str, times: usize) {
    soon(async {
        while fake.times_heard(method) < times {
            client.call("echo", Value::Null).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn five_hundred_calls_in_flight_find_their_answers_in_any_order() {
    let (_dir, _workdir, fake, client) = linked().await;
    let calls = join_all((0..500).map(|n| client.call("hold", json!([n]))));
    let release = async {
        heard(&client, &fake, "hold", 500).await;
        client.call("release", Value::Null).await.unwrap();
    };
    let (answers, ()) = soon(async { tokio::join!(calls, release) }).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, Ok(json!([n])));
    }
    assert_eq!(client.core.calls().len(), 0);
}

#[tokio::test]
async fn a_duplicated_answer_shifts_nothing() {
    let (_dir, _workdir, _fake, client) = linked().await;
    for n in 0..20 {
        assert_eq!(soon(client.call("twice", Value::Null)).await, Ok(json!("first")));
        assert_eq!(soon(client.call("echo", json!([n]))).await, Ok(json!([n])));
    }
}

#[tokio::test]
async fn a_method_that_never_answers_costs_only_its_own_caller() {
    let (_dir, _workdir, _fake, client) = linked().await;
    let never = client.call_by("never", Value::Null, Instant::now() + Duration::from_millis(50));
    let error = soon(never).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Cause::Timeout { .. })) && error.is_timeout(), "{error}");
    assert_eq!(soon(client.call("echo", json!(["next"]))).await, Ok(json!(["next"])));
}

#[tokio::test]
async fn a_dropped_call_is_forgotten() {
    let (_dir, _workdir, fake, client) = linked().await;
    let mut never = Box::pin(client.call("never", Value::Null));
    tokio::select! {
        answer = &mut never => panic!("{answer:?}"),
        () = heard(&client, &fake, "never", 1) => {}
    }
    assert_eq!(client.core.calls().len(), 1);
    drop(never);
    assert_eq!(client.core.calls().len(), 0);
}

#[tokio::test]
async fn a_refusal_is_the_servers_fault() {
    let (_dir, _workdir, _fake, client) = linked().await;
    let refused = soon(client.call("refuse", Value::Null)).await.unwrap_err();
    assert_eq!(refused.fault().unwrap().message, "ipc: invalid params: x: is missing");
    assert!(soon(client.call("nothing", Value::Null)).await.unwrap_err().is_method_not_found());
}

#[tokio::test]
async fn answers_of_older_and_broken_servers_are_borne() {
    let (_dir, _workdir, _fake, client) = linked().await;
    assert_eq!(soon(client.call("void", Value::Null)).await, Ok(Value::Null));
    assert_eq!(soon(client.call("quoted", Value::Null)).await, Ok(json!(1)));
    assert_eq!(soon(client.call("garble", Value::Null)).await, Ok(json!("after all")));
}

#[tokio::test]
async fn calls_in_flight_end_as_unknown_at_once_when_the_primary_dies() {
    let (_dir, workdir, fake, client) = linked().await;
    let in_flight = join_all((0..10).map(|_| client.call("never", Value::Null)));
    let killing = async {
        heard(&client, &fake, "never", 10).await;
        fake.kill().await;
    };
    // Pings would take 6 s to find out, and no successor is there to tell.
    let (outcomes, ()) = timeout(SOON / 3, async { tokio::join!(in_flight, killing) }).await.expect("at once");
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Cause::ConnectionFailed { .. })), "{error}");
    }
    let successor = Fake::start(&workdir, Setup::default().successor()).await;
    assert_eq!(soon(client.call("echo", json!([2]))).await, Ok(json!([2])));
    let link = client.link().borrow().clone().unwrap();
    assert_eq!((link.welcome.epoch, link.info.instance_id.as_str()), (2, "inst-B"));
    assert_eq!(successor.times_heard("never"), 0, "nothing is sent twice");
}

#[tokio::test]
async fn a_socket_hears_that_its_peer_left() {
    let (_dir, workdir) = workdir();
    let fake = Fake::bind(workdir.socket_dir().unwrap(), Setup::default()).await;
    let doors = fake.info.doors();
    let (dealer, mut outlet) = socket::Dealer::open(&doors.rpc[0]).await.unwrap();
    let mut ear = socket::Ear::open(&doors.publish).await.unwrap();
    // The crate's binder forgets a peer that it has not quite accepted when it closes, so let it accept them first.
    outlet.push(calls::encode(Some(1), PING, &json!({})));
    outlet.ring().flush().unwrap();
    soon(dealer.next()).await.unwrap();
    ear.subscribe("").await.unwrap();
    soon(async {
        loop {
            fake.publish("a.b", Value::Null);
            if timeout(Duration::from_millis(20), ear.next()).await.is_ok() {
                break;
            }
        }
    })
    .await;
    let gone = async |ear: &mut socket::Ear| while ear.next().await.is_ok() {};
    let (heard, (), ()) = soon(async { tokio::join!(dealer.next(), gone(&mut ear), fake.kill()) }).await;
    assert!(heard.is_err());
}

#[tokio::test]
async fn calls_made_between_two_primaries_wait_for_the_second() {
    let (_dir, workdir, fake, client) = linked().await;
    fake.kill().await;
    soon(client.link().wait_for(Option::is_none)).await.unwrap();
    let waiting = join_all((0..100).map(|n| client.call("echo", json!([n]))));
    let (answers, _successor) =
        soon(async { tokio::join!(waiting, Fake::start(&workdir, Setup::default().successor())) }).await;
    assert!(answers.into_iter().enumerate().all(|(n, answer)| answer == Ok(json!([n]))));
}

#[tokio::test]
async fn what_was_notified_before_close_is_delivered_though_the_process_ends() {
    let (_dir, workdir, fake, _client) = linked().await;
    let process = tokio::task::spawn_blocking(|| {
        // A runtime of its own, which ends behind close and takes everything unsent with it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect(workdir, patient()).await.unwrap();
            for _ in 0..100 {
                client.notify("note", json!({})).await.unwrap();
            }
            // More than the kernel takes at once.
            client.notify("note", json!({"text": "x".repeat(4_000_000)})).await.unwrap();
            client.close().await;
        });
    });
    soon(process).await.unwrap();
    assert_eq!(fake.times_heard("note"), 101);
}

#[tokio::test]
async fn a_closed_client_fails_what_waits_and_what_comes() {
    let (_dir, _workdir, fake, client) = linked().await;
    let other = client.clone();
    let never = other.call("never", Value::Null);
    let closing = async {
        heard(&client, &fake, "never", 1).await;
        client.close().await;
    };
    let (outcome, ()) = soon(async { tokio::join!(never, closing) }).await;
    assert_eq!(outcome, Err(CallError::Unknown(Cause::Closed)));
    assert_eq!(other.call("echo", Value::Null).await, Err(CallError::NotSent(Cause::Closed)));
    assert_eq!(other.notify("note", Value::Null).await, Err(CallError::NotSent(Cause::Closed)));
    assert_eq!(other.subscribe(pattern("*")).await.unwrap_err(), CallError::NotSent(Cause::Closed));
}

#[tokio::test]
async fn the_last_handle_ends_the_workers() {
    let (_dir, _workdir, _fake, client) = linked().await;
    let (tasks, clone) = (client.tasks.clone(), client.clone());
    drop(client);
    assert_eq!(soon(clone.call("echo", json!([1]))).await, Ok(json!([1])));
    drop(clone);
    soon(tasks.wait()).await;
}

#[tokio::test]
async fn a_primary_that_hangs_is_reported_and_then_given_up() {
    let (_dir, _workdir, _fake, client) = linked().await;
    let (mut links, mut silence) = (client.link(), client.silence());
    let frozen = client.call("freeze", Value::Null);
    let watching = async {
        let hung = silence.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!((hung.holder.info.instance_id.as_str(), hung.lasted), ("inst-A", Duration::from_secs(2)));
        links.wait_for(Option::is_none).await.map(drop)
    };
    let (outcome, lost) = soon(async { tokio::join!(frozen, watching) }).await;
    assert!(matches!(outcome, Err(CallError::Unknown(Cause::Unresponsive { .. }))), "{outcome:?}");
    lost.unwrap();
    let late = client.call_by("echo", Value::Null, Instant::now() + Duration::from_millis(50)).await;
    assert!(matches!(late, Err(CallError::NotSent(Cause::Unresponsive { .. }))), "{late:?}");
}
