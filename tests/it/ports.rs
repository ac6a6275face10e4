//! Ports are a hint, the lock file is the truth, and nobody is believed before it has said who it is.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use pando_ipc::{LockInfo, Ports, ports_for_path};
use serde_json::{Value, json};

use crate::support::{Outcome, PandoProcess, Sandbox, pando, python};

/// How long a peer in Python may take.
const PEER: Duration = Duration::from_secs(30);

/// Makes a workdir whose ports nobody uses now: any socket of this machine may sit on them.
fn sandbox_with_free_ports() -> (Sandbox, Ports) {
    loop {
        let sandbox = Sandbox::new();
        let ports = ports_for_path(sandbox.path());
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(ports.publish) && is_free(ports.rpc) {
            return (sandbox, ports);
        }
    }
}

#[track_caller]
fn check_binds_elsewhere(taken: impl FnOnce(Ports) -> u16) {
    let (sandbox, hint) = sandbox_with_free_ports();
    let port = taken(hint);
    let _foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let ports = role.ports.expect("the TCP door is open");
    assert!(ports.publish != port && ports.rpc != port, "{ports:?}");
    let info = sandbox.lock_info();
    assert_eq!((info.pub_port, info.rpc_port), (ports.publish, ports.rpc), "what is bound is advertised");
    let mut second = PandoProcess::start(&sandbox, &[]);
    assert_eq!(second.becomes("secondary").epoch, role.epoch);
    let pong: Value = pando(&sandbox, &["ipc", "call", "instance.ping"]).json();
    assert_eq!(pong["instance_id"], role.instance_id, "clients follow");
    let mut peer = python(&sandbox, "dealer.py", &["pipelined"]);
    assert_eq!(peer.end(PEER).code(), Some(0), "{}", peer.stderr());
}

#[test]
fn a_free_pair_is_the_one_that_the_path_suggests() {
    let (sandbox, hint) = sandbox_with_free_ports();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let ports = role.ports.unwrap();
    assert_eq!((ports.publish, ports.rpc), (hint.publish, hint.rpc));
}

#[test]
fn a_taken_pub_port_is_left_to_its_owner() {
    check_binds_elsewhere(|hint| hint.publish);
}

#[test]
fn a_taken_rpc_port_is_left_to_its_owner() {
    check_binds_elsewhere(|hint| hint.rpc);
}

/// Makes two workdirs for whose paths the same ports are suggested.
fn twins() -> (Sandbox, Sandbox) {
    let mut by_ports: HashMap<u16, Sandbox> = HashMap::new();
    loop {
        let sandbox = Sandbox::new();
        if let Some(twin) = by_ports.remove(&ports_for_path(sandbox.path()).publish) {
            return (twin, sandbox);
        }
        by_ports.insert(ports_for_path(sandbox.path()).publish, sandbox);
    }
}

/// Stores a session under this id through the primary of the sandbox.
fn create_session(sandbox: &Sandbox, id: &str) -> Outcome {
    let params = json!({
        "meta": {"source_instance_id": "", "request_id": format!("req-{id}"), "timestamp": "2026-11-21T03:04:15Z"},
        "method": "CreateSession",
        "params": {
            "id": id, "parent_session_id": {"String": "", "Valid": false}, "title": id,
            "message_count": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0,
        },
    });
    pando(sandbox, &["--timeout", "2s", "ipc", "call", "db.write", &params.to_string()])
}

#[track_caller]
fn check_has_only(sandbox: &Sandbox, id: &str) {
    let database = sandbox.database();
    let mut statement = database.prepare("SELECT id FROM sessions ORDER BY id").unwrap();
    let ids: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(ids, [id]);
}

#[test]
fn two_workdirs_on_the_same_ports_work_side_by_side() {
    let (one, two) = twins();
    let (_first, first) = PandoProcess::primary(&one);
    let (_second, second) = PandoProcess::primary(&two);
    assert_ne!(first.ports, second.ports);
    for (sandbox, id) in [(&one, "in-one"), (&two, "in-two")] {
        let created: Value = create_session(sandbox, id).json();
        assert_eq!(created["id"], id);
    }
    check_has_only(&one, "in-one");
    check_has_only(&two, "in-two");
}

#[test]
fn no_write_lands_in_the_workdir_that_took_over_the_ports() {
    let (one, two) = twins();
    let (mut first, first_role) = PandoProcess::primary(&one);
    create_session(&one, "in-one").json::<Value>();
    first.kill();
    let (_second, second_role) = PandoProcess::primary(&two);
    create_session(&two, "in-two").json::<Value>();
    let stale = one.lock_info();
    let ports = first_role.ports.unwrap();
    assert_eq!((stale.pub_port, stale.rpc_port), (ports.publish, ports.rpc), "the old note still stands there");

    // Nobody holds the lock: there is no primary, whoever listens on the ports.
    let refused = create_session(&one, "astray-1");
    assert_eq!(refused.code, Some(3), "{refused}");

    // Somebody holds the lock and the note leads to the other workdir's primary: it is not the one that the note names.
    let ports = second_role.ports.unwrap();
    let lock = hold_lock(one.workdir().lock_path().as_path());
    let note = LockInfo { pub_port: ports.publish, rpc_port: ports.rpc, endpoints: None, ..stale };
    fs::write(one.workdir().lock_path(), note.to_text()).unwrap();
    let refused = create_session(&one, "astray-2");
    assert!(matches!(refused.code, Some(3 | 5)), "{refused}");
    drop(lock);

    check_has_only(&one, "in-one");
    check_has_only(&two, "in-two");
}

fn hold_lock(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.try_lock().unwrap();
    file
}
