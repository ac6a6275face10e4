use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use bytes::Bytes;
use futures::StreamExt;
use zeromq::{ReqSocket, RouterSocket, SocketEvent};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_calls_come_back_with_their_ids_over_both_doors() {
    let fixture = Fixture::start().await;
    for endpoint in fixture.rpc() {
        let mut peer = Dealer::connect(&endpoint).await;
        let mut expected = BTreeMap::new();
        for number in 0..300 {
            let id = match number % 3 {
                0 => json!(number),
                1 => json!(format!("req-{number}")),
                _ => json!(f64::from(number) + 0.5),
            };
            let method = if number % 2 == 0 { "now" } else { "later" };
            let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": [number]}).to_string();
            peer.send(&["", &request]).await;
            expected.insert(id.to_string(), json!([number]));
        }
        for _ in 0..300 {
            let answer: Value = serde_json::from_str(&peer.recv().await).unwrap();
            assert_eq!(Some(answer["result"].clone()), expected.remove(&answer["id"].to_string()), "{answer}");
        }
        assert!(expected.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_leaves_while_what_came_with_its_call_is_worked_on() {
    let fixture = Fixture::start().await;
    let peer = Raw::greet(fixture.unix(Role::Router).await, 1, "DEALER").await;
    // A thread that is held may be the one that listens for the runtime: this peer reads for itself.
    let mut peer = peer.0.into_std().unwrap();
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let (spun, held) = (
        br#"{"jsonrpc":"2.0","id":1,"method":"spin_now","params":[50]}"#,
        br#"{"jsonrpc":"2.0","id":2,"method":"hold_now","params":[]}"#,
    );
    let frame = |body: &[u8]| [&[0, u8::try_from(body.len()).unwrap()], body].concat();
    // Where a call happens to take long its peer has its turn anyway.
    for _ in 0..10 {
        peer.write_all(&[frame(spun), frame(held)].concat()).unwrap();
        for answer in [r#"{"jsonrpc":"2.0","id":1,"result":[50]}"#, r#"{"jsonrpc":"2.0","id":2,"result":[]}"#] {
            let expected = [[1, 0].as_slice(), &frame(answer.as_bytes())].concat();
            let mut said = vec![0; expected.len()];
            peer.read_exact(&mut said).unwrap();
            assert_eq!(said, expected);
            fixture.gate.add_permits(usize::from(said.ends_with(b"[50]}")));
        }
    }
}

#[tokio::test]
async fn the_documented_request_gets_the_documented_reply() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[1]).await;
    peer.send(&["", r#"{"jsonrpc":"2.0","id":"req-1","method":"now","params":{"a":1}}"#]).await;
    assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":"req-1","result":{"a":1}}"#);
    peer.send(&["", r#"{"jsonrpc":"2.0","id":null,"method":"later"}"#]).await;
    assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":null,"result":null}"#);
}

#[tokio::test]
async fn requests_need_no_delimiter_and_may_have_more_frames() {
    let fixture = Fixture::start().await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"now"}"#;
    for endpoint in fixture.rpc() {
        let mut peer = Dealer::connect(&endpoint).await;
        for frames in [&[body][..], &["", body], &["identity", "", body], &["a", "b", "c", body]] {
            peer.send(frames).await;
            assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":1,"result":null}"#, "{frames:?}");
        }
        let mut peer = ReqSocket::new();
        within(peer.connect(&endpoint)).await.unwrap();
        within(peer.send(body.into())).await.unwrap();
        let answer = within(peer.recv()).await.unwrap().into_vec();
        assert_eq!(answer, [&br#"{"jsonrpc":"2.0","id":1,"result":null}"#[..]]);
    }
}

#[tokio::test]
async fn a_batch_is_answered_as_one_array_without_its_notifications() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"later","params":[1]}, {"jsonrpc":"2.0","method":"later"}, 5,
        {"jsonrpc":"2.0","id":2,"method":"none"}, {"jsonrpc":"2.0","id":3,"method":"crash_later"},
        {"jsonrpc":"2.0","id":4,"method":"now","params":[4]}]"#;
    let answers = peer.ask(batch).await;
    let seen: Vec<_> = answers.as_array().unwrap().iter().map(|one| (&one["id"], &one["error"]["code"])).collect();
    let null = Value::Null;
    let (invalid, unknown, internal) = (json!(-32600), json!(-32601), json!(-32603));
    let expected =
        [(&json!(1), &null), (&null, &invalid), (&json!(2), &unknown), (&json!(3), &internal), (&json!(4), &null)];
    assert_eq!(seen, expected);
    peer.send(&["", r#"[{"jsonrpc":"2.0","method":"later"}, {"jsonrpc":"2.0","method":"none"}]"#]).await;
    assert_eq!(peer.call("later", json!(["marker"])).await["result"], json!(["marker"]));
}

#[tokio::test]
async fn a_notification_is_never_answered() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    for method in ["now", "later", "none", "crash_now", "crash_later"] {
        peer.send(&["", &json!({"jsonrpc": "2.0", "method": method}).to_string()]).await;
    }
    eventually("all have run", || fixture.bus.stats().calls == 5 && fixture.bus.stats().calls_in_flight == 0).await;
    assert_eq!(peer.call("now", json!(["marker"])).await["result"], json!(["marker"]));
}

#[tokio::test]
async fn errors_have_their_standard_codes() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[1]).await;
    let code = |answer: Value| answer["error"]["code"].as_i64().unwrap();
    assert_eq!(code(peer.ask("{").await), -32700);
    assert_eq!(code(peer.ask("").await), -32700);
    assert_eq!(code(peer.ask("[]").await), -32600);
    let unknown = peer.call("none", Value::Null).await;
    assert!(unknown["error"]["message"].as_str().unwrap().contains("ipc: method not found"));
    assert_eq!(code(unknown), -32601);
}

#[tokio::test]
async fn a_panicking_handler_answers_and_the_bus_lives_on() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    for method in ["crash_now", "crash_later", "crash_now"] {
        assert_eq!(peer.call(method, Value::Null).await["error"]["code"], json!(-32603));
    }
    assert_eq!(peer.call("later", json!([1])).await["result"], json!([1]));
    fixture.check_alive().await;
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_a_fast_one() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    peer.send(&["", r#"{"jsonrpc":"2.0","id":"slow","method":"wait"}"#]).await;
    peer.send(&["", r#"{"jsonrpc":"2.0","id":"fast","method":"later"}"#]).await;
    assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":"fast","result":null}"#);
    fixture.gate.add_permits(1);
    assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":"slow","result":null}"#);
}

#[tokio::test]
async fn calls_beyond_the_caps_are_busy_but_inline_methods_pass() {
    let fixture =
        Fixture::with(Limits { max_calls_per_peer: 2, max_calls: 3, always_calls_per_peer: 0, ..Limits::default() })
            .await;
    let mut first = Dealer::connect(&fixture.rpc()[0]).await;
    let mut second = Dealer::connect(&fixture.rpc()[1]).await;
    let wait = r#"{"jsonrpc":"2.0","id":"w","method":"wait"}"#;
    first.send(&["", wait]).await;
    first.send(&["", wait]).await;
    for _ in 0..2 {
        let busy = first.call("later", Value::Null).await;
        assert_eq!(busy["error"]["data"]["code"], json!("E_BUSY"), "{busy}");
        assert_eq!(busy["error"]["data"]["retry_after_ms"], json!(20));
    }
    let batch = r#"[{"jsonrpc":"2.0","id":5,"method":"later"},{"jsonrpc":"2.0","method":"later"}]"#;
    let busy = first.ask(batch).await;
    assert_eq!((busy[0]["id"].clone(), busy[0]["error"]["data"]["code"].clone()), (json!(5), json!("E_BUSY")));
    assert_eq!(busy.as_array().unwrap().len(), 1);
    assert_eq!(first.call("now", json!([1])).await["result"], json!([1]));
    second.send(&["", wait]).await;
    assert_eq!(second.call("later", Value::Null).await["error"]["data"]["code"], json!("E_BUSY"));
    assert_eq!(fixture.bus.stats().calls_in_flight, 3);
    fixture.gate.add_permits(3);
    for _ in 0..2 {
        first.recv().await;
    }
    second.recv().await;
    assert_eq!(second.call("later", json!([2])).await["result"], json!([2]));
    assert_eq!(fixture.refusals("busy"), 4);
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_replaced_by_a_fault() {
    let fixture = Fixture::with(Limits { max_outgoing_bytes: 1_000, ..Limits::default() }).await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    assert_eq!(peer.call("large", json!([900])).await["result"].as_str().unwrap().len(), 900);
    assert_eq!(peer.call("large", json!([1_000])).await["error"]["data"]["code"], json!("E_TOO_LARGE"));
    let batch =
        r#"[{"jsonrpc":"2.0","id":5,"method":"large","params":[1000]},{"jsonrpc":"2.0","id":6,"method":"now"}]"#;
    let answers = peer.ask(batch).await;
    assert_eq!((answers[0]["id"].clone(), answers[1]["id"].clone()), (json!(5), json!(6)));
    assert_eq!(answers[0]["error"]["data"]["code"], json!("E_TOO_LARGE"));
}

#[tokio::test]
async fn a_large_message_passes_both_ways() {
    let fixture = Fixture::start().await;
    let text = "x".repeat(3 << 20);
    for endpoint in fixture.rpc() {
        let mut peer = Dealer::connect(&endpoint).await;
        assert_eq!(peer.call("later", json!([text])).await["result"][0].as_str().map(str::len), Some(3 << 20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_requests_is_paced_by_the_reading_of_its_answers() {
    let limits = Limits { reply_pause_bytes: 1 << 18, reply_ring_bytes: 1 << 20, ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    for endpoint in fixture.rpc() {
        let mut peer = Dealer::connect(&endpoint).await;
        for _ in 0..200 {
            peer.send(&["", r#"{"jsonrpc":"2.0","id":1,"method":"large_now","params":[50000]}"#]).await;
        }
        for _ in 0..200 {
            assert!(peer.recv().await.len() > 50_000);
        }
    }
}

#[tokio::test]
async fn callers_are_told_apart_and_their_departures_are_told() {
    let fixture = Fixture::start().await;
    let mut departures = fixture.bus.departures();
    let mut native = Dealer::connect(&fixture.rpc()[0]).await;
    let mut tcp = Dealer::connect(&fixture.rpc()[1]).await;
    let uid = rustix::process::geteuid().as_raw();
    let first = native.call("who", Value::Null).await["result"].clone();
    let second = tcp.call("who", Value::Null).await["result"].clone();
    assert_eq!((&first["door"], &first["uid"]), (&json!("native"), &json!(uid)));
    assert_eq!(first["pid"], json!(std::process::id()));
    assert_eq!((&second["door"], &second["uid"], &second["pid"]), (&json!("tcp"), &json!(uid), &Value::Null));
    assert_ne!(first["peer"], second["peer"]);
    assert_eq!(fixture.bus.stats().callers, 2);
    drop(native);
    assert_eq!(json!(within(departures.recv()).await.unwrap()), first["peer"]);
    drop(tcp);
    assert_eq!(json!(within(departures.recv()).await.unwrap()), second["peer"]);
    assert_eq!(fixture.bus.stats().callers, 0);
}

#[tokio::test]
async fn an_observer_is_refused_what_writes_and_everything_refused_is_counted() {
    let fixture = Fixture::start().await;
    for (endpoint, refused) in fixture.rpc().iter().zip([5, 10]) {
        let mut peer = Dealer::connect(endpoint).await;
        assert_eq!(peer.call("write_now", Value::Null).await["result"], json!("written"), "nobody has said hello yet");
        let hello = |kind: &str| json!({"instance_id": "o", "kind": kind, "pid": 1, "version": "", "protocol": 1});
        assert_eq!(peer.call(HELLO, hello("observer")).await["result"]["kind"], json!("observer"));
        assert_eq!(
            peer.call(HELLO, hello("instance")).await["result"]["kind"],
            json!("observer"),
            "the first one stands"
        );
        for method in ["write_now", "write_later"] {
            let answer = peer.call(method, Value::Null).await;
            let data = &answer["error"]["data"];
            assert_eq!((&data["code"], &data["method"]), (&json!("E_PEER_UNAUTHORIZED"), &json!(method)), "{answer}");
            assert_eq!(data["rule"], json!("an observer may only read"));
        }
        peer.send(&["", r#"{"jsonrpc":"2.0","method":"write_now"}"#]).await;
        let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"write_later"},{"jsonrpc":"2.0","id":2,"method":"later"},
            {"jsonrpc":"2.0","method":"write_now"}]"#;
        let answers = peer.ask(batch).await;
        assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers}");
        assert_eq!(answers[0]["error"]["data"]["code"], json!("E_PEER_UNAUTHORIZED"));
        assert_eq!((&answers[1]["id"], &answers[1]["result"]), (&json!(2), &Value::Null));
        assert_eq!(fixture.refusals("unauthorized"), refused);
    }
}

#[tokio::test]
async fn a_router_of_the_zeromq_crate_calls_too() {
    let fixture = Fixture::start().await;
    for endpoint in fixture.rpc() {
        let mut router = RouterSocket::new();
        let mut monitor = router.monitor();
        within(router.connect(&endpoint)).await.unwrap();
        let name = loop {
            if let SocketEvent::Connected(_, name) = within(monitor.next()).await.unwrap() {
                break name;
            }
        };
        let mut message = ZmqMessage::from(Bytes::copy_from_slice(&name));
        message.push_back(Bytes::new());
        message.push_back(Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"later"}"#));
        within(router.send(message)).await.unwrap();
        let answer = within(router.recv()).await.unwrap().into_vec();
        assert_eq!(answer[1..], [&b""[..], br#"{"jsonrpc":"2.0","id":1,"result":null}"#]);
    }
}

#[tokio::test]
async fn a_few_peers_never_take_all_the_calls_there_are() {
    let limits = Limits { max_calls: 2, always_calls_per_peer: 1, ..Limits::default() };
    let fixture = Fixture::with(limits).await;
    let mut greedy = Dealer::connect(&fixture.rpc()[0]).await;
    for _ in 0..3 {
        greedy.send(&["", r#"{"jsonrpc":"2.0","id":"w","method":"wait"}"#]).await;
    }
    assert_eq!(greedy.call("later", Value::Null).await["error"]["data"]["code"], json!("E_BUSY"));
    let mut other = Dealer::connect(&fixture.rpc()[1]).await;
    assert_eq!(other.call("later", json!([1])).await["result"], json!([1]));
    fixture.gate.add_permits(3);
}
