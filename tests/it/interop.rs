//! Other people's programs speak the documented wire with us, in both directions.

use std::time::Duration;

use pando_ipc::client::{CallError, Client, Delivery, Options, Subscription};
use pando_ipc::{Kind, Pattern};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{PandoProcess, Process, Sandbox, pando, python};

/// How long a peer in Python may take.
const PEER: Duration = Duration::from_secs(30);

/// One frame as `sub.py` saw it.
#[derive(Debug, Deserialize)]
struct Frame {
    topic: String,
    envelope: Value,
    text: String,
}

fn write(sandbox: &Sandbox, request_id: &str, method: &str, params: &Value) -> Value {
    let meta =
        json!({"source_instance_id": "inst-peer", "request_id": request_id, "timestamp": "2026-11-21T03:04:15Z"});
    let params = json!({"meta": meta, "method": method, "params": params});
    pando(sandbox, &["ipc", "call", "db.write", &params.to_string()]).json()
}

#[test]
fn a_pyzmq_subscriber_gets_single_frames_of_the_documented_form() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let mut sub = python(&sandbox, "sub.py", &["db.session.", "3"]);
    sub.wait_for("the live subscription", PEER, |line| line.text.contains("live").then_some(()));

    let absent = json!({"String": "", "Valid": false});
    let session = json!({
        "id": "s-1", "parent_session_id": absent, "title": "Plan", "message_count": 0,
        "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0,
    });
    let changed = json!({
        "title": "Plan B", "prompt_tokens": 1, "completion_tokens": 2, "summary_message_id": absent, "cost": 0.5, "id": "s-1",
    });
    write(&sandbox, "req-1", "CreateSession", &session);
    // Another topic, which the prefix does not select.
    write(
        &sandbox,
        "req-2",
        "CreateFile",
        &json!({"id": "f-1", "session_id": "s-1", "path": "a", "content": "", "version": "1"}),
    );
    write(&sandbox, "req-3", "UpdateSession", &changed);
    write(&sandbox, "req-4", "DeleteSession", &json!("s-1"));

    let frames: Vec<Frame> = sub.rest().map(|line| serde_json::from_str(&line.text).unwrap()).collect();
    assert_eq!(sub.end(PEER).code(), Some(0), "{}", sub.stderr());
    let topics: Vec<_> = frames.iter().map(|frame| frame.topic.as_str()).collect();
    assert_eq!(topics, ["db.session.created", "db.session.updated", "db.session.deleted"]);
    let mut last = 0;
    for (frame, method) in frames.iter().zip(["CreateSession", "UpdateSession", "DeleteSession"]) {
        let change = &frame.envelope["payload"];
        assert_eq!(change["topic"], frame.topic, "{frame:?}");
        assert_eq!(change["path"], sandbox.path().display().to_string(), "{frame:?}");
        assert_eq!(change["payload"]["method"], method, "{frame:?}");
        assert!(change["timestamp"].is_string() && change["instance_id"].is_string(), "{frame:?}");
        assert!(change.to_string().contains("s-1"), "the row's key is named: {frame:?}");
        assert_eq!(frame.envelope["epoch"].as_u64(), role.epoch, "{frame:?}");
        let seq = frame.envelope["seq"].as_u64().unwrap();
        assert!(seq > last, "{frame:?}");
        last = seq;
        // The bytes themselves, not only what a JSON reader makes of them.
        assert!(frame.text.starts_with(r#"{"instanceId":""#), "{}", frame.text);
    }
    let prevs: Vec<_> = frames.iter().map(|frame| frame.envelope["prev"].as_u64()).collect();
    assert_eq!(prevs, [Some(0); 3], "each is the first of its topic");
}

#[test]
fn a_pyzmq_caller_gets_its_answers() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let mut dealer = python(&sandbox, "dealer.py", &[]);
    let report: Vec<_> = dealer.rest().map(|line| line.text).collect();
    assert_eq!(dealer.end(PEER).code(), Some(0), "{report:?} {}", dealer.stderr());
    assert!(report.concat().contains("framing"), "every check ran: {report:?}");
}

#[test]
fn every_socket_of_libzmq_may_connect_through_every_door() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let mut sockets = python(&sandbox, "sockets.py", &[]);
    let report: Vec<Value> = sockets.rest().map(|line| serde_json::from_str(&line.text).unwrap()).collect();
    assert_eq!(sockets.end(PEER).code(), Some(0), "{report:?} {}", sockets.stderr());
    let all = json!(["REQ", "DEALER", "ROUTER", "SUB", "XSUB", "ZMTP 3.0"]);
    assert_eq!(report, [json!({"door": "ipc", "done": all}), json!({"door": "tcp", "done": all})]);
    let doors: Value = pando(&sandbox, &["ipc", "doors", "--json"]).json();
    assert_eq!(doors["refusals"], json!({}), "good manners are never refused");
}

/// Starts a primary in Python and waits until it serves.
fn python_primary(sandbox: &Sandbox, flags: &[&str]) -> Process {
    let mut primary = python(sandbox, "primary.py", flags);
    primary.wait_for("the primary in Python", PEER, |line| line.text.contains("ready").then_some(()));
    primary
}

async fn client_of(sandbox: &Sandbox) -> Client {
    Client::connect(sandbox.workdir(), Options::new("inst-rust", Kind::Client)).await.unwrap()
}

async fn check_usable(client: &Client) {
    let pong = client.call("instance.ping", json!({})).await.unwrap();
    assert_eq!(pong["instance_id"], "inst-python");
    let numbers = 0..100;
    let calls = numbers.clone().map(|number| client.call("echo", json!({"number": number})));
    let answers = futures::future::join_all(calls).await;
    for (number, answer) in numbers.zip(answers) {
        assert_eq!(answer.unwrap(), json!({"number": number}), "answers find their calls");
    }
    assert_eq!(client.call("void", Value::Null).await.unwrap(), Value::Null, "no result is a void success");
    let unknown = client.call("no.such.method", json!({})).await;
    assert!(matches!(&unknown, Err(CallError::Refused(fault)) if fault.is_method_not_found()), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pyzmq_primary_that_knows_no_hello_is_usable() {
    let sandbox = Sandbox::new();
    let _primary = python_primary(&sandbox, &[]);
    let client = client_of(&sandbox).await;
    check_usable(&client).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pyzmq_primary_that_knows_hello_is_usable() {
    let sandbox = Sandbox::new();
    let _primary = python_primary(&sandbox, &["--hello"]);
    let client = client_of(&sandbox).await;
    check_usable(&client).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_pyzmq_primary_arrive_and_its_successor_is_found() {
    let sandbox = Sandbox::new();
    let mut primary = python_primary(&sandbox, &[]);
    let client = client_of(&sandbox).await;
    let mut greetings = client.subscribe(Pattern::new("greeting.*").unwrap()).await.unwrap();
    greet(&client, &mut greetings, "hello").await;
    primary.kill();
    let _successor = python_primary(&sandbox, &[]);
    greet(&client, &mut greetings, "hello again").await;
    client.close().await;
}

/// Greets until the greeting comes back as an event: this primary knows no `events.publish` by which a subscription is proven live.
async fn greet(client: &Client, greetings: &mut Subscription, text: &str) {
    let greeted = async {
        loop {
            // A call to the primary that died may end as unknown.
            drop(client.call("echo", json!(text)).await);
            match timeout(Duration::from_millis(100), greetings.recv()).await {
                Ok(Some(Delivery::Event(event))) if event.payload == json!(text) => return,
                Ok(None) => panic!("the subscription ended"),
                Ok(Some(_)) | Err(_) => {}
            }
        }
    };
    timeout(Duration::from_secs(10), greeted).await.unwrap_or_else(|_| panic!("{text:?} never arrived"));
}

#[test]
fn an_instance_follows_a_pyzmq_primary_and_takes_over_from_it() {
    let sandbox = Sandbox::new();
    let mut primary = python_primary(&sandbox, &[]);
    let mut instance = PandoProcess::start(&sandbox, &[]);
    instance.becomes("secondary");
    let echo: Value = pando(&sandbox, &["ipc", "call", "echo", r#"{"a":1}"#]).json();
    assert_eq!(echo, json!({"a": 1}));
    primary.hang_up();
    assert_eq!(primary.end(PEER).code(), Some(0), "{}", primary.stderr());
    assert_eq!(instance.becomes("primary").epoch, Some(1), "the database's first term");
}
