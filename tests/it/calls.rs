//! What an agent's user interface asks: sessions, messages, and who works on what.

use std::time::Duration;

use pando_ipc::Kind;
use pando_ipc::client::{Client, Options};
use serde_json::{Value, json};

use crate::support::{PandoProcess, Sandbox, eventually, pando};

/// How long what an event says may take to be known.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

fn call(sandbox: &Sandbox, method: &str, params: &Value) -> Value {
    pando(sandbox, &["ipc", "call", method, &params.to_string()]).json()
}

/// Starts a primary in a workdir with one session, `s-1`.
fn with_session() -> (Sandbox, PandoProcess) {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    let params = json!({
        "meta": {"source_instance_id": "", "request_id": "req-1", "timestamp": "2026-11-21T03:04:15Z"},
        "method": "CreateSession",
        "params": {
            "id": "s-1", "parent_session_id": {"String": "", "Valid": false}, "title": "Plan", "message_count": 0,
            "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0,
        },
    });
    call(&sandbox, "db.write", &params);
    (sandbox, instance)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_told_and_counted_once() {
    let (sandbox, _instance) = with_session();
    let params = json!({"session_id": "s-1", "content": "hello", "op_id": "op-1"});
    let send = async || {
        let client = Client::connect(sandbox.workdir(), Options::new("inst-ui", Kind::Client)).await.unwrap();
        let sent = client.call("message.send", params.clone()).await.unwrap();
        client.close().await;
        sent
    };
    let sent = send().await;
    assert_eq!(sent["agent"]["running"], false, "the answer says that nobody will answer: {sent}");
    assert_eq!(send().await["message"]["id"], sent["message"]["id"], "a repeated call is the same message");

    let listed = call(&sandbox, "message.list", &json!({"session_id": "s-1"}));
    let messages = listed["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1, "{listed}");
    assert_eq!((&messages[0]["id"], &messages[0]["role"]), (&sent["message"]["id"], &json!("user")));
    assert!(messages[0]["parts"].as_str().unwrap().contains("hello"));
    let session = call(&sandbox, "session.get", &json!({"id": "s-1"}));
    assert_eq!(session["message_count"], 1, "{session}");

    let page = call(&sandbox, "events.since", &json!({"after": 0, "topics": ["message.append"]}));
    let events = page["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{page}");
    assert_eq!((&events[0]["payload"]["content"], &events[0]["sessionId"]), (&json!("hello"), &json!("s-1")));
    assert_eq!(events[0]["seq"], sent["seq"]);
}

#[test]
fn an_agent_that_runs_is_known_and_can_be_interrupted() {
    let (sandbox, _instance) = with_session();
    let idle = call(&sandbox, "session.interrupt", &json!({"id": "s-1"}));
    assert_eq!(idle["interrupted"], false);
    assert!(idle["reason"].is_string(), "{idle}");

    let publish = |topic: &str| call(&sandbox, "events.publish", &json!({"topic": topic, "session_id": "s-1"}));
    publish("llm.start");
    let interrupted = eventually("the running agent", KNOWN_WITHIN, || {
        let answer = call(&sandbox, "session.interrupt", &json!({"id": "s-1"}));
        (answer["interrupted"] == true).then_some(answer)
    });
    assert!(interrupted["instance_id"].is_string(), "{interrupted}");
    publish("llm.end");
    eventually("the end of the agent", KNOWN_WITHIN, || {
        let answer = call(&sandbox, "session.interrupt", &json!({"id": "s-1"}));
        (answer["interrupted"] == false).then_some(())
    });
}

#[test]
fn a_snapshot_says_where_to_follow_from() {
    let (sandbox, _instance) = with_session();
    let snapshot = call(&sandbox, "state.sync", &json!({}));
    assert_eq!(snapshot["sessions"][0]["id"], "s-1", "{snapshot}");
    assert_eq!(snapshot["instances"][0]["role"], "primary", "{snapshot}");
    call(&sandbox, "session.activate", &json!({"id": "s-1"}));
    let after = json!({"after": snapshot["seq"], "topics": ["session.*"]});
    let page = call(&sandbox, "events.since", &after);
    let topics: Vec<_> = page["events"].as_array().unwrap().iter().map(|event| &event["topic"]).collect();
    assert_eq!(topics, ["session.activated"], "what came after the snapshot: {page}");
}

#[test]
fn a_secondary_is_listed_until_it_goes() {
    let (sandbox, _instance) = with_session();
    let mut second = PandoProcess::start(&sandbox, &[]);
    let role = second.becomes("secondary");
    let is_listed = || {
        let list = call(&sandbox, "instance.list", &json!({}));
        list["instances"].as_array().unwrap().iter().any(|instance| instance["instance_id"] == role.instance_id)
    };
    assert!(is_listed());
    second.kill();
    eventually("the list without it", KNOWN_WITHIN, || (!is_listed()).then_some(()));
    let page = eventually("the news of its departure", KNOWN_WITHIN, || {
        let page = call(&sandbox, "events.since", &json!({"after": 0, "topics": ["instance.*"]}));
        page.to_string().contains("instance.left").then_some(page)
    });
    let about_it =
        page["events"].as_array().unwrap().iter().filter(|event| event["payload"]["instance_id"] == role.instance_id);
    let topics: Vec<_> = about_it.map(|event| &event["topic"]).collect();
    assert_eq!(topics, ["instance.joined", "instance.left"]);
}
