//! A primary that holds the lock but says nothing is named by everyone, and ended when somebody decides so; reads go on.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use pando::{Delivery, Instance, Options, Pattern, Role};
use pando_ipc::lock::Lease;
use pando_ipc::{Envelope, LockInfo};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Outcome, PandoProcess, Process, Sandbox, binary, eventually, pando, python, tail};

/// How soon everyone knows; half a second of it is this machine's.
const KNOWN_WITHIN: Duration = Duration::from_millis(2_500);
/// How soon the next primary serves once the silent one is gone.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

fn evict(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    pando(sandbox, &[&["ipc", "evict"], args].concat())
}

/// Waits for the next event of one topic.
async fn next(events: &mut pando::HubSubscription, within: Duration) -> Envelope {
    let event = tokio::time::timeout(within, events.recv()).await.expect("an event in time");
    match event {
        Some(Delivery::Event(event)) => (*event).clone(),
        other => panic!("no event: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_hears_of_a_silent_primary_within_two_seconds_and_reads_on() {
    let sandbox = Sandbox::new();
    let (first, role) = PandoProcess::primary(&sandbox);
    let options = Options { call_timeout: Duration::from_secs(4), ..Options::default() };
    let second = Instance::join(sandbox.workdir(), options).await.unwrap();
    assert!(matches!(&*second.role().borrow(), Role::Secondary { .. }));
    let mut silent = second.subscribe([Pattern::new("instance.unresponsive").unwrap()]);
    let mut speaks = second.subscribe([Pattern::new("instance.responsive").unwrap()]);

    let stopped_at = Instant::now();
    first.signal(Signal::STOP);
    let event = next(&mut silent, KNOWN_WITHIN).await;
    let payload: Value = event.payload.read().unwrap();
    assert!(stopped_at.elapsed() < KNOWN_WITHIN, "{:?}", stopped_at.elapsed());
    let program = env!("CARGO_BIN_EXE_pando");
    let expected = json!({
        "instance_id": role.instance_id, "epoch": 1, "pid": first.pid(), "executable": program, "state": "stopped",
        "silent_ms": payload["silent_ms"],
    });
    assert_eq!((event.instance_id.as_str(), payload), (second.id(), expected));

    let error = second.call("instance.info", json!({})).await.unwrap_err().to_string();
    let write = second.db().execute("DELETE FROM skills", ()).await.unwrap_err().to_string();
    for text in [error, write] {
        let names = [&role.instance_id, &format!("pid {}", first.pid()), "stopped", program];
        assert!(names.iter().all(|name| text.contains(*name)), "{text}");
    }
    let count = second.db().query_one("SELECT count(*) FROM skills", (), |row| row.get::<i64>(0)).await.unwrap();
    assert_eq!(count, Some(0), "reads go on");

    first.signal(Signal::CONT);
    assert_eq!(next(&mut speaks, KNOWN_WITHIN).await.payload.read::<Value>().unwrap()["pid"], first.pid());
    assert!(second.call("instance.info", json!({})).await.is_ok());
    second.leave().await;
}

#[test]
fn a_silent_primary_is_evicted_on_demand_and_the_next_one_serves() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let follower = tail(&sandbox, &[]);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    assert_snapshot!(evict(&sandbox, &["--yes"]), @r"
    $ pando ipc evict --yes
    error: primary [inst] answers: nothing has to be evicted
    hint: end it in good order: 'pando down'
    hint: take its place: 'pando up --replace'
    exit 1
    ");
    first.signal(Signal::STOP);
    assert_snapshot!(pando(&sandbox, &["status"]), @r"
    $ pando status
    workdir   [workdir]
    state     the lock is held, but its holder does not answer
    holder    [inst], pid [pid], stopped, [pando], since [time]
    head      seq [seq], epoch 1
    database  [size], log [size]
    error: the primary of [workdir] has said nothing for 2s ([inst], pid [pid], stopped, [pando], since [time])
    hint: if it stays silent, end it and another instance takes over: 'pando ipc evict'
    exit 5
    ");
    eventually("the follower to say so", KNOWN_WITHIN, || {
        follower.stderr().contains(&format!("pid {}, stopped", first.pid())).then_some(())
    });
    // Nobody is here to ask, so nothing is done.
    assert_snapshot!(evict(&sandbox, &[]), @r"
    $ pando ipc evict
    error: would end [inst], pid [pid], stopped, [pando], since [time]: SIGKILL, but nobody is here to ask
    hint: if that is what you want: 'pando ipc evict --yes'
    exit 2
    ");
    assert_snapshot!(evict(&sandbox, &["--dry-run", "--json"]), @r#"
    $ pando ipc evict --dry-run --json
    {"would_evict":{"instance_id":"[inst]","pid":"[pid]","executable":"[pando]","state":"stopped"},"signals":["SIGKILL"]}
    exit 0
    "#);
    let asked_at = Instant::now();
    let evicted = evict(&sandbox, &["--yes"]);
    assert!(asked_at.elapsed() < KNOWN_WITHIN + SERVED_WITHIN, "{:?}", asked_at.elapsed());
    assert_snapshot!(evicted, @r"
    $ pando ipc evict --yes
    evicted [inst], pid [pid] (SIGKILL); [inst] leads now
    exit 0
    ");
    first.end(SERVED_WITHIN);
    assert_eq!(second.becomes("primary").epoch, Some(2));
    drop(second);
    assert_snapshot!(evict(&sandbox, &["--yes"]), @r"
    $ pando ipc evict --yes
    nobody to evict: no primary in [workdir] (lock is free)
    exit 0
    ");
}

#[test]
fn a_process_that_only_has_the_pid_is_never_ended() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let (first, _) = PandoProcess::primary(&sandbox);
    let info = sandbox.lock_info();
    first.signal(Signal::STOP);
    let write = |info: &LockInfo| std::fs::write(sandbox.workdir().lock_path(), info.to_text()).unwrap();
    let mut earlier = info.clone();
    earlier.process.as_mut().unwrap().start_ticks -= 1;
    write(&earlier);
    assert_snapshot!(evict(&sandbox, &["--yes"]), @r"
    $ pando ipc evict --yes
    error: cannot evict the primary: pid [pid] is not the process that wrote the lock file; whoever holds the lock now is another one
    hint: find who holds the lock: 'fuser -v [workdir]/.pando/ipc.lock'
    exit 1
    ");
    write(&LockInfo { process: None, ..info.clone() });
    assert_snapshot!(evict(&sandbox, &["--yes"]), @r"
    $ pando ipc evict --yes
    error: cannot evict the primary: the lock file does not name its process beyond pid [pid], which may be another one's by now
    hint: find who holds the lock: 'fuser -v [workdir]/.pando/ipc.lock'
    exit 1
    ");
    write(&info);
    first.signal(Signal::CONT);
    let answer: Value = pando(&sandbox, &["ipc", "call", "instance.info"]).json();
    assert_eq!(answer["pid"], first.pid(), "it lives");
}

#[test]
fn a_silent_primary_is_evicted_by_itself_only_where_that_was_asked_for() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &["--evict-after", "3s"]);
    second.becomes("secondary");
    let stopped_at = Instant::now();
    first.signal(Signal::STOP);
    let role = second.becomes("primary");
    assert_eq!(role.epoch, Some(2));
    let after = role.read_at - stopped_at;
    assert!(after > Duration::from_millis(2_500) && after < Duration::from_secs(3) + SERVED_WITHIN, "{after:?}");
    first.end(SERVED_WITHIN);
}

#[test]
fn a_lock_that_is_held_by_nobody_we_know_evicts_nobody() {
    let sandbox = Sandbox::new();
    let _redacted = sandbox.redact();
    let _lease: Lease = pando_ipc::lock::try_lock(&sandbox.workdir()).unwrap().unwrap();
    assert_snapshot!(evict(&sandbox, &["--yes"]), @r"
    $ pando ipc evict --yes
    error: no primary answers in [workdir] (its lock is held, by whom is not said)
    hint: find the holder: 'fuser -v [workdir]/.pando/ipc.lock'
    exit 3
    ");
}

/// Asks in a terminal whether to evict, answers, and returns the exit code and all that the terminal showed.
fn evict_in_a_terminal(sandbox: &Sandbox, answer: &str) -> (i64, String) {
    let mut terminal = python(sandbox, "terminal.py", &[answer, env!("CARGO_BIN_EXE_pando"), "ipc", "evict"]);
    let end: Value = terminal
        .wait_for("the end of the command", KNOWN_WITHIN + SERVED_WITHIN, |line| serde_json::from_str(&line.text).ok());
    (end["code"].as_i64().unwrap(), end["said"].as_str().unwrap().to_owned())
}

#[test]
fn in_a_terminal_a_person_is_asked_and_only_yes_ends_the_primary() {
    let sandbox = Sandbox::new();
    let (mut first, role) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    first.signal(Signal::STOP);
    let plan = [&*role.instance_id, &format!("pid {}", first.pid()), "stopped", "SIGKILL", "go on? [y/N]"];
    for answer in ["n", "", "yesterday"] {
        let (code, said) = evict_in_a_terminal(&sandbox, answer);
        assert!(plan.iter().all(|part| said.contains(part)) && said.contains("nothing was done"), "{said}");
        assert_eq!(code, 1, "{said}");
        assert_eq!(sandbox.lock_info().epoch, role.epoch, "{answer:?} is no yes");
    }
    let (code, said) = evict_in_a_terminal(&sandbox, "Yes");
    assert!(code == 0 && said.contains("evicted") && said.contains("leads now"), "{said}");
    first.end(SERVED_WITHIN);
    second.becomes("primary");
}

#[test]
fn who_watches_the_status_reads_what_to_do_about_it() {
    let sandbox = Sandbox::new();
    let (instance, _) = PandoProcess::primary(&sandbox);
    let mut command = binary(sandbox.path());
    command.args(["status", "--watch"]);
    let mut watch = Process::spawn(&sandbox, "watch", command);
    let within = Duration::from_secs(10);
    watch.wait_for("its primary", within, |line| line.text.starts_with("primary  ").then_some(()));
    instance.signal(Signal::STOP);
    watch.wait_for("the problem", within, |line| line.text.starts_with("problem  ").then_some(()));
    watch.wait_for("the next step", within, |line| line.text.contains("'pando ipc evict'").then_some(()));
}
