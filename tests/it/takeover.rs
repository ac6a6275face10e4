//! Whatever dies, acknowledged writes stay, each once, and the next primary is there at once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::support::{PandoProcess, Process, RoleLine, Sandbox, eventually, heavy, pando, tail};

/// Primaries that are killed.
const ROUNDS: usize = 30;
/// Instances beside the primary, all of them writing.
const SECONDARIES: usize = 3;
/// How long the workdir may be without a primary.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(1);
/// How long the others may take to follow the next one, and writes to flow again.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
/// Acknowledged writes of each writer before the next kill: the primary dies in the middle of the load.
const WRITES_PER_ROUND: usize = 100;
/// How long the end of the load may take: all that is in flight is answered.
const DONE_WITHIN: Duration = Duration::from_secs(30);

/// What `pando up --demo-load` prints besides its roles.
#[derive(Debug, Deserialize)]
#[serde(tag = "load", rename_all = "snake_case")]
enum LoadLine {
    Started { skill: String },
    Acked { sessions: Vec<String>, messages: Vec<String>, uses: i64 },
    Failed { error: String },
    Done {},
}

/// An instance that writes, and what it was promised.
#[derive(Debug)]
struct Writer {
    process: PandoProcess,
    role: Option<RoleLine>,
    /// The row that it increments, once it writes.
    skill: Option<String>,
    sessions: Vec<String>,
    messages: Vec<String>,
    uses: i64,
    is_done: bool,
}

impl Writer {
    /// Starts an instance that does not write yet.
    fn start(sandbox: &Sandbox) -> Self {
        let process = PandoProcess::start(sandbox, &["--demo-load"]);
        let (sessions, messages) = (Vec::new(), Vec::new());
        Self { process, role: None, skill: None, sessions, messages, uses: 0, is_done: false }
    }

    /// Takes note of what it said since the last look.
    fn look(&mut self) {
        for line in self.process.unread().collect::<Vec<_>>() {
            if let Some(role) = RoleLine::read(&line) {
                self.role = Some(role);
                continue;
            }
            match serde_json::from_str(&line.text) {
                Ok(LoadLine::Started { skill }) => self.skill = Some(skill),
                Ok(LoadLine::Acked { sessions, messages, uses }) => {
                    self.sessions.extend(sessions);
                    self.messages.extend(messages);
                    self.uses += uses;
                }
                Ok(LoadLine::Failed { error }) => panic!("a write failed, though nobody but the primary died: {error}"),
                Ok(LoadLine::Done {}) => self.is_done = true,
                Err(error) => panic!("{error} in {:?}", line.text),
            }
        }
    }

    fn acked(&self) -> usize {
        self.sessions.len() + self.messages.len()
    }

    fn has_role(&self, name: &str, epoch: Option<u64>) -> bool {
        self.role.as_ref().is_some_and(|role| role.role == name && role.epoch == epoch)
    }
}

/// Waits until all of them are as wanted.
#[track_caller]
fn wait_for(what: &str, within: Duration, writers: &mut [Writer], mut is_so: impl FnMut(&Writer) -> bool) {
    eventually(what, within, || {
        writers.iter_mut().for_each(Writer::look);
        writers.iter().all(&mut is_so).then_some(())
    });
}

/// Everything an observer saw, from the first event on.
struct Observer {
    process: Process,
    seen: i64,
    messages_created: i64,
}

impl Observer {
    fn start(sandbox: &Sandbox) -> Self {
        Self { process: tail(sandbox, &["--since", "all"]), seen: 0, messages_created: 0 }
    }

    /// Takes note of what it saw since the last look.
    fn look(&mut self) {
        for line in self.process.unread().collect::<Vec<_>>() {
            self.take(&line.text);
        }
    }

    /// Fails at the first gap or duplicate.
    fn take(&mut self, line: &str) {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event.get("resync").is_none(), "the journal still has everything: {event}");
        if let Some(seq) = event["seq"].as_i64() {
            assert_eq!(seq, self.seen + 1, "the observer sees every event once and in order: {event}");
            self.seen = seq;
            self.messages_created += i64::from(event["topic"] == "db.message.created");
        }
    }

    /// Reads on until the event `head`.
    fn read_to(&mut self, head: i64) {
        eventually(&format!("event {head} at the observer"), DONE_WITHIN, || {
            self.look();
            (self.seen >= head).then_some(())
        });
    }
}

#[test]
fn a_killed_primary_takes_no_acknowledged_write_along_and_is_replaced_within_a_second() {
    let _turn = heavy();
    let sandbox = Sandbox::new();
    let mut first = Writer::start(&sandbox);
    first.role = Some(first.process.becomes("primary"));
    let idle = first.process.pid();
    let mut observer = Observer::start(&sandbox);
    let mut writers = vec![first];
    let mut dead = Vec::new();
    let mut takeovers = Vec::new();
    for round in 1..=ROUNDS {
        while writers.len() <= SECONDARIES {
            let mut writer = Writer::start(&sandbox);
            writer.role = Some(writer.process.becomes("secondary"));
            writer.process.say("go");
            writers.push(writer);
        }
        let before: Vec<_> = writers.iter().map(Writer::acked).collect();
        eventually(&format!("writes of everyone in round {round}"), SETTLED_WITHIN, || {
            writers.iter_mut().for_each(Writer::look);
            // The very first primary never writes; later ones were secondaries that did, and still do.
            let flows = |(writer, before): (&Writer, &usize)| {
                writer.process.pid() == idle || writer.acked() >= before + WRITES_PER_ROUND
            };
            writers.iter().zip(&before).all(flows).then_some(())
        });
        observer.look();

        let leader = writers.iter().position(|writer| writer.role.as_ref().is_some_and(|role| role.role == "primary"));
        let mut killed = writers.swap_remove(leader.expect("somebody leads"));
        let next_epoch = killed.role.as_ref().and_then(|role| role.epoch).map(|epoch| epoch + 1);
        let killed_at = killed.process.kill();
        let heir = eventually(&format!("the next primary in round {round}"), SETTLED_WITHIN, || {
            writers.iter_mut().for_each(Writer::look);
            writers.iter().find(|writer| writer.has_role("primary", next_epoch))?.role.clone()
        });
        takeovers.push(heir.read_at.saturating_duration_since(killed_at));
        let logs = || writers.iter().map(|writer| writer.process.stderr()).collect::<String>();
        assert!(takeovers[round - 1] < TAKEOVER_WITHIN, "round {round} of {takeovers:?}\n{}", logs());
        wait_for("everyone follows", SETTLED_WITHIN, &mut writers, |writer| {
            writer.role.as_ref().is_some_and(|role| role.epoch == next_epoch)
        });
        // What it printed before it died was acknowledged.
        for line in killed.process.rest().collect::<Vec<_>>() {
            if let Ok(LoadLine::Acked { sessions, messages, uses }) = serde_json::from_str(&line.text) {
                killed.sessions.extend(sessions);
                killed.messages.extend(messages);
                killed.uses += uses;
            }
        }
        dead.push(killed);
    }
    for writer in &mut writers {
        writer.process.say("stop");
    }
    wait_for("every write to end", DONE_WITHIN, &mut writers, |writer| writer.is_done);
    check_rows(&sandbox, &writers, &dead);
    check_events(&sandbox, &mut observer);
    let slowest = takeovers.iter().max().unwrap();
    let acked: usize = writers.iter().chain(&dead).map(Writer::acked).sum();
    #[expect(clippy::print_stderr, reason = "shown with --nocapture: how close to the promise it was")]
    {
        eprintln!("{ROUNDS} takeovers, slowest {slowest:?}; {acked} acknowledged rows, all there");
    }
}

/// Every acknowledged row is there; no increment was lost, and none of a survivor was applied twice.
fn check_rows(sandbox: &Sandbox, survivors: &[Writer], dead: &[Writer]) {
    let database = sandbox.database();
    let ids = |sql| -> HashSet<String> {
        let mut statement = database.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let (sessions, messages) = (ids("SELECT id FROM sessions"), ids("SELECT id FROM messages"));
    for writer in survivors.iter().chain(dead) {
        let lost_sessions = writer.sessions.iter().filter(|id| !sessions.contains(*id)).count();
        let lost_messages = writer.messages.iter().filter(|id| !messages.contains(*id)).count();
        assert_eq!((lost_sessions, lost_messages), (0, 0), "acknowledged and not there");
    }
    let uses = |skill: &Option<String>| -> i64 {
        let sql = "SELECT usage_count FROM skills WHERE id = ?";
        skill.as_ref().map_or(0, |id| database.query_row(sql, [id], |row| row.get(0)).unwrap())
    };
    for writer in survivors {
        assert_eq!(uses(&writer.skill), writer.uses, "an increment that was sent again is applied once");
    }
    for writer in dead {
        assert!(uses(&writer.skill) >= writer.uses, "an acknowledged increment is there");
    }
    let drifted = "SELECT count(*) FROM sessions WHERE message_count <> \
                   (SELECT count(*) FROM messages WHERE session_id = sessions.id)";
    assert_eq!(sandbox.count(drifted), 0, "sessions count their messages right");
}

/// The journal has no hole, and the observer saw all of it.
fn check_events(sandbox: &Sandbox, observer: &mut Observer) {
    let head = sandbox.count("SELECT max(seq) FROM _pando_event");
    let first = sandbox.count("SELECT min(seq) FROM _pando_event");
    assert_eq!(sandbox.count("SELECT count(*) FROM _pando_event"), head - first + 1, "the journal is dense");
    observer.read_to(head);
    assert_eq!(observer.messages_created, sandbox.count("SELECT count(*) FROM messages"), "one event for each row");
}

#[test]
fn a_primary_that_leaves_in_good_order_hands_over_at_once() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    let asked_at = Instant::now();
    first.signal(Signal::TERM);
    let role = second.becomes("primary");
    assert_eq!(role.epoch, Some(2));
    assert!(role.read_at - asked_at < TAKEOVER_WITHIN, "{:?}", role.read_at - asked_at);
    assert_eq!(first.end(SETTLED_WITHIN).code(), Some(0));
}

#[test]
fn a_stopped_primary_is_named_but_not_replaced() {
    let sandbox = Sandbox::new();
    let (first, role) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    first.signal(Signal::STOP);
    let silent = pando(&sandbox, &["--timeout", "3s", "ipc", "call", "instance.info"]);
    assert_eq!(silent.code, Some(5), "{silent}");
    assert!(silent.stderr.contains(&first.pid().to_string()), "the holder is named: {silent}");
    first.signal(Signal::CONT);
    let info: Value = pando(&sandbox, &["ipc", "call", "instance.info"]).json();
    assert_eq!((&info["instance_id"], info["epoch"].as_u64()), (&Value::from(role.instance_id), role.epoch));
    let roles: Vec<_> = second.unread().filter_map(|line| RoleLine::read(&line)).collect();
    assert!(roles.iter().all(|line| line.role != "primary"), "it holds the lock, so nobody else leads: {roles:?}");
}

#[test]
fn a_primary_whose_lock_file_was_removed_steps_down() {
    let sandbox = Sandbox::new();
    let (first, _) = PandoProcess::primary(&sandbox);
    let mut second = PandoProcess::start(&sandbox, &[]);
    second.becomes("secondary");
    std::fs::remove_file(sandbox.workdir().lock_path()).unwrap();
    let next = eventually("a primary on the new lock file", SETTLED_WITHIN, || {
        let said = first.unread().chain(second.unread()).collect::<Vec<_>>();
        said.iter().filter_map(RoleLine::read).find(|line| line.role == "primary")
    });
    assert_eq!(next.epoch, Some(2));
    assert_eq!(sandbox.lock_info().instance_id, next.instance_id);
    let list: Value = eventually("both to be there", SETTLED_WITHIN, || {
        let list: Value = serde_json::from_str(&pando(&sandbox, &["--json", "ipc", "instances"]).stdout).ok()?;
        let instances = list["instances"].as_array()?.iter().filter(|instance| instance["kind"] == "instance").count();
        (instances == 2).then_some(list)
    });
    let leaders = list["instances"].as_array().unwrap().iter().filter(|instance| instance["role"] == "primary").count();
    assert_eq!(leaders, 1, "{list:#}");
}
