//! What is in the database: tables, their definitions, sizes, and whether all of it is sound.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::journal;
use crate::readers::{ReadError, Readers};
use crate::refusal::message_of;
use crate::schema;
use crate::writer::ops_kept_by_events;

/// Problems that a check reports at most.
pub const MAX_PROBLEMS: usize = 100;

/// A table or a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// `table`, `view`, `virtual` or `shadow`, as SQLite says.
    pub kind: String,
    /// How many columns it has.
    pub columns: u64,
    /// How many rows it has; `None` for a view.
    pub rows: Option<u64>,
    /// Bytes of its pages and those of its indexes; `None` where it has none of its own.
    pub bytes: Option<u64>,
}

/// One `CREATE` statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The table it belongs to; its own name for a table.
    pub table: String,
    /// The statement.
    pub sql: String,
}

/// Sizes and counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The database file.
    pub path: PathBuf,
    /// The database's own id.
    pub database: Uuid,
    /// The latest term.
    pub epoch: u64,
    /// The last migration of Pando's own schema.
    pub schema_version: u32,
    /// The release that applied it.
    pub schema_made_by: String,
    /// The release of SQLite that reads it here.
    pub sqlite_version: String,
    /// Bytes of the database file.
    pub bytes: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
    /// Bytes of one page.
    pub page_bytes: u64,
    /// Pages of the database.
    pub pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
    /// Tables that are not Pando's own.
    pub tables: u64,
    /// Number of the oldest event that is kept, 0 when there is none.
    pub oldest_event: u64,
    /// Number of the last event, 0 when there is none.
    pub head: u64,
    /// Answers that are kept for retries.
    pub ops: u64,
}

/// How thoroughly to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// All pages, all rows, all indexes against their tables.
    #[default]
    Full,
    /// The same without the indexes: much faster.
    Quick,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// What is wrong, at most [`MAX_PROBLEMS`].
    pub problems: Vec<String>,
    /// Pages looked at.
    pub pages: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Readers {
    /// Lists the tables and views by name; `_pando_` and `sqlite_` ones only when `all` is set. Reads the whole file.
    pub async fn tables(&self, all: bool, within: Duration) -> Result<Vec<TableInfo>, ReadError> {
        self.own_within(within, move |connection| tables(connection, all)).await
    }

    /// Returns how the tables were made; `_pando_` ones only when `all` is set.
    pub async fn definitions(&self, all: bool) -> Result<Vec<Definition>, ReadError> {
        self.own(move |connection| definitions(connection, all)).await
    }

    /// Returns sizes and counts.
    pub async fn stats(&self) -> Result<Stats, ReadError> {
        let path = self.path().to_owned();
        self.own(move |connection| stats(connection, &path)).await
    }

    /// Checks that the file is sound: pages, rows, indexes, constraints, foreign keys. Reads all of it, in one read transaction.
    pub async fn check(&self, depth: Depth, within: Duration) -> Result<Health, ReadError> {
        self.own_within(within, move |connection| check(connection, depth)).await
    }
}

const NOT_OURS: &str = "name NOT LIKE '\\_pando\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

fn tables(connection: &Connection, all: bool) -> rusqlite::Result<Vec<TableInfo>> {
    let transaction = connection.unchecked_transaction()?;
    let which = if all { "true" } else { NOT_OURS };
    let sql = format!(
        "WITH size AS MATERIALIZED (
             SELECT m.tbl_name AS name, sum(s.pgsize) AS bytes
             FROM dbstat AS s JOIN sqlite_schema AS m ON m.name = s.name WHERE s.aggregate = TRUE GROUP BY 1)
         SELECT name, type, ncol, (SELECT bytes FROM size WHERE size.name = t.name)
         FROM pragma_table_list AS t WHERE schema = 'main' AND {which} ORDER BY name"
    );
    let mut statement = transaction.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok(TableInfo { name: row.get(0)?, kind: row.get(1)?, columns: row.get(2)?, rows: None, bytes: row.get(3)? })
    })?;
    let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    for table in found.iter_mut().filter(|table| table.kind != "view") {
        let count = format!("SELECT count(*) FROM main.\"{}\"", table.name.replace('"', "\"\""));
        table.rows = transaction.query_row(&count, [], |row| row.get(0))?;
    }
    Ok(found)
}

fn definitions(connection: &Connection, all: bool) -> rusqlite::Result<Vec<Definition>> {
    let which = if all { "true" } else { NOT_OURS };
    let sql = format!(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND {which}
         ORDER BY tbl_name, type <> 'table', name"
    );
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Definition { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? })
    })?;
    rows.collect()
}

fn stats(connection: &Connection, path: &Path) -> rusqlite::Result<Stats> {
    let transaction = connection.unchecked_transaction()?;
    let count = |sql: &str| transaction.query_row(sql, [], |row| row.get::<_, u64>(0));
    let (schema_version, schema_made_by) =
        transaction.query_row("SELECT id, made_by FROM _pando_migration ORDER BY id DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let (oldest_event, _) = journal::bounds(&transaction)?;
    let (head, epoch) = journal::head(&transaction)?;
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    Ok(Stats {
        path: path.to_owned(),
        database: schema::database_id(&transaction)?,
        epoch,
        schema_version,
        schema_made_by,
        sqlite_version: rusqlite::version().to_owned(),
        bytes: bytes(path),
        wal_bytes: bytes(&schema::beside(path, "-wal")),
        page_bytes: count("PRAGMA page_size")?,
        pages: count("PRAGMA page_count")?,
        free_pages: count("PRAGMA freelist_count")?,
        tables: count(&format!("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND {NOT_OURS}"))?,
        oldest_event,
        head,
        ops: count("SELECT (SELECT count(*) FROM _pando_op) + (SELECT count(*) FROM _pando_op_named)")?
            + ops_kept_by_events(&transaction)?,
    })
}

/// Checks a database by any connection to it. A file that is too broken to be read to its end is a finding, no error.
pub(crate) fn check(connection: &Connection, depth: Depth) -> rusqlite::Result<Health> {
    let began = Instant::now();
    let mut problems = Vec::new();
    for pragma in [pragma(depth), "foreign_key_check"] {
        match findings(connection, pragma) {
            Ok(found) => problems.extend(found),
            Err(error) if is_broken(&error) => problems.push(message_of(&error)),
            Err(error) => return Err(error),
        }
    }
    problems.truncate(MAX_PROBLEMS);
    let pages = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap_or(0);
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Health { ok: problems.is_empty(), problems, pages, took_ms })
}

fn pragma(depth: Depth) -> &'static str {
    match depth {
        Depth::Full => "integrity_check",
        Depth::Quick => "quick_check",
    }
}

fn findings(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()?
        && found.len() < MAX_PROBLEMS
    {
        if pragma == "foreign_key_check" {
            let (table, rowid, parent): (String, Option<i64>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let which = rowid.map_or("a row".to_owned(), |rowid| format!("row {rowid}"));
            found.push(format!("{which} of {table} refers to a row of {parent} that is not there"));
        } else {
            found.push(row.get(0)?);
        }
    }
    found.retain(|line| line != "ok");
    Ok(found)
}

fn is_broken(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}
