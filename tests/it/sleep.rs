//! A laptop that sleeps stops everybody at once: afterwards the roles are as before, and nobody is accused.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{PandoProcess, RoleLine, Sandbox, eventually, pando};

/// How long everyone sleeps: longer than a primary may be silent, a heartbeat may be missed and a call may take. It costs no processor time.
const ASLEEP: Duration = Duration::from_secs(60);
/// Writes that the load of each has in flight.
const IN_FLIGHT: u32 = 8;
/// How long everyone may take to be as before.
const AWAKE_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn after_a_sleep_the_roles_are_as_before() {
    let sandbox = Sandbox::new();
    let (primary, role) = PandoProcess::primary(&sandbox);
    let mut others = Vec::new();
    for _ in 0..3 {
        // Those that would end a silent primary must not take their own sleep for its silence.
        let mut instance = PandoProcess::start(&sandbox, &["--evict-after", "2s", "--demo-load"]);
        instance.becomes("secondary");
        instance.say("go");
        // Its first write is done before the night: without it, there is no load.
        instance.wait_for("the load", AWAKE_WITHIN, |line| line.text.contains(r#""load":"started""#).then_some(()));
        others.push(instance);
    }
    let everyone = || others.iter().map(|other| &**other).chain([&*primary]);
    everyone().for_each(|process| process.signal(Signal::STOP));
    let asleep = std::time::Instant::now();
    eventually("the end of the night", 2 * ASLEEP, || (asleep.elapsed() >= ASLEEP).then_some(()));
    // What was said in the evening is no sign of life.
    for other in &others {
        other.unread().for_each(drop);
    }
    everyone().for_each(|process| process.signal(Signal::CONT));
    let info: Value = pando(&sandbox, &["ipc", "call", "instance.info"]).json();
    assert_eq!((info["instance_id"].as_str(), info["epoch"].as_u64()), (Some(&*role.instance_id), role.epoch));
    // Whoever writes again has been answered by the same primary. What was in flight may have come to its deadline in the night, nothing else.
    for other in &mut others {
        let mut failed = 0;
        for nth in ["a write", "a write after the first"] {
            other.wait_for(nth, AWAKE_WITHIN, |line| {
                failed += u32::from(line.text.contains(r#""load":"failed""#));
                assert!(failed <= IN_FLIGHT, "{}", line.text);
                assert!(RoleLine::read(line).is_none_or(|role| role.role != "primary"), "{}", line.text);
                line.text.contains(r#""load":"acked""#).then_some(())
            });
        }
        assert!(!other.stderr().contains("has said nothing"), "{}", other.stderr());
    }
    assert_eq!(sandbox.lock_info().epoch, role.epoch);
}
