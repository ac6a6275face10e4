//! The statements of a process's last writes: who is elected has them prepared, for it makes the same writes again.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::named::Writes;
use crate::write::Work;

/// Statements that are remembered. When there are more, the one that ran the longest ago is forgotten.
const KEPT: usize = 8;
/// Statements that ran once, by their hash. When there are more, the oldest is forgotten, and one that runs again later counts as new.
const SEEN_ONCE: usize = 64;
/// Longest statement that is remembered, in bytes.
const MAX_BYTES: usize = 4 << 10;

/// The last statements that ran twice, each once: what holds the values of one write in its text is not made again. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct RecentStatements(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Statements, the one that ran last at the end.
    kept: VecDeque<String>,
    once: VecDeque<u64>,
}

impl RecentStatements {
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
        if sql.len() > MAX_BYTES {
            return;
        }
        let Seen { kept, once } = &mut *self.lock();
        if let Some(at) = kept.iter().position(|known| known == sql) {
            let known = kept.remove(at);
            return kept.extend(known);
        }
        let mut hasher = DefaultHasher::new();
        sql.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(at) = once.iter().position(|known| *known == hash) {
            once.remove(at);
            push(kept, sql.to_owned(), KEPT);
        } else {
            push(once, hash, SEEN_ONCE);
        }
    }

    /// Returns them, the one that ran last at the end.
    pub(crate) fn all(&self) -> Vec<String> {
        self.lock().kept.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds at the end; what is too much goes at the front.
fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::write::Statement;

    #[test]
    fn the_last_statements_that_ran_twice_are_kept_once_each_and_long_ones_never() {
        let (recent, writes) = (RecentStatements::default(), Writes::new());
        let exec = |sql: String, ddl| Work::Exec { statements: vec![Statement::new(sql, ())], ddl };
        let session = Work::Named { method: "DeleteSession".into(), params: json!("s") };
        let unknown = Work::Named { method: "nobody's".into(), params: json!(null) };
        for work in [exec("x".repeat(MAX_BYTES + 1), false), exec("DROP TABLE t".into(), true), unknown, session] {
            (0..2).for_each(|_| recent.note(&work, &writes));
        }
        assert_eq!(recent.all(), ["DELETE FROM sessions WHERE id = :id"]);
        for number in 0..2 * KEPT {
            (0..2).for_each(|_| recent.note(&exec(number.to_string(), false), &writes));
        }
        let last = |first: usize| (first..2 * KEPT).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(recent.all(), last(KEPT));
        for work in [exec("once".into(), false), exec(KEPT.to_string(), false)] {
            recent.note(&work, &writes);
        }
        assert_eq!(recent.all(), [last(KEPT + 1), vec![KEPT.to_string()]].concat());
        // What ran once is remembered for a while alone.
        for text in (0..=SEEN_ONCE).map(|number| format!("other {number}")).chain(["other 0".to_owned()]) {
            recent.note(&exec(text, false), &writes);
        }
        assert_eq!(recent.all().last(), Some(&KEPT.to_string()));
    }
}
