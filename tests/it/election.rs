//! However many start at once, exactly one leads and all of them are served.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use crate::support::{PandoProcess, RoleLine, Sandbox, heavy, pando};

/// Fresh directories in which the race is run.
const ROUNDS: usize = 20;
/// Processes in each race.
const PROCESSES: usize = 32;
/// How long all of them may take until each has had an answer through its own client.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// What `pando up --ping` prints when `instance.ping` was answered.
#[derive(Deserialize)]
struct Pong {
    ping: String,
}

#[test]
fn of_32_that_start_at_once_exactly_one_leads_and_all_are_served() {
    let _turn = heavy();
    for round in 1..=ROUNDS {
        let sandbox = Sandbox::new();
        let started = Instant::now();
        let mut racers: Vec<_> = (0..PROCESSES).map(|_| PandoProcess::start(&sandbox, &["--ping"])).collect();
        let mut roles = Vec::new();
        for racer in &mut racers {
            let left = SERVED_WITHIN.saturating_sub(started.elapsed());
            let pong = racer.wait_for("the answer to instance.ping", left, |line| {
                roles.extend(RoleLine::read(line));
                serde_json::from_str::<Pong>(&line.text).ok()
            });
            assert_eq!(pong.ping, "ok", "round {round}");
        }
        // Everyone who is served is entered, so the primary's own list must have them all, each once.
        let list: Value = pando(&sandbox, &["--json", "ipc", "instances"]).json();
        let listed = list["instances"].as_array().unwrap();
        let leaders = listed.iter().filter(|instance| instance["role"] == "primary").count();
        let followers = listed.iter().filter(|instance| instance["role"] == "secondary").count();
        assert_eq!((leaders, followers), (1, PROCESSES - 1), "round {round}: {list:#}");
        roles.extend(racers.iter().flat_map(|racer| racer.unread()).filter_map(|line| RoleLine::read(&line)));
        let primaries: Vec<_> = roles.iter().filter(|line| line.role == "primary").collect();
        assert_eq!(primaries.len(), 1, "round {round}: {primaries:#?}");
        let info = sandbox.lock_info();
        assert_eq!((primaries[0].pid, primaries[0].epoch), (info.pid, info.epoch), "round {round}");
        assert_eq!(info.epoch, Some(1), "round {round}: nobody else may have led before");
    }
}

#[test]
fn a_primary_that_was_demanded_is_refused_while_another_leads() {
    let sandbox = Sandbox::new();
    let (mut first, role) = PandoProcess::primary(&sandbox);
    let refused = pando(&sandbox, &["up", "--require-primary"]);
    assert_eq!(refused.code, Some(75), "{refused}");
    assert!(refused.stderr.contains(&role.instance_id), "the holder is named: {refused}");
    first.kill();
    let mut second = PandoProcess::start(&sandbox, &["--require-primary"]);
    assert_eq!(second.becomes("primary").epoch, Some(2));
}

#[test]
fn the_lock_file_survives_everyone_and_says_who_led_last() {
    let sandbox = Sandbox::new();
    let (mut instance, role) = PandoProcess::primary(&sandbox);
    let path = sandbox.workdir().lock_path();
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&path);
    instance.signal(rustix::process::Signal::TERM);
    assert_eq!(instance.end(Duration::from_secs(5)).code(), Some(0));
    assert_eq!(inode(&path), before, "the lock file is never unlinked");
    assert_eq!(sandbox.lock_info().instance_id, role.instance_id);
    let (_next, role) = PandoProcess::primary(&sandbox);
    assert_eq!((inode(&path), role.epoch), (before, Some(2)));
}
