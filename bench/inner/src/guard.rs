//! The guard: how many instructions each part takes, held against the baseline that stands in the repository.
//!
//! Each part runs twice under callgrind, the second time twice as often; the difference is what the repetitions cost, without the start.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::parts::{Part, parts};

/// Repetitions of the shorter run.
const REPETITIONS: u64 = 200;
/// A part may take so much more than the baseline says, in percent.
pub const TOLERANCE: u64 = 10;

type Failure = Box<dyn Error + Send + Sync>;

/// What stands in the repository: instructions for one repetition of each part, and what they were counted with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The processor's architecture; on another one nothing is compared.
    pub arch: String,
    /// For people: the compiler.
    pub rustc: String,
    /// Instructions by part.
    pub instructions: BTreeMap<String, u64>,
}

/// One part, beside the baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The part.
    pub name: String,
    /// What the baseline says, where it knows the part.
    pub before: Option<u64>,
    /// What was counted.
    pub now: u64,
}

impl Line {
    /// Returns the growth in percent; nothing where the baseline does not know the part.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn growth(&self) -> Option<f64> {
        self.before.map(|before| (self.now as f64 / before.max(1) as f64 - 1.0) * 100.0)
    }

    /// Tells whether it grew too much, or is unknown.
    pub fn is_too_much(&self) -> bool {
        self.before.is_none_or(|before| self.now * 100 > before * (100 + TOLERANCE))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let growth = self.growth().map_or_else(|| "not in the baseline".to_owned(), |growth| format!("{growth:+.1} %"));
        write!(f, "{:<40} {:>10} {growth}", self.name, self.now)
    }
}

/// Repeats a part, for callgrind to count; `None` when there is no such part.
pub fn repeat(name: &str, times: u64) -> Option<()> {
    let Part { prepare, .. } = parts().into_iter().find(|part| part.name == name)?;
    let mut work = prepare();
    for _ in 0..times {
        work();
    }
    Some(())
}

/// Counts every part.
pub fn count() -> Result<BTreeMap<String, u64>, Failure> {
    let one = |part: Part| {
        let (once, twice) = (instructions(part.name, REPETITIONS)?, instructions(part.name, 2 * REPETITIONS)?);
        Ok((part.name.to_owned(), twice.saturating_sub(once) / REPETITIONS))
    };
    parts().into_iter().map(one).collect()
}

/// Runs this program under callgrind and returns how many instructions that took.
fn instructions(name: &str, times: u64) -> Result<u64, Failure> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe()?);
    let output = command.args(["repeat", name, &times.to_string()]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{name} failed under callgrind: {said}").into());
    }
    collected(&said).ok_or_else(|| format!("callgrind did not say what it collected: {said}").into())
}

/// Returns the count in callgrind's last words, `==1== Collected : 123`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

/// Puts what was counted beside the baseline.
pub fn compare(baseline: &Baseline, counted: &BTreeMap<String, u64>) -> Vec<Line> {
    let line = |(name, now): (&String, &u64)| {
        let before = baseline.instructions.get(name).copied();
        Line { name: name.clone(), before, now: *now }
    };
    counted.iter().map(line).collect()
}

/// Reads a baseline.
pub fn read(path: &Path) -> Result<Baseline, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_tenth_is_too_much_and_so_is_an_unknown_part() {
        let known = BTreeMap::from([("a".to_owned(), 1_000), ("b".to_owned(), 1_000)]);
        let baseline = Baseline { arch: String::new(), rustc: String::new(), instructions: known };
        let counted = BTreeMap::from([("a".to_owned(), 1_100), ("b".to_owned(), 1_101), ("c".to_owned(), 1)]);
        let verdicts: Vec<_> = compare(&baseline, &counted).iter().map(Line::is_too_much).collect();
        assert_eq!(verdicts, [false, true, true]);
    }

    #[test]
    fn every_part_works() {
        for part in parts() {
            assert_eq!(repeat(part.name, 2), Some(()), "{part:?}");
        }
        assert_eq!(repeat("none", 1), None);
    }

    #[test]
    fn callgrinds_last_words_are_understood() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 512\n"), Some(512));
        assert_eq!(collected("nothing"), None);
    }
}
