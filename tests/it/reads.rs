//! Reads of one peer do not keep the others from reading.

use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox};

/// Reads that the greedy peer asks for at once: as many as one connection may have in flight.
const MANY: usize = 1_024;
/// Reads of the modest peer, one after the other.
const FEW: usize = 10;

/// Sends a call under the method's name as its id.
fn ask(peer: &mut RawPeer, method: &str, params: &Value) {
    let call = json!({"jsonrpc": "2.0", "id": method, "method": method, "params": params});
    peer.request(call.to_string().as_bytes());
}

fn answer(peer: &mut RawPeer) -> Value {
    let answer: Value = serde_json::from_slice(&peer.message()[1]).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer["result"].clone()
}

/// Returns how many calls of the connection of this number are in flight.
fn in_flight(peer: &mut RawPeer, number: &Value) -> usize {
    ask(peer, "instance.doors", &json!({}));
    let doors = answer(peer);
    let listed = doors["peers"].as_array().unwrap().iter().find(|listed| listed["peer"] == *number);
    serde_json::from_value(listed.unwrap()["calls_in_flight"].clone()).unwrap()
}

#[test]
fn a_thousand_reads_of_one_peer_leave_the_others_their_turns() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let port = role.ports.unwrap().rpc;
    let mut greedy = RawPeer::handshake(port, "DEALER");
    ask(&mut greedy, "instance.doors", &json!({}));
    let number = answer(&mut greedy)["peers"][0]["peer"].clone();
    let mut modest = RawPeer::handshake(port, "DEALER");

    let count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 30000) SELECT count(*) FROM n";
    for _ in 0..MANY {
        ask(&mut greedy, "db.query", &json!({"sql": count}));
    }
    assert_eq!(answer(&mut greedy)["rows"], json!([[30_000]]), "the first of many");
    let before = in_flight(&mut modest, &number);
    for _ in 0..FEW {
        ask(&mut modest, "db.query", &json!({"sql": "SELECT 1"}));
        assert_eq!(answer(&mut modest)["rows"], json!([[1]]));
    }
    let left = in_flight(&mut modest, &number);
    // In one line for all, each read of the modest one would have waited for all that the greedy one had asked for before.
    assert!(left > before / 2, "{FEW} reads waited for {} of {before} reads of another", before - left);
    for _ in 1..MANY {
        assert_eq!(answer(&mut greedy)["rows"], json!([[30_000]]));
    }
}
