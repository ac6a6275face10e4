//! Who was here last leaves nothing behind: no process, no socket, no port, no WAL, and no child with the lock in its hand.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use pando::{Instance, Options};
use pando_ipc::lock::is_held;
use rustix::process::Signal;

use crate::support::{PandoProcess, Sandbox, eventually, pando};

/// How long processes may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// Only the lock, the database, who led when, and an empty directory for sockets are there, and the ports are free.
#[track_caller]
fn check_clean(sandbox: &Sandbox) {
    let mut names: Vec<_> = fs::read_dir(sandbox.workdir().pando_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["ipc.lock", "lifecycle.log", "pando.db", "run"]);
    assert_eq!(fs::read_dir(sandbox.workdir().socket_dir().unwrap()).unwrap().count(), 0, "no socket is left");
    let info = sandbox.lock_info();
    for port in [info.pub_port, info.rpc_port] {
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
    assert!(!is_held(&sandbox.workdir()).unwrap());
}

#[test]
fn the_last_to_leave_cleans_up_whoever_it_is() {
    let sandbox = Sandbox::new();
    let mut instances = vec![PandoProcess::primary(&sandbox).0];
    for _ in 0..3 {
        let mut instance = PandoProcess::start(&sandbox, &[]);
        instance.becomes("secondary");
        instances.push(instance);
    }
    let insert = "INSERT INTO projects (id, name, path, status, initialized, created_at, updated_at) \
                  VALUES ('p', 'p', '/p', 'open', 0, 0, 0)";
    assert_eq!(pando(&sandbox, &["db", "exec", insert]).code, Some(0));
    // All of them read, so that all of them have the file open, and all of them leave at once.
    assert_eq!(pando(&sandbox, &["down"]).code, Some(0));
    for instance in &mut instances {
        assert_eq!(instance.end(LEAVE).code(), Some(0));
    }
    check_clean(&sandbox);
    assert_eq!(sandbox.count("SELECT count(*) FROM projects"), 1, "the database has it all");
}

#[test]
fn what_a_killed_primary_leaves_is_recognised_and_cleaned() {
    let sandbox = Sandbox::new();
    let (mut killed, role) = PandoProcess::primary(&sandbox);
    killed.kill();
    let stale = fs::read_dir(sandbox.workdir().socket_dir().unwrap()).unwrap().count();
    assert_eq!(stale, 2, "it could not remove its sockets");
    let status = pando(&sandbox, &["--json", "status"]);
    assert!(status.stdout.contains(r#""state":"free""#), "its lock file is not believed: {status}");
    let (mut next, next_role) = PandoProcess::primary(&sandbox);
    assert_eq!((next_role.epoch, next_role.ports), (Some(2), role.ports), "its ports are free at once");
    let sockets = fs::read_dir(sandbox.workdir().socket_dir().unwrap()).unwrap();
    let names: Vec<_> = sockets.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("2-")), "{names:?}");
    next.signal(Signal::TERM);
    assert_eq!(next.end(LEAVE).code(), Some(0));
    check_clean(&sandbox);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_of_an_instance_does_not_inherit_the_lock() {
    let sandbox = Sandbox::new();
    let instance = Instance::join(sandbox.workdir(), Options::default()).await.unwrap();
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let lock = sandbox.workdir().lock_path();
    let inherited = eventually("the child to run its own program", LEAVE, || {
        let runs = fs::read_link(format!("/proc/{}/exe", child.id())).ok()?;
        runs.ends_with("sleep").then(|| {
            let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
            open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).any(|path| path == lock)
        })
    });
    assert!(!inherited);
    instance.leave().await;
    assert!(!is_held(&sandbox.workdir()).unwrap(), "the lock is free while the child lives");
    let (next, _) = PandoProcess::primary(&sandbox);
    drop(next);
    child.kill().unwrap();
    child.wait().unwrap();
}
