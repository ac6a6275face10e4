//! Several statements that commit or fail together, each able to use what the ones before it made.

use crate::params::{Param, Params};
use crate::write::Statement;

/// Statements for [`crate::Db::transaction`].
///
/// ```
/// use pando_dbproxy::Batch;
///
/// let mut batch = Batch::new();
/// let order = batch.execute("INSERT INTO orders (customer) VALUES (?1) RETURNING id, number", ["Ada"]);
/// batch.execute("INSERT INTO lines (order_id, sku) VALUES (?1, ?2)", (order.returned("id"), "apple"));
/// batch.execute("INSERT INTO log (order_row) VALUES (?1)", [order.last_insert_rowid()]);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    statements: Vec<Statement>,
}

impl Batch {
    /// Returns an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a statement. What it returns stands for its results in the parameters of later ones.
    pub fn execute(&mut self, sql: impl Into<String>, params: impl Into<Params>) -> Earlier {
        self.statements.push(Statement::new(sql, params));
        Earlier(self.statements.len() - 1)
    }

    pub(crate) fn into_statements(self) -> Vec<Statement> {
        self.statements
    }
}

/// A statement of a batch, for those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier(usize);

impl Earlier {
    /// Returns the row id that the statement inserts last. Where it inserts nothing, the whole batch is refused.
    pub fn last_insert_rowid(self) -> Param {
        Param::RowId { statement: self.0 }
    }

    /// Returns a column of the first row that the statement returns. Where it returns none, the whole batch is refused.
    pub fn returned(self, column: impl Into<String>) -> Param {
        self.returned_at(0, column)
    }

    /// Returns a column of some row, from 0, that the statement returns.
    pub fn returned_at(self, row: usize, column: impl Into<String>) -> Param {
        Param::Returned { statement: self.0, row, column: column.into() }
    }
}
