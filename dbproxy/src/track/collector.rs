//! The rows that a write changed, in memory.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

/// Most row events of one table in one write; beyond it a single `db.<entity>.bulk` event carries counts.
pub const MAX_ROW_EVENTS: usize = 1_000;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Created = 0,
    Updated = 1,
    Deleted = 2,
}

impl Operation {
    pub(super) const ALL: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    pub(super) fn of(number: usize) -> Option<Self> {
        Self::ALL.get(number).copied()
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

/// A changed row that has an event.
#[derive(Debug)]
pub(super) struct Row {
    /// The place of its table.
    pub(super) table: usize,
    pub(super) operation: Operation,
    pub(super) key: Key,
    pub(super) session: String,
    /// Values that an application wishes to see, see [`Tracked`](crate::tracked::Tracked).
    /// None where they are too large for an event.
    pub(super) columns: Option<Map<String, Value>>,
}

/// What a row is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// As events show it.
    pub(super) text: String,
    /// Another one for each row: the values with their types, as JSON.
    pub(super) identity: String,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// Changed rows by operation.
    pub(super) counts: [u64; 3],
    /// Rows that have an event, or would have if they were fewer.
    pub(super) rows: usize,
}

/// The rows that were changed.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    pub(super) tables: Vec<Table>,
    /// By their place in the order in which they are told.
    pub(super) rows: BTreeMap<usize, Row>,
    /// The place of what was last done to each row, by operation.
    seen: HashMap<(usize, String), [Option<usize>; 3]>,
    next: usize,
}

impl Collector {
    fn place(&mut self, name: &str) -> usize {
        self.tables.iter().position(|table| table.name == name).unwrap_or_else(|| {
            self.tables.push(Table { name: name.to_owned(), counts: [0; 3], rows: 0 });
            self.tables.len() - 1
        })
    }

    /// Counts a changed row.
    pub(super) fn count(&mut self, name: &str, operation: Operation) {
        let table = self.place(name);
        self.tables[table].counts[operation as usize] += 1;
    }

    /// Keeps a changed row for an event.
    pub(super) fn push(
        &mut self,
        name: &str,
        operation: Operation,
        key: Key,
        session: String,
        columns: Option<Map<String, Value>>,
    ) {
        let table = self.place(name);
        self.keep(Row { table, operation, key, session, columns });
    }

    fn keep(&mut self, row: Row) {
        let table = &mut self.tables[row.table];
        if table.rows > MAX_ROW_EVENTS {
            return;
        }
        let places = self.seen.entry((row.table, row.key.identity.clone())).or_default();
        let (place, latest) = (places[row.operation as usize], places.iter().flatten().max().copied());
        match place {
            // The event tells of the row as the write leaves it.
            Some(place) if latest == Some(place) => {
                if let Some(known) = self.rows.get_mut(&place) {
                    known.columns = row.columns;
                }
                return;
            }
            // The last event of a row says whether it is there.
            Some(place) => drop(self.rows.remove(&place)),
            None => table.rows += 1,
        }
        places[row.operation as usize] = Some(self.next);
        if table.rows <= MAX_ROW_EVENTS {
            self.rows.insert(self.next, row);
        }
        self.next += 1;
    }

    /// Adds what was changed after all of this.
    pub(super) fn absorb(&mut self, later: Self) {
        if self.tables.is_empty() {
            *self = later;
            return;
        }
        let mut places = Vec::with_capacity(later.tables.len());
        for table in later.tables {
            let place = self.place(&table.name);
            let own = &mut self.tables[place];
            for (own, more) in own.counts.iter_mut().zip(table.counts) {
                *own += more;
            }
            if table.rows > MAX_ROW_EVENTS {
                own.rows = table.rows;
            }
            places.push(place);
        }
        for row in later.rows.into_values() {
            self.keep(Row { table: places[row.table], ..row });
        }
    }
}
