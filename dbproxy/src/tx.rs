//! The transaction of one write, as its code sees it: statements under the guard, and events.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use pando_ipc::fault::Code;
use pando_ipc::rpc::Json;
use pando_ipc::{Envelope, Fault, Topic};
use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Batch, Connection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::guard::Mode;
use crate::named::Writes;
use crate::params::Params;
use crate::readers::QueryResult;
use crate::refusal::{Word, from_sqlite, internal, invalid, refuse};
use crate::row::{Row, RowError};
use crate::run::{Limits, Ran, Runner};
use crate::track::Track;
use crate::value::SqlValue;
use crate::write::{Statement, StatementResult};

/// An event that a write appends.
pub(crate) type Published<'a> = Envelope<Cow<'a, Json>>;

/// What a named write works with. All that it does commits together, or not at all.
#[derive(Debug)]
pub struct Tx<'a> {
    runner: Runner<'a>,
    track: &'a Track,
    writes: &'a Writes,
    source: &'a str,
    /// What the statements may still return.
    left: Cell<Limits>,
    published: RefCell<Vec<Published<'static>>>,
    /// Why the write cannot be applied any more, whatever its code makes of it.
    ended: RefCell<Option<Fault>>,
    /// Rows that referred to nothing before the write dropped its first table.
    dangling: Cell<Option<u64>>,
}

/// References between tables are not looked at, until this is dropped.
struct Unchecked<'c>(&'c Connection);

impl<'c> Unchecked<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        Ok(Self(connection))
    }
}

impl Drop for Unchecked<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true) {
            tracing::error!(%error, "references between tables are not looked at from now on");
        }
    }
}

/// Counts the rows that refer to rows that are not there.
fn dangling(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
}

impl<'a> Tx<'a> {
    pub(crate) fn new(runner: Runner<'a>, track: &'a Track, writes: &'a Writes, source: &'a str) -> Self {
        let (left, published, ended) = (Cell::new(runner.limits), RefCell::default(), RefCell::default());
        Self { runner, track, writes, source, left, published, ended, dangling: Cell::default() }
    }

    /// Runs one statement that changes rows.
    ///
    /// A statement that fails is taken back, and the write may go on without it. One that ran into its time limit, or that took the whole transaction back
    /// (`OR ROLLBACK`, a full disk), ends the write: all that follows is answered with its fault, and so is the write.
    pub fn execute(&self, sql: &str, params: impl Into<Params>) -> Result<StatementResult, Fault> {
        self.run(&Statement::new(sql, params))
    }

    /// Runs one statement that returns rows, each read by `row`.
    pub fn query<T>(
        &self,
        sql: &str,
        params: impl Into<Params>,
        row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Vec<T>, Fault> {
        let Ran { columns, rows } = self.step(&Statement::new(sql, params))?;
        QueryResult { columns, rows }.map(row).map_err(|why| internal(self.runner.method, why))
    }

    /// Runs one statement and reads the first row it returns; `None` when there is none.
    pub fn query_one<T>(
        &self,
        sql: &str,
        params: impl Into<Params>,
        mut row: impl FnMut(&Row<'_>) -> Result<T, RowError>,
    ) -> Result<Option<T>, Fault> {
        let Ran { columns, rows } = self.step(&Statement::new(sql, params))?;
        let read = rows.first().map(|values| row(&Row::new(&columns, values))).transpose();
        read.map_err(|why| internal(self.runner.method, why))
    }

    /// Runs another named write inside this one. Returns its result.
    pub fn named(&self, name: &str, params: &Value) -> Result<Value, Fault> {
        let write = self.writes.find(name)?;
        write.run(self, &write.read(params)?)
    }

    /// Appends an event to the journal when the write is done, behind the events of the rows it changed. `session_id` may be empty.
    ///
    /// The acknowledgement's `seq` is the number of the last such event.
    pub fn publish(&self, topic: Topic, payload: impl Into<Json>, session_id: &str) {
        let mut event = Envelope::carrying(self.source, topic, Cow::Owned(payload.into()));
        session_id.clone_into(&mut event.session_id);
        self.append(event);
    }

    /// Returns a fault that says why this write refuses: `E_CONFLICT`, and nothing is applied.
    pub fn refuse(&self, why: impl AsRef<str>) -> Fault {
        refuse(Code::Conflict, Word::Conflict, self.runner.method, why)
    }

    /// Returns the instance that writes.
    pub(crate) fn source(&self) -> &str {
        self.source
    }

    /// Runs SQL of our own.
    pub(crate) fn own<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Fault> {
        self.goes_on()?;
        self.noted(work(self.runner.connection).map_err(|error| from_sqlite(self.runner.method, &error, None)))
    }

    /// Returns the fault that ended the write, if one has.
    pub(crate) fn goes_on(&self) -> Result<(), Fault> {
        self.ended.borrow().clone().map_or(Ok(()), Err)
    }

    /// Ends the write where the transaction is gone, for what came behind would be committed by itself; and where time is up: it may be but that of this thread.
    fn noted<T>(&self, ran: Result<T, Fault>) -> Result<T, Fault> {
        ran.inspect_err(|fault| {
            if fault.is(Code::Deadline) || self.runner.connection.is_autocommit() {
                self.ended.borrow_mut().get_or_insert_with(|| fault.clone());
            }
        })
    }

    /// Runs the statements of a script, which may change the schema; what they return is read and forgotten.
    pub(crate) fn script(&self, sql: &str) -> Result<(), Fault> {
        let Runner { connection, guard, deadline, method, .. } = self.runner;
        if sql.contains('\0') {
            return Err(invalid(method, "sql", "holds a NUL"));
        }
        let reserved = self.own(reserved_names)?;
        let mut script = Batch::new(connection, sql);
        loop {
            let next = guard.run(Mode::Schema, deadline, || script.next());
            let Some(mut statement) = self.noted(next.map_err(|error| from_sqlite(method, &error, Some(guard))))?
            else {
                return Ok(());
            };
            let _unchecked = self.before_change(&statement.expanded_sql().unwrap_or_default())?;
            let before = connection.total_changes();
            let ran = guard.run(Mode::Schema, deadline, || {
                let mut rows = statement.raw_query();
                while rows.next()?.is_some() {}
                Ok(())
            });
            self.track.end_statement(connection, before, ran.is_ok());
            if let Err(fault) = self.noted(ran.map_err(|error| from_sqlite(method, &error, Some(guard)))) {
                // The write may go on without this script: what it changes is told, too.
                self.renew_track()?;
                return Err(fault);
            }
            after_schema_change(connection, self.track, reserved, method)?;
        }
    }

    /// Prepares for a statement that may change the schema. What it returns is dropped when the statement has run.
    ///
    /// Who rebuilds a table as SQLite describes it drops the former one, whose rows others refer to: those are to stay, and to fit when the write ends.
    fn before_change(&self, sql: &str) -> Result<Option<Unchecked<'a>>, Fault> {
        let mut words = words(sql).map(str::to_ascii_lowercase);
        match (words.next().as_deref(), words.next().as_deref()) {
            (Some("alter"), _) => self.own(|connection| self.track.lift(connection)).map(|()| None),
            (Some("drop"), Some("table")) => {
                if self.dangling.get().is_none() {
                    // A schema whose references are wrong themselves is no reason to keep a table.
                    self.dangling.set(self.own(dangling).ok());
                }
                Unchecked::begin(self.runner.connection).map(Some).map_err(|why| internal(self.method(), why))
            }
            _ => Ok(None),
        }
    }

    /// Makes the triggers that track changes anew: what applications wish for has changed.
    pub(crate) fn renew_track(&self) -> Result<(), Fault> {
        self.own(|connection| self.track.renew(connection))
    }

    /// Returns the name of the write, as it stands in faults and change events.
    pub fn method(&self) -> &str {
        self.runner.method
    }

    pub(crate) fn append(&self, event: Published<'static>) {
        self.published.borrow_mut().push(event);
    }

    /// Ends the write. Returns the events that were published, in order, or why the write cannot be applied after all.
    pub(crate) fn finish(self) -> Result<Vec<Published<'static>>, Fault> {
        self.goes_on()?;
        if let Some(before) = self.dangling.get()
            && self.own(dangling)? > before
        {
            let sql = "SELECT \"table\" || ' refer to rows of ' || parent FROM pragma_foreign_key_check LIMIT 1";
            let which: String = self.own(|connection| connection.query_row(sql, [], |row| row.get(0)))?;
            let message = format!(
                "a table was dropped, and now rows of {which} that are not there; remove them first, or fill the table anew"
            );
            return Err(refuse(Code::Conflict, Word::Conflict, self.method(), message));
        }
        Ok(self.published.into_inner())
    }

    /// Calls the code of an application with params of its own type.
    pub(crate) fn call<P, R>(
        &self,
        write: impl Fn(&Tx<'_>, P) -> Result<R, Fault>,
        params: &Value,
    ) -> Result<Value, Fault>
    where
        P: DeserializeOwned,
        R: Serialize,
    {
        let params = serde_path_to_error::deserialize(params).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "params".to_owned() } else { format!("params.{path}") };
            invalid(self.runner.method, &field, error.into_inner())
        })?;
        serde_json::to_value(write(self, params)?).map_err(|why| internal(self.runner.method, why))
    }

    /// Runs a statement and tells what it did.
    pub(crate) fn run(&self, statement: &Statement) -> Result<StatementResult, Fault> {
        let connection = self.runner.connection;
        let before = connection.total_changes();
        let ran = self.step(statement)?;
        Ok(result(connection, self.track, before, statement, ran))
    }

    fn step(&self, statement: &Statement) -> Result<Ran, Fault> {
        self.goes_on()?;
        let Limits { rows, bytes } = self.left.get();
        let connection = self.runner.connection;
        let _unchecked = if self.runner.mode == Mode::Schema { self.before_change(&statement.sql)? } else { None };
        let before = connection.total_changes();
        let recursion = self.track.begin_statement(connection, &statement.sql);
        let _recursion = recursion.map_err(|error| from_sqlite(self.runner.method, &error, None))?;
        let ran = Runner { limits: self.left.get(), ..self.runner }.run(statement);
        self.track.end_statement(connection, before, ran.is_ok());
        let ran = self.noted(ran)?;
        let weight: usize = ran.rows.iter().flatten().map(SqlValue::weight).sum();
        self.left.set(Limits { rows: rows.saturating_sub(ran.rows.len()), bytes: bytes.saturating_sub(weight) });
        Ok(ran)
    }
}

/// Makes the trackers anew, whatever a statement did to them, and sees that nothing reserved came to be.
pub(crate) fn after_schema_change(
    connection: &Connection,
    track: &Track,
    reserved: i64,
    method: &str,
) -> Result<(), Fault> {
    let sqlite = |error: rusqlite::Error| from_sqlite(method, &error, None);
    track.renew(connection).map_err(sqlite)?;
    if reserved_names(connection).map_err(sqlite)? == reserved {
        return Ok(());
    }
    let message = "names with _pando_ are reserved, also as the target of a foreign key, and nothing is TEMP";
    Err(refuse(Code::Forbidden, Word::InvalidParams, method, message))
}

/// Counts what nobody else may make: names with our prefix in the schema, foreign keys that lead to them, and whatever is TEMP but our trackers
/// (`CREATE TRIGGER temp.t ON main.u` looks to the authorizer like a trigger of `main`).
pub(crate) fn reserved_names(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT (SELECT count(*) FROM main.sqlite_schema WHERE name LIKE '\\_pando\\_%' ESCAPE '\\')
        + (SELECT count(*) FROM pragma_table_list AS t, pragma_foreign_key_list(t.name) AS f
           WHERE t.schema = 'main' AND f.\"table\" LIKE '\\_pando\\_%' ESCAPE '\\')
        + (SELECT count(*) FROM temp.sqlite_schema WHERE name NOT LIKE '\\_pando\\_track\\_%' ESCAPE '\\')";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Returns what one statement did.
fn result(
    connection: &Connection,
    track: &Track,
    changes_before: u64,
    statement: &Statement,
    ran: Ran,
) -> StatementResult {
    let changed = connection.total_changes() > changes_before;
    let rows_affected = if changed { connection.changes() } else { 0 };
    // SQLite keeps the last rowid for ever: where this statement did not insert it, it is a stranger's.
    let inserts = ["insert", "replace", "with"]
        .contains(&words(&statement.sql).next().unwrap_or("").to_ascii_lowercase().as_str());
    let last = connection.last_insert_rowid();
    let last_insert_rowid = if rows_affected > 0 && inserts && track.has_inserted(last) { last } else { 0 };
    let Ran { columns, rows } = ran;
    let returned = (!columns.is_empty()).then_some(QueryResult { columns, rows });
    StatementResult { rows_affected, last_insert_rowid, returned }
}

/// Returns the words with which a statement begins; white space and comments stand between them.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        loop {
            let behind = if let Some(comment) = rest.strip_prefix("--") {
                comment.split_once('\n').map(|(_, rest)| rest)
            } else if let Some(comment) = rest.strip_prefix("/*") {
                comment.split_once("*/").map(|(_, rest)| rest)
            } else {
                break;
            };
            rest = behind.unwrap_or("").trim_start();
        }
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let word;
        (word, rest) = rest.split_at(end);
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_between_comments() {
        let first = |sql| words(sql).take(2).collect::<Vec<_>>().join(" ");
        assert_eq!(first(" -- a\n /* b */insert/**/ into t"), "insert into");
        assert_eq!(first("UPDATE t"), "UPDATE t");
        assert_eq!(first("DROP -- x\nTABLE t"), "DROP TABLE");
        assert_eq!(first("-- only"), "");
        assert_eq!(first("SELECT 1, a"), "SELECT");
    }
}
