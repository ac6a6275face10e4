//! Another user of the machine gets no answer and no event, whatever he tries.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, Sandbox, pando};

/// `nobody` on most systems, and in any case not us.
const NOBODY: u32 = 65_534;
/// Attempts at each of the four sockets.
const ATTEMPTS: usize = 250;

/// Dials every socket, greets, subscribes to everything and calls, all in one go; prints how many bytes came back and how
/// many connections were made. It needs nothing but an interpreter, so that another user can run it.
const INTRUDER: &str = r#"
import json, socket, sys
attempts, endpoints = int(sys.argv[1]), sys.argv[2:]
greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
def ready(kind):
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return b"\x04" + bytes([len(body)]) + body
call = b'{"jsonrpc":"2.0","id":1,"method":"instance.ping"}'
says = {"rpc": greeting + ready(b"DEALER") + b"\x00" + bytes([len(call)]) + call, "pub": greeting + ready(b"SUB") + b"\x00\x01\x01"}
came = connected = 0
for endpoint in endpoints:
    what, _, address = endpoint.partition("=")
    for _ in range(attempts):
        try:
            if address.startswith("ipc://"):
                peer = socket.socket(socket.AF_UNIX)
                peer.settimeout(10)
                peer.connect(address[6:])
            else:
                peer = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10)
            connected += 1
            peer.sendall(says[what])
            while chunk := peer.recv(4096):
                came += len(chunk)
        except (ConnectionError, PermissionError):
            pass
        finally:
            peer.close()
print(json.dumps({"came": came, "connected": connected}))
"#;

/// Runs the intruder as another user.
fn intrude(sandbox: &Sandbox) -> Value {
    let endpoints = sandbox.lock_info().endpoints.unwrap();
    let named = |what: &str, list: &[String]| list.iter().map(|it| format!("{what}={it}")).collect::<Vec<_>>();
    let mut command = Command::new("python3");
    command.args(["-c", INTRUDER, &ATTEMPTS.to_string()]);
    command.args(named("rpc", &endpoints.rpc)).args(named("pub", &endpoints.publish));
    let output = command.current_dir("/").uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Tells whether we can become another user; says so when the test cannot be made.
fn can_be_another() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        #[expect(clippy::print_stderr, reason = "a test that cannot be made says so")]
        {
            eprintln!("skipped: only root can become another user");
        }
    }
    is_root
}

/// Lets everybody enter a directory.
fn open_up(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Intrudes while somebody publishes and reads; returns what came of it.
fn intrude_under_load(sandbox: &Sandbox, port: u16) -> Value {
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let load = threads.spawn(|| {
            let mut peer = RawPeer::handshake(port, "DEALER");
            let publish = br#"{"jsonrpc":"2.0","id":1,"method":"events.publish","params":{"topic":"secret.x","payload":"for our eyes"}}"#;
            let mut published = 0;
            while !done.load(Relaxed) {
                peer.request(publish);
                assert!(peer.message()[1].starts_with(br#"{"jsonrpc":"2.0","id":1,"result":{"seq":"#));
                published += 1;
            }
            published
        });
        let got = intrude(sandbox);
        done.store(true, Relaxed);
        assert!(load.join().unwrap() > 0, "somebody worked meanwhile");
        got
    })
}

fn foreign(sandbox: &Sandbox) -> Value {
    let doors: Value = pando(sandbox, &["ipc", "doors", "--json"]).json();
    doors["refusals"].clone()
}

#[test]
fn another_user_gets_no_call_through_and_no_byte_of_an_event() {
    if !can_be_another() {
        return;
    }
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let got = intrude_under_load(&sandbox, role.ports.unwrap().rpc);
    // The directory of the Unix sockets lets nobody else in; TCP lets him connect and nothing more.
    assert_eq!(got, json!({"came": 0, "connected": 2 * ATTEMPTS}));
    assert_eq!(foreign(&sandbox), json!({"foreign_uid": 2 * ATTEMPTS}));
}

#[test]
fn the_uid_is_checked_even_where_the_directories_stand_open() {
    if !can_be_another() {
        return;
    }
    let sandbox = Sandbox::new();
    let (_instance, role) = PandoProcess::primary(&sandbox);
    let run = sandbox.workdir().socket_dir().unwrap();
    open_up(sandbox.path().parent().unwrap());
    for path in [sandbox.path(), &sandbox.workdir().pando_dir(), &run] {
        open_up(path);
    }
    for entry in fs::read_dir(&run).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let got = intrude_under_load(&sandbox, role.ports.unwrap().rpc);
    assert_eq!(got, json!({"came": 0, "connected": 4 * ATTEMPTS}));
    assert_eq!(foreign(&sandbox), json!({"foreign_uid": 4 * ATTEMPTS}));
}

#[test]
fn who_is_known_to_be_another_user_stays_outside_an_unverified_door() {
    if !can_be_another() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut instance = PandoProcess::start(&sandbox, &["--tcp-unverified"]);
    let role = instance.becomes("primary");
    let got = intrude_under_load(&sandbox, role.ports.unwrap().rpc);
    assert_eq!(got["came"], 0);
}

#[test]
fn every_command_of_another_user_says_whose_the_workdir_is() {
    if !can_be_another() {
        return;
    }
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    // Where the binary was built, others may not be let in. A process of its own copies it: while we had the copy open for
    // writing, a child of another test could inherit that, and nobody could execute it.
    let program = sandbox.root().join("pando");
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_pando")).arg(&program).status().unwrap().success());
    open_up(sandbox.root());
    open_up(&program);
    let refused = |command: &str, closed: &Path| {
        let args: Vec<_> = command.split(' ').collect();
        let mut pando = Command::new(&program);
        pando.arg("--workdir").arg(sandbox.path()).args(args).env_clear().current_dir("/");
        let output = pando.uid(NOBODY).gid(NOBODY).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{command}: {output:?}");
        let own = rustix::process::geteuid().as_raw();
        let whose = format!("error: {} belongs to uid {own}, not to us (uid {NOBODY})\n", closed.display());
        let next = "hint: run as its owner, or work in a directory of your own with '--workdir DIR'\n";
        assert_eq!(String::from_utf8(output.stderr).unwrap(), whose + next, "{command}");
        assert!(output.stdout.is_empty(), "{command}: {:?}", output.stdout);
    };
    open_up(sandbox.path());
    let pando_dir = sandbox.workdir().pando_dir();
    for command in [
        "status",
        "up",
        "down",
        "metrics",
        "ipc call instance.ping",
        "ipc doors",
        "ipc instances",
        "ipc ports",
        "ipc publish a.b",
        "ipc tail",
        "ipc cursors",
        "ipc methods",
        "ipc evict",
        "db exec SELECT(1)",
        "db query SELECT(1)",
        "db tables",
        "db stats",
        "db check",
    ] {
        refused(command, &pando_dir);
    }
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o700)).unwrap();
    refused("status", sandbox.path());
}

#[test]
fn nobody_leads_in_a_directory_of_another_user_however_open_it_is() {
    if !can_be_another() {
        return;
    }
    let sandbox = Sandbox::new();
    let pando_dir = sandbox.workdir().pando_dir();
    fs::create_dir(&pando_dir).unwrap();
    for theirs in [pando_dir.clone(), pando_dir.join("run")] {
        fs::create_dir_all(&theirs).unwrap();
        chown(&theirs, Some(NOBODY), None).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = pando(&sandbox, &["up"]);
        assert_eq!(refused.code, Some(4), "{refused}");
        assert!(refused.stderr.contains(&format!("{} belongs to uid {NOBODY}", theirs.display())), "{refused}");
        assert_eq!(fs::metadata(&theirs).unwrap().mode() & 0o777, 0o777, "it is not ours to repair");
        chown(&theirs, Some(rustix::process::geteuid().as_raw()), None).unwrap();
    }
    let (_instance, _) = PandoProcess::primary(&sandbox);
    for ours in [pando_dir.clone(), pando_dir.join("run")] {
        assert_eq!(fs::metadata(&ours).unwrap().mode() & 0o777, 0o700, "{}", ours.display());
    }
}

#[test]
fn a_closed_tcp_door_has_no_port() {
    let sandbox = Sandbox::new();
    let mut instance = PandoProcess::start(&sandbox, &["--no-tcp"]);
    assert!(instance.becomes("primary").ports.is_none());
    let info = sandbox.lock_info();
    assert_eq!((info.pub_port, info.rpc_port), (0, 0));
    assert!(info.endpoints.unwrap().rpc.iter().all(|endpoint| endpoint.starts_with("ipc://")));
    let alive: Value = pando(&sandbox, &["ipc", "call", "instance.ping"]).json();
    assert_eq!(alive["status"], "ok");
}
