//! Bad input is answered with a documented error, and the connection lives on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox, eventually};

/// Sends what a caller may get wrong: each is answered with this code and a message that says so. Then the connection is as
/// good as new, and nothing was done.
fn check<const N: usize>(code: i64, rows: [(&str, Vec<u8>, &str); N]) {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let mut peer = RawPeer::handshake(role.ports.unwrap().rpc, "DEALER");
    let mut ask = |body: &[u8]| -> Value {
        peer.request(body);
        serde_json::from_slice(&peer.message()[1]).unwrap()
    };
    // The term's own event is the first.
    let head = eventually("the promotion in the journal", Duration::from_secs(5), || {
        Some(ask(&request("events.head", "{}"))).filter(|head| head["result"]["seq"] == 1)
    });
    for (what, body, text) in rows {
        let answer = ask(&body);
        let answer = answer.as_array().map_or(&answer, |answers| &answers[0]);
        assert_eq!(answer["error"]["code"], code, "{what}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(text), "{what}: {message:?} does not say {text:?}");
    }
    assert_eq!(ask(&request("events.head", "{}")), head);
}

fn request(method: &str, params: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#).into_bytes()
}

fn publish(topic: &str) -> Vec<u8> {
    request("events.publish", &json!({ "topic": topic }).to_string())
}

fn deep(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

fn batch(count: usize) -> String {
    format!("[{}]", vec![r#"{"jsonrpc":"2.0","method":"instance.ping"}"#; count].join(","))
}

#[test]
fn what_is_no_json_or_could_be_read_in_two_ways_is_a_parse_error() {
    check(
        -32700,
        [
            ("invalid UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}".to_vec(), "parse error"),
            (
                "half a surrogate pair",
                request("events.publish", r#"{"topic":"a.b","payload":"\ud800"}"#),
                "parse error",
            ),
            ("a control byte in text", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\x01b\"}".to_vec(), "parse error"),
            ("a byte order mark", b"\xef\xbb\xbf{}".to_vec(), "parse error"),
            ("no end", b"{\"jsonrpc\":\"2.0\"".to_vec(), "parse error"),
            ("two bodies", b"{} {}".to_vec(), "parse error"),
            ("NaN", request("events.since", r#"{"after":NaN}"#), "parse error"),
            (
                "a number beyond range",
                request("events.publish", r#"{"topic":"a.b","payload":1e400}"#),
                "number out of range",
            ),
            (
                "too deep",
                request("events.publish", &format!(r#"{{"topic":"a.b","payload":{}}}"#, deep(200))),
                "nested deeper than",
            ),
            ("much too deep", request("events.publish", &deep(1_000_000)), "nested deeper than"),
            (
                "a key twice in params",
                request("events.publish", r#"{"topic":"a.b","topic":"c.d"}"#),
                "key \"topic\" stands twice",
            ),
            (
                "a key twice, deep inside",
                request("events.publish", r#"{"topic":"a.b","payload":[{"x":{"k":1,"k":2}}]}"#),
                "key \"k\" stands twice",
            ),
            (
                "a key twice under other spelling",
                request("events.publish", r#"{"topic":"a.b","t\u006fpic":"c.d"}"#),
                "key \"topic\" stands twice",
            ),
            (
                "a key twice in the request",
                br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"instance.ping"}"#.to_vec(),
                "key \"id\" stands twice",
            ),
            (
                "an unknown key twice",
                br#"{"jsonrpc":"2.0","id":1,"x":2,"x":3,"method":"instance.ping"}"#.to_vec(),
                "key \"x\" stands twice",
            ),
        ],
    );
}

#[test]
fn what_is_no_request_is_refused_as_such() {
    check(
        -32600,
        [
            ("a deep batch", deep(100_000).into_bytes(), "a request is an object"),
            ("a batch of 1,001", batch(1_001).into_bytes(), "the limit is 1000"),
            ("a huge batch", batch(50_000).into_bytes(), "the limit is 1000"),
            (
                "an id that is an object",
                br#"{"jsonrpc":"2.0","id":{"a":1},"method":"instance.ping"}"#.to_vec(),
                "id must be",
            ),
            ("an id that is true", br#"{"jsonrpc":"2.0","id":true,"method":"instance.ping"}"#.to_vec(), "id must be"),
            ("another version", br#"{"jsonrpc":"1.0","id":1,"method":"instance.ping"}"#.to_vec(), "jsonrpc must be"),
            ("a method that is a number", br#"{"jsonrpc":"2.0","id":1,"method":7}"#.to_vec(), "method must be"),
            ("params that are a number", request("instance.ping", "5"), "params must be"),
            ("a batch in a batch", format!("[{}]", batch(2)).into_bytes(), "a request is an object"),
        ],
    );
    check(
        -32601,
        [
            (
                "a method with a NUL",
                br#"{"jsonrpc":"2.0","id":1,"method":"instance.ping\u0000"}"#.to_vec(),
                "method not found",
            ),
            ("a method of 100,000 bytes", request(&"m".repeat(100_000), "{}"), "method not found"),
        ],
    );
}

#[test]
fn params_that_do_not_fit_name_the_field_or_the_character() {
    check(
        -32602,
        [
            ("a topic with a NUL", publish("a\0b"), "'\\0'"),
            ("a topic with a control byte", publish("a\u{1b}[2Jb"), "'\\u{1b}'"),
            ("a topic with a line feed", publish("a\nb"), "'\\n'"),
            ("a topic with a space", publish("a b"), "' '"),
            ("a topic with a star", publish("a.*"), "'*'"),
            ("an empty topic", publish(""), "empty"),
            ("a topic of 256 bytes", publish(&"t".repeat(256)), "the limit is 255"),
            ("a pattern that is none", request("events.since", r#"{"after":0,"topics":["a b"]}"#), "topics[0]"),
            ("params that lack a field", request("session.get", "{}"), "missing field `id`"),
            ("a field of the wrong type", request("events.since", r#"{"after":"0"}"#), "after"),
            ("a number below zero", request("events.since", r#"{"after":-1}"#), "after"),
            ("a number beyond 64 bits", request("events.since", r#"{"after":18446744073709551616}"#), "after"),
            ("a fraction for a whole number", request("events.since", r#"{"after":1.5}"#), "after"),
            ("an array for an object", request("events.since", "[[]]"), ""),
            ("text for an object", request("events.since", "\"x\""), ""),
            (
                "an integer beyond SQLite's",
                request("db.query", r#"{"sql":"SELECT ?","params":[9223372036854775808]}"#),
                "params",
            ),
        ],
    );
}
