//! Events come from the journal: whoever was away misses nothing, and nothing comes twice.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use pando_ipc::Kind;
use pando_ipc::client::{Client, Options};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{PandoProcess, Sandbox, binary, eventually, pando, tail};

/// How long an event may take to reach somebody who waits for it.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);

/// Publishes a note and returns its number.
fn publish(sandbox: &Sandbox, number: u64) -> u64 {
    let params = json!({"topic": "note.made", "payload": {"number": number}, "session_id": "s-1"});
    let answer: Value = pando(sandbox, &["ipc", "call", "events.publish", &params.to_string()]).json();
    answer["seq"].as_u64().unwrap_or_else(|| panic!("a durable event has a number: {answer}"))
}

fn since(sandbox: &Sandbox, params: &Value) -> Value {
    pando(sandbox, &["ipc", "call", "events.since", &params.to_string()]).json()
}

/// Returns the numbers of the notes in a page of the journal.
fn notes(page: &Value) -> Vec<u64> {
    page["events"].as_array().unwrap().iter().map(|event| event["payload"]["number"].as_u64().unwrap()).collect()
}

#[test]
fn an_observer_that_was_away_catches_up_exactly() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let seqs: Vec<_> = (1..=5).map(|number| publish(&sandbox, number)).collect();
    let from = seqs[1].to_string();
    let mut observer = tail(&sandbox, &["note.*", "--since", &from, "--limit", "4"]);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(observer.wait_for("an event of the past", ARRIVES_WITHIN, |line| {
            serde_json::from_str::<Value>(&line.text).ok()?["seq"].as_u64()
        }));
    }
    assert_eq!(seen, seqs[2..], "what came while it was away, in order");
    let live = publish(&sandbox, 6);
    let last = observer.wait_for("the event of now", ARRIVES_WITHIN, |line| {
        serde_json::from_str::<Value>(&line.text).ok()?["seq"].as_u64()
    });
    assert_eq!(last, live);
    assert_eq!(observer.end(ARRIVES_WITHIN).code(), Some(0), "it had its four");
}

#[test]
fn numbers_go_on_after_a_takeover() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let before = publish(&sandbox, 1);
    first.kill();
    let (_second, _) = PandoProcess::primary(&sandbox);
    let after = publish(&sandbox, 2);
    assert!(after > before);
    let page = since(&sandbox, &json!({"after": 0, "topics": ["note.*"]}));
    assert_eq!(notes(&page), [1, 2]);
    let events = page["events"].as_array().unwrap();
    assert_eq!((events[0]["epoch"].as_u64(), events[1]["epoch"].as_u64()), (Some(1), Some(2)));
    assert_eq!(events[1]["prev"].as_u64(), Some(before), "the chain of a topic goes across terms");
    assert_eq!(events[0]["sessionId"], "s-1");
    let all = since(&sandbox, &json!({"after": 0, "limit": 1000}));
    let seqs: Vec<_> = all["events"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=all["head"].as_u64().unwrap()).collect::<Vec<_>>(), "dense from 1");
}

#[test]
fn an_ephemeral_event_is_in_no_journal() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let token = json!({"topic": "llm.token", "payload": {"text": "hi"}});
    let answer: Value = pando(&sandbox, &["ipc", "call", "events.publish", &token.to_string()]).json();
    assert_eq!(answer, json!({}));
    let forced = json!({"topic": "note.made", "payload": {"number": 1}, "durable": false});
    let answer: Value = pando(&sandbox, &["ipc", "call", "events.publish", &forced.to_string()]).json();
    assert_eq!(answer, json!({}));
    let marker = publish(&sandbox, 2);
    let page = since(&sandbox, &json!({"after": 0, "topics": ["llm.*", "note.*"]}));
    assert_eq!((notes(&page), page["head"].as_u64() >= Some(marker)), (vec![2], true), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_can_wait_for_the_next_event() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    let client = Client::connect(sandbox.workdir(), Options::new("inst-waiting", Kind::Client)).await.unwrap();
    let head = client.call("events.head", json!({})).await.unwrap();
    let wait = client.call("events.since", json!({"after": head["seq"], "topics": ["note.*"], "wait_ms": 8_000}));
    let publish = async {
        // The call before it on the same socket is on its way.
        client.call("instance.ping", json!({})).await.unwrap();
        client.call("events.publish", json!({"topic": "note.made", "payload": {"number": 7}})).await.unwrap()
    };
    let (page, published) = timeout(ARRIVES_WITHIN, async { tokio::join!(wait, publish) }).await.unwrap();
    let page = page.unwrap();
    assert_eq!(notes(&page), [7]);
    assert_eq!(page["events"][0]["seq"], published["seq"]);
    assert_eq!(page["events"][0]["instanceId"], "inst-waiting", "an event carries its publisher's id");
    client.close().await;
}

#[test]
fn a_tail_ends_when_its_reader_has_gone_though_nothing_happens() {
    let sandbox = Sandbox::new();
    let (mut instance, _) = PandoProcess::primary(&sandbox);
    publish(&sandbox, 1);
    instance.kill();
    let mut command = binary(sandbox.path());
    command.args(["--quiet", "ipc", "tail", "--since", "all"]).stdout(Stdio::piped()).stdin(Stdio::null());
    let mut tail = Ended(command.spawn().unwrap());
    let mut first = String::new();
    BufReader::new(tail.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("instance.promoted"), "{first}");
    let status = eventually("its end", ARRIVES_WITHIN, || tail.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
