//! Releases that speak another version of the wire work together, or refuse within a second and name both versions.

use std::time::{Duration, Instant};

use pando::{Instance, Options};
use pando_ipc::access::Capability;
use pando_ipc::bus::{Bus, BusOptions, Limits, TcpDoor};
use pando_ipc::{Kind, Lease, LockInfo, Methods, PROTOCOL, Timestamp};
use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox, pando};

/// How soon a refusal comes.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// The start of a process, on a machine that runs other tests.
const START: Duration = Duration::from_secs(1);

/// A primary of another release, which answers hello and ping and knows nothing else.
struct Other {
    _lease: Lease,
    bus: Bus,
}

impl Other {
    async fn start(sandbox: &Sandbox, protocol: u32) -> Self {
        let workdir = sandbox.workdir();
        let lease = pando_ipc::lock::try_lock(&workdir).unwrap().unwrap();
        let methods = Methods::new();
        methods.register_inline("instance.hello", Capability::Read, move |_| {
            Ok(json!({"instance_id": "inst-other", "epoch": 1, "version": "9.9.9", "protocol": protocol}))
        });
        methods.register_inline("instance.ping", Capability::Read, |_| {
            Ok(json!({"status": "ok", "instance_id": "inst-other", "uptime": 1}))
        });
        let options = BusOptions { workdir, epoch: 1, tcp: TcpDoor::Closed, limits: Limits::default() };
        let bus = Bus::start(options, methods).await.unwrap();
        lease
            .advertise(&LockInfo {
                instance_id: "inst-other".into(),
                pid: std::process::id(),
                pub_port: 0,
                rpc_port: 0,
                started_at: Timestamp::now(),
                epoch: Some(1),
                workdir: None,
                protocol: Some(protocol),
                version: Some("9.9.9".into()),
                endpoints: Some(bus.endpoints()),
                process: None,
                successor: None,
            })
            .unwrap();
        Self { _lease: lease, bus }
    }
}

#[track_caller]
fn check_names_both(text: &str, theirs: u32) {
    let ours = [format!("protocol {PROTOCOL}"), format!("speaks {PROTOCOL}")];
    let names_ours = ours.iter().any(|name| text.contains(name));
    assert!(names_ours && text.contains(&format!("protocol {theirs}")) && text.contains("9.9.9"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_a_primary_of_the_next_version() {
    let sandbox = Sandbox::new();
    let other = Other::start(&sandbox, PROTOCOL + 1).await;
    let asked_at = Instant::now();
    let refused = Instance::join(sandbox.workdir(), Options::default()).await.unwrap_err();
    assert!(asked_at.elapsed() < REFUSED_WITHIN, "{:?}", asked_at.elapsed());
    check_names_both(&refused.to_string(), PROTOCOL + 1);
    for args in [&["up"] as &[&str], &["status"], &["ipc", "call", "instance.info"], &["ipc", "tail"]] {
        let asked_at = Instant::now();
        let refused = tokio::task::block_in_place(|| pando(&sandbox, args));
        assert!(asked_at.elapsed() < REFUSED_WITHIN + START, "{:?}: {refused}", asked_at.elapsed());
        assert_eq!(refused.code, Some(7), "{refused}");
        check_names_both(&refused.stderr, PROTOCOL + 1);
    }
    other.bus.shutdown(REFUSED_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_says_no_version_is_taken_as_an_older_one_and_works() {
    let sandbox = Sandbox::new();
    let other = Other::start(&sandbox, PROTOCOL - 1).await;
    let answer: Value = tokio::task::block_in_place(|| pando(&sandbox, &["ipc", "call", "instance.ping"])).json();
    assert_eq!(answer["instance_id"], "inst-other");
    other.bus.shutdown(REFUSED_WITHIN).await;
}

#[test]
fn a_peer_of_another_version_is_refused_at_once_and_the_same_one_is_welcome() {
    let sandbox = Sandbox::new();
    let (_primary, role) = PandoProcess::primary(&sandbox);
    let mut peer = RawPeer::handshake(role.ports.unwrap().rpc, "DEALER");
    for protocol in [PROTOCOL - 1, PROTOCOL, PROTOCOL + 1] {
        let hello = json!({"instance_id": "inst-other", "kind": Kind::Instance, "pid": 1, "version": "9.9.9", "protocol": protocol});
        let asked_at = Instant::now();
        peer.request(
            json!({"jsonrpc": "2.0", "id": 1, "method": "instance.hello", "params": hello}).to_string().as_bytes(),
        );
        let answer: Value = serde_json::from_slice(peer.message().last().unwrap()).unwrap();
        assert!(asked_at.elapsed() < REFUSED_WITHIN, "{:?}", asked_at.elapsed());
        if protocol == PROTOCOL {
            assert_eq!(answer["result"]["protocol"], PROTOCOL, "{answer}");
        } else {
            assert_eq!(answer["error"]["data"]["code"], "E_VERSION", "{answer}");
            check_names_both(answer["error"]["message"].as_str().unwrap(), protocol);
        }
    }
}
