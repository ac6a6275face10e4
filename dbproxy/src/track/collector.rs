//! The rows that a write changed, in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

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
    pub(super) key: String,
    pub(super) session: String,
    /// Values that an application wishes to see, see [`Tracked`](crate::tracked::Tracked).
    pub(super) columns: Map<String, Value>,
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
    pub(super) rows: Vec<Row>,
    /// Where each row that was seen stands in `rows`.
    seen: HashMap<(usize, Operation, String), usize>,
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
        key: String,
        session: String,
        columns: Map<String, Value>,
    ) {
        let table = self.place(name);
        self.keep(Row { table, operation, key, session, columns });
    }

    fn keep(&mut self, row: Row) {
        let table = &mut self.tables[row.table];
        if table.rows > MAX_ROW_EVENTS {
            return;
        }
        match self.seen.entry((row.table, row.operation, row.key.clone())) {
            // The event tells of the row as the write leaves it.
            Entry::Occupied(known) => {
                if let Some(known) = self.rows.get_mut(*known.get()) {
                    known.columns = row.columns;
                }
            }
            Entry::Vacant(unknown) => {
                table.rows += 1;
                unknown.insert(self.rows.len());
                if table.rows <= MAX_ROW_EVENTS {
                    self.rows.push(row);
                }
            }
        }
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
        for row in later.rows {
            self.keep(Row { table: places[row.table], ..row });
        }
    }
}
