//! A primary that lost its place changes nothing more: it answers `E_FENCED`, steps down within a second and follows.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{PandoProcess, RawPeer, RoleLine, Sandbox, eventually, pando};

/// How long a primary that lost its place may go on.
const STEPS_DOWN_WITHIN: Duration = Duration::from_secs(1);
/// How long instances without a workdir may take to find it again.
const REJOINS_WITHIN: Duration = Duration::from_secs(5);

/// A primary, a secondary, and a caller that is connected to the primary.
struct Scene {
    sandbox: Sandbox,
    first: PandoProcess,
    second: PandoProcess,
    caller: RawPeer,
}

impl Scene {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let (first, role) = PandoProcess::primary(&sandbox);
        let caller = RawPeer::handshake(role.ports.unwrap().rpc, "DEALER");
        let mut second = PandoProcess::start(&sandbox, &[]);
        second.becomes("secondary");
        // Stopped in the middle of a transaction it would keep everybody from writing.
        eventually("the arrival in the journal", REJOINS_WITHIN, || {
            (sandbox.count("SELECT count(*) FROM _pando_event WHERE topic = 'instance.joined'") == 1).then_some(())
        });
        Self { sandbox, first, second, caller }
    }

    /// Asks the first primary for a write, which it may be too stopped to read.
    fn ask(&mut self) {
        let write = json!({"statements": [{"sql": "UPDATE skills SET title = 'late'"}], "op_id": "late"});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "db.exec", "params": write});
        self.caller.request(request.to_string().as_bytes());
    }

    /// The first primary must refuse the write, and be no primary any more.
    #[track_caller]
    fn check_fenced(&mut self, since: Instant) {
        let answer: Value = serde_json::from_slice(self.caller.message().last().unwrap()).unwrap();
        assert_eq!(answer["error"]["data"]["code"], "E_FENCED", "{answer}");
        let seeking = self.first.becomes("seeking");
        assert!(seeking.read_at - since < STEPS_DOWN_WITHIN, "{:?}", seeking.read_at - since);
    }

    /// The first primary follows the second now.
    #[track_caller]
    fn check_follows(&mut self, leader: &RoleLine) {
        let role = self.first.becomes("secondary");
        assert_eq!(role.epoch, leader.epoch);
        let info: Value = pando(&self.sandbox, &["ipc", "call", "instance.info"]).json();
        assert_eq!((&info["instance_id"], info["epoch"].as_u64()), (&json!(leader.instance_id), leader.epoch));
    }
}

#[test]
fn a_paused_primary_whose_directory_was_removed_is_fenced_and_rejoins() {
    let mut scene = Scene::new();
    scene.first.signal(Signal::STOP);
    fs::remove_dir_all(scene.sandbox.workdir().pando_dir()).unwrap();
    let leader = scene.second.becomes("primary");
    assert_eq!(leader.epoch, Some(1), "it leads in a database of its own");
    scene.ask();
    let since = Instant::now();
    scene.first.signal(Signal::CONT);
    scene.check_fenced(since);
    scene.check_follows(&leader);
}

#[test]
fn a_paused_primary_whose_lock_was_broken_is_fenced_by_the_epoch() {
    let mut scene = Scene::new();
    scene.first.signal(Signal::STOP);
    fs::remove_file(scene.sandbox.workdir().lock_path()).unwrap();
    let leader = scene.second.becomes("primary");
    assert_eq!(leader.epoch, Some(2), "it leads in the same database");
    scene.ask();
    let since = Instant::now();
    scene.first.signal(Signal::CONT);
    scene.check_fenced(since);
    scene.check_follows(&leader);
    assert_eq!(
        scene.sandbox.count("SELECT count(*) FROM _pando_op_named WHERE name = 'late'"),
        0,
        "nothing was applied"
    );
}

#[test]
fn a_primary_that_finds_a_newer_epoch_steps_down() {
    let mut scene = Scene::new();
    // What a file system that gives the lock twice comes to: somebody else has begun a term in the database.
    let other = rusqlite::Connection::open(scene.sandbox.workdir().database_path()).unwrap();
    other.execute("UPDATE _pando_meta SET value = 7 WHERE key = 'epoch'", []).unwrap();
    drop(other);
    let since = Instant::now();
    scene.ask();
    scene.check_fenced(since);
    let leader = eventually("the next primary", REJOINS_WITHIN, || {
        let said = scene.first.unread().chain(scene.second.unread()).collect::<Vec<_>>();
        said.iter().filter_map(RoleLine::read).find(|line| line.role == "primary")
    });
    assert_eq!(leader.epoch, Some(8));
}

#[test]
fn a_workdir_is_an_address_so_instances_stay_when_it_is_moved_away() {
    let mut scene = Scene::new();
    let path = scene.sandbox.path().to_owned();
    let moved = path.with_file_name("moved");
    let since = Instant::now();
    fs::rename(&path, &moved).unwrap();
    scene.ask();
    scene.check_fenced(since);
    scene.second.becomes("seeking");
    // Another directory at that address is where they go on, and nobody leads in the one that is elsewhere.
    fs::create_dir(path).unwrap();
    let mut roles = Vec::new();
    eventually("one leads, one follows", REJOINS_WITHIN, || {
        roles.extend(scene.first.unread().chain(scene.second.unread()).filter_map(|line| RoleLine::read(&line)));
        let epoch_of = |role| roles.iter().find(|line| line.role == role).map(|line| line.epoch);
        Some((epoch_of("primary")?, epoch_of("secondary")?))
    });
    let leaders: Vec<_> = roles.iter().filter(|line| line.role == "primary").collect();
    assert_eq!((leaders.len(), leaders[0].epoch), (1, Some(1)), "{roles:#?}");
    let there = pando(&scene.sandbox, &["--json", "--workdir", moved.to_str().unwrap(), "status"]);
    assert!(there.stdout.contains(r#""state":"free""#), "{there}");
}
