//! What must hold in every state.

use super::{Node, Role, State, Term, Work};

impl State {
    /// Returns what is broken in this state, and lets callers go whose answer was looked at.
    pub(in crate::model) fn broken(&mut self) -> Option<String> {
        for node in &mut self.nodes {
            let Some(call) = node.call else { continue };
            let Some(&(_, database, number, _)) = self.acks.iter().find(|(op, ..)| *op == call.op) else { continue };
            let before = &self.acks[..call.acks_before];
            if let Some(late) = before.iter().find(|(_, other, earlier, _)| *other == database && *earlier >= number) {
                return Some(format!(
                    "op {} was begun after {late:?} was acknowledged, and has number {number}",
                    call.op
                ));
            }
            node.call = None;
        }
        for &(op, database, number, epoch) in &self.acks {
            let found = self.databases[database].log.get(number - 1);
            if found.is_none_or(|found| (found.0, found.1) != (epoch, op)) {
                return Some(format!("op {op} was acknowledged as number {number} of epoch {epoch}; found {found:?}"));
            }
        }
        let mut applied: Vec<_> = self.databases.iter().flat_map(|it| it.log.iter().map(|(_, op, _)| *op)).collect();
        applied.sort_unstable();
        if let Some([twice, _]) = applied.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(format!("op {twice} was applied twice"));
        }
        for database in &self.databases {
            if let Some(fallen) = database.log.windows(2).find(|pair| pair[1].0 < pair[0].0) {
                return Some(format!("epochs fall in the journal: {fallen:?}"));
            }
        }
        self.two_at_once().or_else(|| self.seen_too_early())
    }

    /// Two may lead one database only when a lock was taken away, and then the elder commits nothing.
    fn two_at_once(&self) -> Option<String> {
        let leads = |node: &Node| match node.role {
            Role::Opened(term) | Role::Leading(term, _) => Some(term),
            _ => None,
        };
        let terms: Vec<_> = self.nodes.iter().filter_map(leads).collect();
        for (at, one) in terms.iter().enumerate() {
            for two in terms[at + 1..].iter().filter(|two| two.database == one.database) {
                if !self.vandalised || one.epoch == two.epoch {
                    return Some(format!("two primaries of one database: {one:?} and {two:?}"));
                }
            }
        }
        let committing = |node: &Node| match node.role {
            Role::Leading(term, Work::Applied { .. }) => Some(term),
            _ => None,
        };
        let late = |term: &Term| self.databases[term.database].epoch != term.epoch;
        let late = self.nodes.iter().filter_map(committing).find(late);
        late.map(|term| format!("{term:?} is over and about to commit"))
    }

    /// What was seen is committed, or still in the transaction from which it was published.
    fn seen_too_early(&self) -> Option<String> {
        let is_there = |&&(database, number, op): &&(usize, usize, usize)| {
            let file = &self.databases[database];
            file.log.get(number - 1).map_or(file.writer.is_some(), |found| found.1 == op)
        };
        let early = self.seen.iter().find(|seen| !is_there(seen));
        early.map(|(database, number, op)| format!("subscribers saw op {op} as number {number} of database {database}"))
    }

    /// Tells whether exactly one leads, by the lock of the path and in the latest epoch of the database.
    pub(in crate::model) fn is_led(&self) -> bool {
        let leads = |node: &&Node| {
            matches!(node.role, Role::Leading(term, _) if self.lock_path == Some(term.lock)
                && self.database_path == Some(term.database) && self.databases[term.database].epoch == term.epoch)
        };
        self.nodes.iter().filter(leads).count() == 1
    }
}
