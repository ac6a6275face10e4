//! Who may do what: an observer reads, our own user does all but admin, and a refusal is an answer.

use std::sync::Arc;

use pando::{Allow, AllowList, Capability, Instance, Options, Pattern};
use pando_ipc::client::{self, CallError, Client};
use pando_ipc::{Code, Fault, Kind};
use serde_json::{Value, json};

use crate::support::{PandoProcess, Sandbox, pando};

async fn connect(sandbox: &Sandbox, id: &str, kind: Kind) -> Client {
    Client::connect(sandbox.workdir(), client::Options::new(id, kind)).await.unwrap()
}

fn refusal(answer: Result<Value, CallError>) -> Fault {
    match answer {
        Err(CallError::Refused(fault)) => fault,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_follows_and_reads_but_changes_nothing() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let observer = connect(&sandbox, "inst-o", Kind::Observer).await;
    let mut events = observer.subscribe(Pattern::new("note.*").unwrap()).await.unwrap();
    let document = observer.call("rpc.discover", json!({})).await.unwrap();
    let mut refused = 0;
    for method in document["methods"].as_array().unwrap() {
        let (name, needs) = (method["name"].as_str().unwrap(), method["x-needs"].as_str().unwrap());
        assert!(["read", "write", "control"].contains(&needs), "{name} needs {needs}, which no peer of ours has");
        let answer = observer.call(name, Value::Null).await;
        if needs == "read" {
            assert!(!matches!(&answer, Err(CallError::Refused(fault)) if fault.is(Code::PeerUnauthorized)), "{name}");
            continue;
        }
        let fault = refusal(answer);
        assert!(fault.is(Code::PeerUnauthorized), "{name}: {fault:?}");
        let data = fault.data.unwrap();
        assert_eq!((&data["method"], &data["needs"]), (&json!(name), &json!(needs)));
        assert_eq!(data["rule"], "an observer may only read");
        refused += 1;
    }
    assert!(refused > 5, "{refused}");
    let event = json!({"topic": "note.x", "payload": 1});
    assert!(refusal(observer.call("events.publish", event.clone()).await).is(Code::PeerUnauthorized));
    let durable_probe = json!({"topic": "probe.x", "durable": true});
    assert!(refusal(observer.call("events.publish", durable_probe).await).is(Code::PeerUnauthorized));

    let client = connect(&sandbox, "inst-c", Kind::Client).await;
    client.call("events.publish", event).await.unwrap();
    assert!(matches!(events.recv().await, Some(client::Delivery::Event(event)) if event.instance_id == "inst-c"));
    let status: Value = pando(&sandbox, &["status", "--json"]).json();
    assert_eq!(status["primary"]["bus"]["refusals"]["unauthorized"], refused + 2, "{status}");
    observer.close().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allow_list_is_asked_before_every_call_of_a_peer_and_of_no_own_one() {
    let sandbox = Sandbox::new();
    let pattern = |text| Pattern::new(text).unwrap();
    let list = AllowList(vec![
        Allow { instance: pattern("inst-writer"), methods: vec![pattern("*")], up_to: Capability::Write },
        Allow { instance: pattern("*"), methods: vec![pattern("session.*")], up_to: Capability::Read },
    ]);
    let options = Options { verifier: Arc::new(list), ..Options::default() };
    let primary = Instance::join(sandbox.workdir(), options).await.unwrap();
    let writer = connect(&sandbox, "inst-writer", Kind::Client).await;
    let reader = connect(&sandbox, "inst-reader", Kind::Client).await;

    let event = json!({"topic": "note.x"});
    writer.call("events.publish", event.clone()).await.unwrap();
    assert!(refusal(writer.call("instance.stop", json!({})).await).is(Code::PeerUnauthorized));
    reader.call("session.list", json!({})).await.unwrap();
    let fault = refusal(reader.call("events.publish", event.clone()).await);
    assert!(fault.is(Code::PeerUnauthorized), "{fault:?}");
    assert_eq!(fault.data.unwrap()["rule"], "no line of the allow list gives write on it to \"inst-reader\"");
    primary.call("events.publish", event).await.unwrap();

    writer.close().await;
    reader.close().await;
    primary.leave().await;
}
