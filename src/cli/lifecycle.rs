//! What the lifecycle log tells: who was what, and who lives but cannot lead.

use std::collections::HashSet;
use std::fmt;
use std::fs;

use pando_ipc::Workdir;
use pando_ipc::process::ProcessId;
use serde::Deserialize;
use serde_json::Value;

/// Returns what is kept of the log, oldest first.
pub(super) fn lines(workdir: &Workdir) -> Vec<Value> {
    let text = |name| fs::read_to_string(workdir.pando_dir().join(name)).unwrap_or_default();
    let lines = [text("lifecycle.log.1"), text("lifecycle.log")].concat();
    lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// An instance that lives and cannot begin its term; it goes on trying.
///
/// It displays as `inst-A, pid 12, cannot lead: …`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Stuck {
    instance_id: String,
    pid: u32,
    /// Its process: pids are reused.
    process: ProcessId,
    why: String,
}

impl Stuck {
    /// Finds the instance that was the last to say why it cannot lead, and has said nothing else since.
    pub(super) fn of(workdir: &Workdir) -> Option<Self> {
        Self::among(&lines(workdir))
    }

    /// Finds the same among lines of the log, oldest first.
    pub(super) fn among(lines: &[Value]) -> Option<Self> {
        let mut heard = HashSet::new();
        let last_words = lines.iter().rev().filter(|line| heard.insert(line["instance_id"].as_str()));
        let stuck = last_words.filter(|line| line["what"] == "failed").filter_map(|line| Self::deserialize(line).ok());
        stuck.into_iter().find(|stuck| stuck.process.is_alive(stuck.pid))
    }

    /// Returns what to do about it.
    pub(super) fn next_step(&self) -> String {
        format!("put that right, and it leads by itself; or end it: 'kill {}'", self.pid)
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}, cannot lead: {}", self.instance_id, self.pid, self.why)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(instance: &str, what: &str) -> Value {
        let pid = std::process::id();
        json!({"instance_id": instance, "pid": pid, "what": what, "why": format!("{instance} says so"), "process": ProcessId::of(pid)})
    }

    #[test]
    fn a_reason_counts_while_it_is_the_last_word_of_a_process_that_lives() {
        let stuck = |lines: &[Value]| Stuck::among(lines).map(|stuck| stuck.instance_id);
        assert_eq!(stuck(&[]), None);
        assert_eq!(stuck(&[said("a", "seeking"), said("a", "failed"), said("b", "seeking")]).unwrap(), "a");
        assert_eq!(stuck(&[said("a", "failed"), said("b", "failed")]).unwrap(), "b", "the latest");
        assert_eq!(stuck(&[said("a", "failed"), said("b", "failed"), said("b", "left")]).unwrap(), "a");
        assert_eq!(stuck(&[said("a", "failed"), said("a", "primary")]), None);
        let mut another = said("a", "failed");
        another["process"]["start_ticks"] = json!(1);
        assert_eq!(stuck(&[another]), None, "its pid is somebody else's now");
    }
}
