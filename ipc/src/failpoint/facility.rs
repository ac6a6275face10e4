//! The facility itself: what was planned for this process, and what happens at a point.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::{Flaw, Point};

/// How long it may take until a process that stops itself has stopped.
const STOPPED_WITHIN: Duration = Duration::from_millis(50);

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process kills itself with SIGKILL: no handler runs, nothing is flushed.
    Kill,
    /// The process stops itself with SIGSTOP; somebody lets it go on.
    Stop,
    /// The thread sleeps.
    Sleep(Duration),
}

/// A point at which something happens, once or each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Armed {
    /// Where.
    pub point: Point,
    /// At which of the times that the point is passed; the first is 1, and `None` is each of them.
    pub time: Option<u64>,
    /// What.
    pub action: Action,
}

/// Reads `point`, `point@3` (the third time), `point@each`, `point@3=stop`, `point=sleep:500` (milliseconds); without action the process kills itself.
impl FromStr for Armed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, action) = text.split_once('=').unwrap_or((text, "kill"));
        let (name, time) = place.split_once('@').unwrap_or((place, "1"));
        let point = Point::find(name).ok_or_else(|| format!("there is no point {name:?}"))?;
        let time = match time {
            "each" => None,
            time => Some(time.parse().map_err(|_| format!("{time:?} is neither a number of times nor each"))?),
        };
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "stop" => Action::Stop,
            Some(("sleep", ms)) => {
                Action::Sleep(Duration::from_millis(ms.parse().map_err(|_| format!("{ms:?} are no milliseconds"))?))
            }
            _ => return Err(format!("{action:?} is neither kill, stop nor sleep:MS")),
        };
        Ok(Self { point, time, action })
    }
}

/// Everything that was planned for this process.
pub struct Plan {
    /// Where something happens.
    pub armed: Vec<Armed>,
    /// The mistakes that are made.
    pub flaws: Vec<Flaw>,
    /// The version of the wire that is spoken, where it is another release's.
    pub protocol: Option<u32>,
    /// Told of each point that is passed, before anything happens; the action is `None` where nothing does.
    pub witness: Box<dyn Fn(Point, Option<Action>) + Send + Sync>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("armed", &self.armed).field("flaws", &self.flaws).finish_non_exhaustive()
    }
}

/// The plan, and how often each of its armed points was passed.
static PLAN: OnceLock<(Plan, Vec<AtomicU64>)> = OnceLock::new();

/// Sets what is planned for this process, once and before anything else; returns false when it was set before.
pub fn plan(plan: Plan) -> bool {
    let passes = plan.armed.iter().map(|_| AtomicU64::new(0)).collect();
    PLAN.set((plan, passes)).is_ok()
}

/// Passes a point: what is planned for it happens, in the order of the plan.
pub fn hit(point: Point) {
    let Some((plan, passes)) = PLAN.get() else { return };
    let here = plan.armed.iter().zip(passes).filter(|(armed, _)| armed.point == point);
    let due = here.filter(|(armed, passes)| {
        let time = passes.fetch_add(1, Ordering::Relaxed) + 1;
        armed.time.is_none_or(|armed| armed == time)
    });
    let mut actions = due.map(|(armed, _)| armed.action).peekable();
    if actions.peek().is_none() {
        (plan.witness)(point, None);
    }
    for action in actions {
        (plan.witness)(point, Some(action));
        match action {
            Action::Kill => signal(Signal::KILL),
            Action::Stop => {
                signal(Signal::STOP);
                // Any thread may be the first to notice; until then this one must not go on, into a transaction perhaps.
                sleep(STOPPED_WITHIN);
            }
            Action::Sleep(time) => sleep(time),
        }
    }
}

/// Tells whether this process makes the mistake.
pub fn has(flaw: Flaw) -> bool {
    PLAN.get().is_some_and(|(plan, _)| plan.flaws.contains(&flaw))
}

/// Returns the version of the wire that this process is to speak, where it is not its own.
pub fn protocol() -> Option<u32> {
    PLAN.get().and_then(|(plan, _)| plan.protocol)
}

#[expect(clippy::disallowed_methods, reason = "a test asked this thread to be slow")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

fn signal(signal: Signal) {
    if let Err(error) = kill_process(getpid(), signal) {
        tracing::error!(%error, "cannot signal our own process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_typed_by_name() {
        let armed = |text: &str| text.parse::<Armed>().unwrap();
        let sleep = Action::Sleep(Duration::from_millis(20));
        assert_eq!(armed("commit.after@3=sleep:20"), Armed { point: Point::CommitAfter, time: Some(3), action: sleep });
        assert_eq!(armed("lock.won"), Armed { point: Point::LockWon, time: Some(1), action: Action::Kill });
        assert_eq!(armed("lock.won@2=stop"), Armed { point: Point::LockWon, time: Some(2), action: Action::Stop });
        assert_eq!(armed("lock.won@each").time, None);
        for wrong in ["nowhere", "lock.won@x", "lock.won=explode", "lock.won=sleep:long"] {
            assert!(wrong.parse::<Armed>().is_err(), "{wrong}");
        }
    }
}
