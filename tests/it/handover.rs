//! The primary's role is handed on, and a primary leaves, without a failed call and without a missed event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pando_ipc::client::{Client, Options};
use pando_ipc::{CallError, Kind};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{PandoProcess, RawPeer, RoleLine, Sandbox, eventually, heavy, pando, tail};

/// Hand-overs in a row.
const ROUNDS: usize = 10;
/// Calls in flight at any time, over one link each.
const CALLERS: usize = 8;
/// How long the next primary may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Calls one after the other from several tasks, of every kind, until it is stopped. No call may fail.
struct Callers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: JoinSet<Result<(), (String, CallError)>>,
}

impl Callers {
    fn start(sandbox: &Sandbox) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for caller in 0..CALLERS {
            let client = Client::open(sandbox.workdir(), Options::new(format!("caller-{caller}"), Kind::Client));
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tasks.spawn(async move {
                for number in 0.. {
                    let (method, params) = match number % 4 {
                        0 => ("instance.info", json!({})),
                        1 => ("session.list", json!({})),
                        2 => ("events.since", json!({"after": u32::MAX, "wait_ms": 50})),
                        _ => ("events.publish", json!({"topic": "test.called", "payload": number})),
                    };
                    client.call(method, params).await.map_err(|error| (method.to_owned(), error))?;
                    done.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                client.close().await;
                Ok(())
            });
        }
        Self { stop, done, tasks }
    }

    /// Waits until each has made some more calls.
    fn go_on(&self) {
        let enough = self.done.load(Ordering::Relaxed) + 4 * CALLERS;
        eventually("more calls", WITHIN, || (self.done.load(Ordering::Relaxed) >= enough).then_some(()));
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for outcome in self.tasks.join_all().await {
            assert_eq!(outcome, Ok(()), "a call failed");
        }
    }
}

/// Waits until one of them leads the term and all others follow it, and returns the leader's place.
#[track_caller]
fn settled(instances: &mut [PandoProcess], roles: &mut [Option<RoleLine>], epoch: u64) -> usize {
    eventually(&format!("everyone in term {epoch}"), WITHIN, || {
        for (instance, role) in instances.iter_mut().zip(roles.iter_mut()) {
            let errors = instance.stderr();
            assert!(!errors.contains("ERROR"), "{errors}");
            for line in instance.unread().collect::<Vec<_>>() {
                assert!(!line.text.contains(r#""load":"failed""#), "a write failed: {}", line.text);
                *role = RoleLine::read(&line).or(role.take());
            }
        }
        let roles: Option<Vec<_>> =
            roles.iter().map(|role| role.as_ref().filter(|it| it.epoch == Some(epoch))).collect();
        roles?.iter().position(|role| role.role == "primary")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "the turn is held for the whole test, by nobody else in it")]
async fn the_role_goes_from_hand_to_hand_and_no_call_fails() {
    let _turn = heavy();
    let sandbox = Sandbox::new();
    let mut instances = vec![PandoProcess::primary(&sandbox).0];
    let mut roles = vec![None, None, None, None];
    for _ in 1..roles.len() {
        let mut instance = PandoProcess::start(&sandbox, &["--demo-load"]);
        roles[instances.len()] = Some(instance.becomes("secondary"));
        instance.say("go");
        instances.push(instance);
    }
    let follower = tail(&sandbox, &["--since", "all"]);
    let callers = Callers::start(&sandbox);
    for round in 1..=ROUNDS {
        callers.go_on();
        // Round about a chosen one, and the newest, which is nobody's choice.
        let chosen = roles[round % roles.len()].as_ref().filter(|role| role.role == "secondary");
        let to = chosen.filter(|_| round % 3 != 0).map(|role| role.instance_id.clone());
        let params = json!({"to": to}).to_string();
        let answer: Value = pando(&sandbox, &["ipc", "call", "instance.step_down", &params]).json();
        let epoch = u64::try_from(round).unwrap() + 1;
        let leader = settled(&mut instances, &mut roles, epoch);
        let leads = &roles[leader].as_ref().unwrap().instance_id;
        assert_eq!(answer["successor"], json!(leads), "round {round}: the chosen one leads");
        assert!(to.is_none_or(|to| to == *leads), "round {round}");
    }
    // Leaving in good order is the same, and the last to be stopped.
    for epoch in [ROUNDS + 2, ROUNDS + 3].map(|epoch| u64::try_from(epoch).unwrap()) {
        callers.go_on();
        let leader = settled(&mut instances, &mut roles, epoch - 1);
        let mut leaving = instances.swap_remove(leader);
        roles.swap_remove(leader);
        leaving.signal(Signal::TERM);
        settled(&mut instances, &mut roles, epoch);
        assert_eq!(leaving.end(WITHIN).code(), Some(0), "{}", leaving.stderr());
    }
    callers.go_on();
    callers.end().await;
    for instance in &mut instances {
        instance.hang_up();
    }
    let head = sandbox.count("SELECT max(seq) FROM _pando_event");
    let mut seen = 0;
    eventually(&format!("event {head} at the follower"), WITHIN, || {
        for line in follower.unread() {
            let event: Value = serde_json::from_str(&line.text).unwrap();
            if let Some(seq) = event["seq"].as_i64() {
                assert_eq!(seq, seen + 1, "no gap and no duplicate: {event}");
                seen = seq;
            }
        }
        (seen >= head).then_some(())
    });
}

#[test]
fn a_successor_that_cannot_take_over_is_not_waited_for() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let mut chosen = PandoProcess::start(&sandbox, &[]);
    let id = chosen.becomes("secondary").instance_id;
    chosen.signal(Signal::STOP);
    let asked_at = Instant::now();
    let params = json!({"to": id}).to_string();
    pando(&sandbox, &["ipc", "call", "instance.step_down", &params]).json::<Value>();
    let next = eventually("another primary", WITHIN, || {
        let said = first.unread().chain(second.unread()).collect::<Vec<_>>();
        said.iter().filter_map(RoleLine::read).find(|line| line.role == "primary" && line.epoch == Some(2))
    });
    assert!(next.read_at - asked_at < Duration::from_secs(1), "{:?}", next.read_at - asked_at);
    chosen.signal(Signal::CONT);
    // Whoever leads, nobody is lost.
    for instance in [&mut first, &mut second] {
        instance.signal(Signal::TERM);
        assert_eq!(instance.end(WITHIN).code(), Some(0));
    }
    chosen.becomes("primary");
}

#[test]
fn a_new_program_replaces_the_one_that_runs() {
    let sandbox = Sandbox::new();
    let (mut old, _) = PandoProcess::primary(&sandbox);
    let mut new = PandoProcess::start(&sandbox, &["--replace"]);
    new.becomes("secondary");
    assert_eq!(new.becomes("primary").epoch, Some(2));
    old.becomes("secondary");
    assert_eq!(old.end(WITHIN).code(), Some(0), "it was a 'pando up' itself, so it leaves");
    let detached = pando(&sandbox, &["--json", "up", "--replace", "--detach"]);
    let role: Value = detached.json();
    assert_eq!((&role["role"], &role["epoch"]), (&json!("primary"), &json!(3)));
    assert_eq!(new.end(WITHIN).code(), Some(0));
    let down = pando(&sandbox, &["down"]);
    assert_eq!(down.code, Some(0), "{down}");
}

#[test]
fn nobody_is_handed_to_who_is_not_there() {
    let sandbox = Sandbox::new();
    let (_first, _) = PandoProcess::primary(&sandbox);
    for (params, names) in [("{}", "no secondary"), (r#"{"to":"inst-x"}"#, "\"inst-x\"")] {
        let refused = pando(&sandbox, &["ipc", "call", "instance.step_down", params]);
        assert!(refused.code == Some(1) && refused.stderr.contains(names), "{refused}");
    }
}

/// How long the next primary may take while somebody reads nothing: twice what a leaving one waits for that, and what a busy machine adds.
const IN_SPITE_OF_A_DEAF_ONE: Duration = Duration::from_millis(1_500);
/// More events than the kernel holds for a subscriber, and fewer than we do.
const UNREAD: usize = 120;

#[test]
fn a_subscriber_that_reads_nothing_does_not_keep_a_primary_from_leaving() {
    let _turn = heavy();
    let sandbox = Sandbox::new();
    let (mut first, role) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let mut deaf = RawPeer::handshake(role.ports.unwrap().publish, "SUB");
    deaf.subscribe("");
    let filler = json!({"topic": "test.filler", "payload": "x".repeat(64 << 10)});
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::open(sandbox.workdir(), Options::new("caller", Kind::Client));
        while !deaf.has_frame() {
            client.call("events.publish", filler.clone()).await.unwrap();
        }
        for _ in 0..UNREAD {
            client.call("events.publish", filler.clone()).await.unwrap();
        }
        client.close().await;
    });
    let asked_at = Instant::now();
    first.signal(Signal::TERM);
    second.becomes("primary");
    assert!(asked_at.elapsed() < IN_SPITE_OF_A_DEAF_ONE, "{:?}", asked_at.elapsed());
    first.end(WITHIN);
}
