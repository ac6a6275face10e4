//! The statements of a process's last writes: who is elected has them prepared, for it makes the same writes again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::named::Writes;
use crate::write::Work;

/// Statements that are remembered. When there are more, the oldest is forgotten.
const KEPT: usize = 8;
/// Longest statement that is remembered, in bytes.
const MAX_BYTES: usize = 4 << 10;

/// The last statements, each once. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<String>>>);

impl Recent {
    /// Notes what a write runs, as far as its text tells.
    pub(crate) fn note(&self, work: &Work, writes: &Writes) {
        match work {
            Work::Exec { statements, ddl: false } => {
                statements.iter().take(KEPT).for_each(|statement| self.keep(&statement.sql));
            }
            Work::Named { method, .. } => {
                if let Some(sql) = writes.get(method).as_deref().and_then(|write| write.sql()) {
                    self.keep(sql);
                }
            }
            Work::Exec { .. } | Work::Publish { .. } | Work::Settle => {}
        }
    }

    fn keep(&self, sql: &str) {
        let mut recent = self.lock();
        if sql.len() > MAX_BYTES || recent.iter().any(|known| known == sql) {
            return;
        }
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(sql.to_owned());
    }

    /// Returns them, the oldest first.
    pub(crate) fn all(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::write::Statement;

    #[test]
    fn the_last_statements_are_kept_once_each_and_long_ones_never() {
        let (recent, writes) = (Recent::default(), Writes::new());
        let exec = |sql: String, ddl| Work::Exec { statements: vec![Statement::new(sql, ())], ddl };
        let session = Work::Named { method: "DeleteSession".into(), params: json!("s") };
        let unknown = Work::Named { method: "nobody's".into(), params: json!(null) };
        for work in [exec("x".repeat(MAX_BYTES + 1), false), exec("DROP TABLE t".into(), true), unknown, session] {
            recent.note(&work, &writes);
        }
        assert_eq!(recent.all(), ["DELETE FROM sessions WHERE id = :id"]);
        for number in 0..2 * KEPT {
            (0..2).for_each(|_| recent.note(&exec(number.to_string(), false), &writes));
        }
        assert_eq!(recent.all(), (KEPT..2 * KEPT).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}
