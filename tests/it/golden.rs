//! The bytes of `docs/wire.md`: pinned in `tests/golden`, spoken by the vocabulary and by the real primary.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pando_ipc::access::{Capability, Rule};
use pando_ipc::fault::{Code, Fault};
use pando_ipc::rpc::{Id, Incoming, Request, Response, parse_request, parse_response};
use pando_ipc::{Envelope, ports_for_path};
use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox, bytes_of};

const REQUEST: &str = include_str!("../golden/request.json");
const NOTIFICATION: &str = include_str!("../golden/notification.json");
const REPLY: &str = include_str!("../golden/reply.json");
const VOID: &str = include_str!("../golden/void.reply.json");
const PARSE_ERROR: &str = include_str!("../golden/parse-error.reply.json");
const METHOD_NOT_FOUND: &str = include_str!("../golden/method-not-found.reply.json");
const FENCED: &str = include_str!("../golden/fenced.reply.json");
const UNAUTHORIZED: &str = include_str!("../golden/unauthorized.reply.json");
const DUPLICATE_KEY_REQUEST: &str = include_str!("../golden/duplicate-key.request.json");
const DUPLICATE_KEY: &str = include_str!("../golden/duplicate-key.reply.json");
const DB_WRITE_REQUEST: &str = include_str!("../golden/db-write.request.json");
const DB_WRITE_REPLY: &str = include_str!("../golden/db-write.reply.json");
const CHANGE_EVENT: &str = include_str!("../golden/change-event.frame");
const CALLER: &str = include_str!("../golden/caller.bytes");
const SUBSCRIBER: &str = include_str!("../golden/subscriber.bytes");

fn read_request(text: &str) -> Request {
    match parse_request(text.as_bytes()) {
        Ok(Incoming::Single(request)) => request,
        other => panic!("{text} was read as {other:?}"),
    }
}

#[test]
fn requests_have_the_documented_bytes() {
    for text in [REQUEST, NOTIFICATION, DB_WRITE_REQUEST] {
        assert_eq!(serde_json::to_string(&read_request(text)).unwrap(), text);
    }
    assert_eq!(read_request(REQUEST).params, json!({"a": 1}));
    assert!(read_request(NOTIFICATION).id.is_none());
}

#[test]
fn answers_have_the_documented_bytes() {
    let id = || read_request(REQUEST).id.unwrap();
    let answer = |id: Id, outcome| serde_json::to_string(&Response { id, outcome }).unwrap();
    assert_eq!(answer(id(), Ok(json!({"a": 1}))), REPLY);
    assert_eq!(answer(id(), Ok(Value::Null)), VOID);
    assert_eq!(answer(id(), Err(Fault::method_not_found("no.such.method"))), METHOD_NOT_FOUND);
    assert_eq!(answer(id(), Err(Fault::new(Code::Fenced, "epoch 4 is over"))), FENCED);
    let rule = Rule::new("an observer may only read");
    assert_eq!(answer(id(), Err(rule.refuse("db.exec", Capability::Write))), UNAUTHORIZED);
    let refusal = parse_request(b"{").unwrap_err();
    assert_eq!(serde_json::to_string(&refusal).unwrap(), PARSE_ERROR);
    let refusal = parse_request(DUPLICATE_KEY_REQUEST.as_bytes()).unwrap_err();
    assert_eq!(serde_json::to_string(&refusal).unwrap(), DUPLICATE_KEY);
    for text in [REPLY, VOID, METHOD_NOT_FOUND, FENCED, UNAUTHORIZED, PARSE_ERROR] {
        let read = parse_response(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text, "a client reads what a primary writes");
    }
}

#[test]
fn events_have_the_documented_bytes() {
    let event = Envelope::from_frame(CHANGE_EVENT.as_bytes()).unwrap();
    assert_eq!(event.to_frame(), CHANGE_EVENT.as_bytes());
    assert_eq!((event.epoch, event.seq, event.prev, event.n), (Some(1), Some(2), Some(0), None));
}

/// Plays a pinned conversation against a port: what the other side says must be the same bytes.
fn play(script: &str, port: u16) {
    let mut peer = RawPeer::connect(port);
    let lines = script.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut turns = 0;
    for line in lines {
        let (who, notation) = line.split_at(1);
        let bytes = bytes_of(notation);
        match who {
            ">" => peer.send(&bytes),
            "<" => {
                let came = peer.receive(bytes.len());
                assert_eq!(came.escape_ascii().to_string(), bytes.escape_ascii().to_string(), "{line}");
                turns += 1;
            }
            _ => panic!("{line:?} begins with neither > nor <"),
        }
    }
    assert!(turns > 2, "the other side speaks, too");
}

#[test]
fn the_primary_speaks_the_pinned_bytes_to_a_caller() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    play(CALLER, role.ports.unwrap().rpc);
}

#[test]
fn the_primary_speaks_the_pinned_bytes_to_a_subscriber() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    play(SUBSCRIBER, role.ports.unwrap().publish);
}

/// Checks that `came` is `golden` byte for byte, but for the values at `varying`.
#[track_caller]
fn check_same_but(came: &str, golden: &str, varying: &[&str]) {
    let mut value: Value = serde_json::from_str(came).unwrap_or_else(|error| panic!("{error} in {came}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), came, "compact JSON");
    let wanted: Value = serde_json::from_str(golden).unwrap();
    for pointer in varying {
        let place = value.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is missing in {came}"));
        *place = wanted.pointer(pointer).unwrap().clone();
    }
    assert_eq!(serde_json::to_string(&value).unwrap(), golden);
}

#[test]
fn a_documented_write_gives_the_documented_answer_and_event() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let ports = role.ports.unwrap();
    let mut events = RawPeer::handshake(ports.publish, "SUB");
    let mut calls = RawPeer::handshake(ports.rpc, "DEALER");

    // The subscription is live when a probe comes back.
    events.subscribe("db.session.created\0");
    events.subscribe("probe.golden\0");
    let probe =
        r#"{"jsonrpc":"2.0","id":1,"method":"events.publish","params":{"topic":"probe.golden","durable":false}}"#;
    loop {
        calls.request(probe.as_bytes());
        assert_eq!(calls.message()[1], br#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        if events.has_frame() {
            break;
        }
    }

    calls.request(DB_WRITE_REQUEST.as_bytes());
    let reply = calls.message();
    assert_eq!(reply.len(), 2);
    assert_eq!(reply[0], b"", "the delimiter");
    let reply = String::from_utf8(reply[1].clone()).unwrap();
    check_same_but(&reply, DB_WRITE_REPLY, &["/result/updated_at", "/result/created_at"]);

    let frame = loop {
        let frames = events.message();
        assert_eq!(frames.len(), 1, "an event is one frame");
        let frame = String::from_utf8(frames[0].clone()).unwrap();
        if !frame.starts_with("probe.") {
            break frame;
        }
    };
    let ((topic, came), (golden_topic, golden)) =
        (frame.split_once('\0').unwrap(), CHANGE_EVENT.split_once('\0').unwrap());
    assert_eq!(topic, golden_topic);
    check_same_but(came, golden, &["/timestamp", "/payload/timestamp", "/payload/path", "/seq"]);
}

#[test]
fn the_lock_file_has_the_documented_form() {
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let path = sandbox.workdir().lock_path();
    let text = fs::read_to_string(&path).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text, format!("{}\n", serde_json::to_string_pretty(&value).unwrap()), "2-space indent and a newline");
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys[..5],
        ["instance_id", "pid", "pub_port", "rpc_port", "started_at"],
        "the documented keys come first"
    );
    assert_eq!(
        (value["instance_id"].as_str(), value["pid"].as_u64()),
        (Some(&*role.instance_id), Some(role.pid.into()))
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn the_wire_document_shows_the_pinned_bytes() {
    let document = include_str!("../../docs/wire.md");
    let frame = CHANGE_EVENT.replace('\0', "\\0");
    let heartbeat = include_str!("../golden/heartbeat.frame").replace('\0', "\\0");
    let lock = include_str!("../golden/ipc.lock");
    for golden in [
        REQUEST,
        NOTIFICATION,
        REPLY,
        VOID,
        PARSE_ERROR,
        METHOD_NOT_FOUND,
        FENCED,
        UNAUTHORIZED,
        DUPLICATE_KEY,
        DB_WRITE_REQUEST,
        DB_WRITE_REPLY,
        frame.trim_end(),
        heartbeat.trim_end(),
        lock,
    ] {
        assert!(document.contains(golden), "docs/wire.md does not show {golden}");
    }
}

#[test]
fn the_documented_port_vectors_hold() {
    let document = include_str!("../../docs/wire.md");
    let row = |line: &str| {
        let (path, port) = line.strip_prefix("| `/")?.split_once("` | ")?;
        Some((format!("/{path}"), port.split(' ').next()?.parse::<u16>().ok()?))
    };
    let vectors: Vec<_> = document.lines().filter_map(row).collect();
    assert_eq!(vectors.len(), 6, "{vectors:?}");
    for (path, port) in vectors {
        assert_eq!(ports_for_path(path.as_ref()).publish, port, "{path}");
    }
}
