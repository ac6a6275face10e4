//! Who is connected, and who was turned away, is there for anyone who asks.

use std::time::Duration;

use pando_ipc::Kind;
use pando_ipc::client::{Client, Delivery, Options};
use pando_ipc::{Pattern, hello};
use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox, eventually, pando};

/// How long a refusal may take to be told: it is looked for once a second.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

fn doors(sandbox: &Sandbox) -> Value {
    pando(sandbox, &["ipc", "doors", "--json"]).json()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_is_listed_with_its_process_and_what_went_through_it() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let client = Client::connect(sandbox.workdir(), Options::new("inst-c", Kind::Client)).await.unwrap();
    let _events = client.subscribe(Pattern::All).await.unwrap();
    let mut raw = RawPeer::handshake(role.ports.unwrap().rpc, "DEALER");
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": hello::HELLO,
        "params": {"instance_id": "inst-o", "kind": "observer", "pid": 1, "version": "", "protocol": 1}});
    let write = json!({"jsonrpc": "2.0", "id": 2, "method": "events.publish", "params": {"topic": "a.b"}});
    let asked = [hello, write].map(|request| request.to_string());
    let mut answered = 0;
    for request in &asked {
        raw.request(request.as_bytes());
        answered += raw.message().concat().len() as u64;
    }
    let _third_party = RawPeer::handshake(role.ports.unwrap().publish, "SUB");

    let listed = doors(&sandbox);
    let own = std::env::current_exe().unwrap();
    let mine: Vec<_> =
        listed["peers"].as_array().unwrap().iter().filter(|peer| peer["pid"] == std::process::id()).collect();
    assert_eq!(mine.len(), 4, "{listed}");
    for peer in &mine {
        assert_eq!(peer["uid"], rustix::process::geteuid().as_raw(), "{peer}");
        assert_eq!(peer["executable"], own.to_str().unwrap(), "{peer}");
        assert!(peer["since"].is_string(), "{peer}");
    }
    let find =
        |door: &str, socket: &str| *mine.iter().find(|peer| peer["door"] == door && peer["socket"] == socket).unwrap();
    let caller = find("native", "rpc");
    assert_eq!((&caller["instance_id"], &caller["may"]), (&json!("inst-c"), &json!("control")));
    let follower = find("native", "pub");
    assert!(follower["subscriptions"].as_u64() > Some(0) && follower["bytes_out"].as_u64() > Some(0), "{follower}");
    let observer = find("tcp", "rpc");
    assert_eq!((&observer["instance_id"], &observer["may"]), (&json!("inst-o"), &json!("read")));
    assert_eq!((&observer["refusals"], &observer["socket_type"]), (&json!(1), &json!("DEALER")));
    // Two frames make a message: the delimiter with a header of 2 bytes, the body with one of 9, or of 2 when it is short.
    let sent: usize = asked.iter().map(|request| 2 + 9 + request.len()).sum();
    assert_eq!(observer["bytes_in"], sent, "{observer}");
    assert!((answered..answered + 30).contains(&observer["bytes_out"].as_u64().unwrap()), "{observer}");
    // This process has two names, so a connection that gave none keeps none.
    assert_eq!(find("tcp", "pub")["instance_id"], Value::Null);

    drop(raw);
    eventually("its line is gone", TOLD_WITHIN, || {
        let left = doors(&sandbox);
        left["peers"].as_array().unwrap().iter().all(|peer| peer["instance_id"] != "inst-o").then_some(())
    });
    let shown = pando(&sandbox, &["ipc", "doors"]);
    assert!(shown.stdout.contains("inst-c") && shown.stdout.contains("refused  1 unauthorized"), "{shown}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_turned_away_is_told_once_however_often_he_knocks() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let client = Client::connect(sandbox.workdir(), Options::new("inst-c", Kind::Client)).await.unwrap();
    let mut refusals = client.subscribe(Pattern::new("door.*").unwrap()).await.unwrap();
    // The first event says who leads, and may come after the role.
    client.call("events.since", json!({"after": 0, "wait_ms": 10_000})).await.unwrap();
    let head = client.call("events.head", json!({})).await.unwrap();
    for _ in 0..200 {
        let mut browser = RawPeer::connect(role.ports.unwrap().rpc);
        browser.send(b"GET / HTTP/1.1\r\n\r\n");
        browser.closed();
    }
    let (mut told, mut events) = (0, 0);
    while told < 200 {
        let next = tokio::time::timeout(TOLD_WITHIN, refusals.recv()).await.unwrap();
        let Some(Delivery::Event(event)) = next else { panic!("{next:?}") };
        let payload: Value = event.payload.read().unwrap();
        assert_eq!((&payload["reason"], &payload["door"]), (&json!("protocol"), &json!("tcp")));
        assert_eq!(payload["uid"], rustix::process::geteuid().as_raw());
        assert!(payload["detail"].as_str().unwrap().contains("does not speak ZMTP"), "{}", event.payload);
        assert_eq!(event.seq, None, "it is in no journal");
        told += payload["count"].as_u64().unwrap();
        events += 1;
    }
    assert_eq!(told, 200);
    assert!(events <= 5, "{events} events");
    assert_eq!(client.call("events.head", json!({})).await.unwrap(), head, "knocking fills no journal");
    client.close().await;
}
