//! A trial that has ended: what its history violates.

use std::fs;

use crate::checker::{Invariant, Violation, check};
use crate::history::History;
use crate::record::{Outcome, What};
use crate::world::World;

/// A trial that has ended, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Judged {
    world: World,
    violations: Vec<Violation>,
}

impl Judged {
    /// Judges a trial by its report.
    pub(crate) fn of(world: World) -> Self {
        let violations = check(&History::read(world.report()));
        Self { world, violations }
    }

    /// Fails when any call failed, but for those of instances that were asked to leave.
    #[track_caller]
    pub(crate) fn none_failed(self) -> Self {
        let history = History::read(self.world.report());
        let asked: Vec<_> = history.deeds.iter().filter_map(|dated| dated.deed.asked_to_leave()).collect();
        for (who, records) in history.instances.iter().filter(|(who, _)| !asked.contains(&who.as_str())) {
            for record in records {
                let What::Return { outcome, .. } = &record.what else { continue };
                assert!(
                    matches!(outcome, Outcome::Ok { .. }),
                    "{who}, in {}: {record:?}",
                    self.world.report().display()
                );
            }
        }
        self
    }

    /// Tells whether the history violates this, and forgets it.
    pub(crate) fn violates(self, invariant: Invariant) -> bool {
        fs::remove_dir_all(self.world.report()).unwrap();
        self.violations.iter().any(|violation| violation.invariant == invariant)
    }

    /// Fails unless everything was kept; then the report goes.
    #[track_caller]
    pub(crate) fn holds(self) {
        let list: String =
            self.violations.iter().flat_map(|violation| ["\n- ".to_owned(), violation.to_string()]).collect();
        assert!(self.violations.is_empty(), "{}:{list}", self.world);
        fs::remove_dir_all(self.world.report()).unwrap();
    }
}
