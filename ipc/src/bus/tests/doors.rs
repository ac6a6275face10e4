use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;
use crate::hello::HELLO;
use crate::ports::ports_for_path;

fn socket_files(workdir: &Workdir) -> Vec<String> {
    let entries = fs::read_dir(workdir.socket_dir().unwrap()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn options(workdir: &Workdir, tcp: TcpDoor) -> BusOptions {
    BusOptions { workdir: workdir.clone(), epoch: u64::MAX, tcp, limits: Limits::default() }
}

fn workdir() -> (tempfile::TempDir, Workdir) {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    workdir.prepare().unwrap();
    (dir, workdir)
}

#[tokio::test]
async fn squatted_ports_are_passed_over() {
    let (_dir, workdir) = workdir();
    let first = ports_for_path(workdir.path());
    let second = first.next();
    // Of one pair the first port is taken, of the next the second; another test's bus may hold one of them already.
    let squatters = [first.publish, second.rpc].map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let bus = Bus::start(options(&workdir, TcpDoor::OwnUser), Methods::new()).await.unwrap();
    let ports = bus.ports().unwrap();
    assert!(ports != first && ports != second && ports.rpc == ports.publish + 1, "{ports:?}");
    assert_eq!((ports.publish - first.publish) % 2, 0);
    assert_eq!(bus.endpoints().publish[1], format!("tcp://127.0.0.1:{}", ports.publish));
    assert_eq!(bus.endpoints().rpc[1], format!("tcp://127.0.0.1:{}", ports.rpc));
    drop(squatters);
}

#[tokio::test]
async fn after_shutdown_ports_are_free_and_socket_files_are_gone() {
    let fixture = Fixture::start().await;
    let ports = fixture.bus.ports().unwrap();
    assert_eq!(socket_files(&fixture.workdir).len(), 2);
    let mut peer = Dealer::connect(&fixture.rpc()[1]).await;
    assert_eq!(peer.call("now", json!([1])).await["result"], json!([1]));
    let silent = fixture.tcp(Role::Router).await;
    within(fixture.bus.shutdown(PATIENCE)).await;
    assert!(socket_files(&fixture.workdir).is_empty());
    for port in [ports.publish, ports.rpc] {
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
    Raw(silent).closed().await;
}

#[tokio::test]
async fn shutdown_lets_calls_in_flight_finish() {
    let fixture = Fixture::start().await;
    let mut peers = [Dealer::connect(&fixture.rpc()[0]).await, Dealer::connect(&fixture.rpc()[1]).await];
    for peer in &mut peers {
        peer.send(&["", r#"{"jsonrpc":"2.0","id":1,"method":"wait"}"#]).await;
    }
    eventually("both are in flight", || fixture.bus.stats().calls_in_flight == 2).await;
    let bus = fixture.bus.clone();
    let closing = async {
        within(bus.shutdown(PATIENCE)).await;
    };
    let answers = async {
        fixture.bus.inner.shared.accepting.cancelled().await;
        fixture.gate.add_permits(2);
        for peer in &mut peers {
            assert_eq!(peer.recv().await, r#"{"jsonrpc":"2.0","id":1,"result":null}"#);
        }
    };
    tokio::join!(closing, answers);
}

#[tokio::test]
async fn a_closing_bus_refuses_and_tells_at_last_what_it_has_read() {
    let fixture = Fixture::start().await;
    fixture.bus.register_method(HELLO, Read, |call| async move { Ok(call.params) });
    let mut polite = Dealer::connect(&fixture.rpc()[0]).await;
    let mut plain = Dealer::connect(&fixture.rpc()[0]).await;
    assert_eq!(polite.call(HELLO, json!([1])).await["result"], json!([1]));
    fixture.bus.refuse(Fault::new(Code::Fenced, "over"));
    for peer in [&mut polite, &mut plain] {
        assert_eq!(peer.call("now", json!([1])).await["error"]["data"]["code"], "E_FENCED");
        peer.send(&["", r#"[{"jsonrpc":"2.0","id":7,"method":"later"}]"#]).await;
        assert!(peer.recv().await.contains("E_FENCED"));
    }
    let bus = fixture.bus.clone();
    let closing = async { within(bus.shutdown(PATIENCE)).await };
    let goodbye = async {
        assert_eq!(polite.recv().await, r#"{"jsonrpc":"2.0","method":"instance.goodbye","params":{"read":3}}"#);
        assert!(timeout(2 * LINGER, plain.recv()).await.is_err(), "who has not said hello would not understand");
    };
    tokio::join!(closing, goodbye);
}

#[tokio::test]
async fn shutdown_ends_in_time_whatever_calls_and_peers_do() {
    let fixture = Fixture::start().await;
    let mut peer = Dealer::connect(&fixture.rpc()[0]).await;
    peer.send(&["", r#"{"jsonrpc":"2.0","id":1,"method":"wait"}"#]).await;
    let mut stopped = Raw::greet(fixture.unix(Role::Pub).await, 0, "SUB").await;
    stopped.frame(0, b"\x01").await;
    eventually("subscribed", || fixture.bus.inner.shared.audience(b"e") == 1).await;
    fixture.bus.publish_frame(&vec![b'e'; 3 << 20]);
    within(fixture.bus.shutdown(Duration::from_millis(50))).await;
    assert!(fixture.bus.inner.shared.connections.is_empty());
    stopped.closed().await;
}

#[tokio::test]
async fn a_dropped_bus_closes_its_doors() {
    let fixture = Fixture::start().await;
    let peer = Raw::greet(fixture.unix(Role::Router).await, 0, "DEALER").await;
    let workdir = fixture.workdir.clone();
    drop(fixture.bus);
    peer.closed().await;
    eventually("files are gone", || socket_files(&workdir).is_empty()).await;
}

#[tokio::test]
async fn files_of_former_terms_are_removed_and_names_never_repeat() {
    let (_dir, workdir) = workdir();
    let run = workdir.socket_dir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(run.join("3-abcdef.pub")).unwrap());
    fs::write(run.join("note.pub"), "not a socket").unwrap();
    let bus = Bus::start(options(&workdir, TcpDoor::Closed), Methods::new()).await.unwrap();
    let former = bus.endpoints();
    assert_eq!((bus.ports(), former.publish.len(), former.rpc.len()), (None, 1, 1));
    assert!(!run.join("3-abcdef.pub").exists());
    assert!(run.join("note.pub").exists());
    let later = Bus::start(options(&workdir, TcpDoor::Closed), Methods::new()).await.unwrap();
    assert_ne!(former, later.endpoints());
    within(bus.shutdown(PATIENCE)).await;
    assert_eq!(socket_files(&workdir).len(), 3, "the former bus removed its own files only");
}

#[tokio::test]
async fn a_socket_that_cannot_be_bound_is_named() {
    let (_dir, workdir) = workdir();
    fs::write(workdir.pando_dir().join("run"), "in the way").unwrap();
    let error = Bus::start(options(&workdir, TcpDoor::OwnUser), Methods::new()).await.unwrap_err();
    assert!(error.to_string().contains("/.pando/run"), "{error}");
}

/// Dials as another user, sends a byte and says what it got. Needs root to change the user.
fn dial_as_nobody(port: u16) -> String {
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '\\xff' >&3; head -c 1 <&3 | wc -c");
    let output = Command::new("bash").args(["-c", &script]).uid(65_534).gid(65_534).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_gets_no_byte_over_tcp() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let fixture = Fixture::start().await;
    let ports = fixture.bus.ports().unwrap();
    for port in [ports.publish, ports.rpc] {
        let got = tokio::task::spawn_blocking(move || dial_as_nobody(port)).await.unwrap();
        assert_eq!(got, "0");
    }
    assert_eq!(fixture.refusals("foreign_uid") + fixture.refusals("unknown_uid"), 2);
    fixture.check_alive().await;
}

#[tokio::test]
async fn who_hangs_up_before_he_is_looked_at_is_no_stranger() {
    let fixture = Fixture::start().await;
    let port = fixture.bus.ports().unwrap().rpc;
    for said in ["", "x"] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
        // The bus runs on this thread, so it has not seen him yet.
        drop(stream);
    }
    eventually("both came and went", || {
        let places = fixture.bus.inner.shared.places.available_permits();
        (fixture.bus.stats().accepted, places) == (2, Limits::default().max_connections)
    })
    .await;
    assert_eq!(fixture.refusals("unknown_uid"), 0);
    fixture.check_alive().await;
}
