//! Runs one foreign statement under the guard: one statement per string, bound parameters, limits.

use std::time::Instant;

use pando_ipc::Fault;
use pando_ipc::fault::Code;
use rusqlite::{CachedStatement, Connection, Error, Statement as SqliteStatement};

use crate::guard::{Guard, MAX_SQL_BYTES, Mode};
use crate::params::{Param, Params};
use crate::refusal::{Word, from_sqlite, invalid, refuse, too_large};
use crate::value::SqlValue;
use crate::write::Statement;

/// How much a statement may return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// What a statement returned.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<SqlValue>>,
}

/// One connection under its guard, for statements of one write or query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) guard: &'a Guard,
    pub(crate) mode: Mode,
    pub(crate) deadline: Instant,
    pub(crate) limits: Limits,
    /// Named in faults.
    pub(crate) method: &'a str,
}

impl Runner<'_> {
    /// Prepares and runs the statement to its end.
    pub(crate) fn run(&self, statement: &Statement) -> Result<Ran, Fault> {
        if statement.sql.len() > MAX_SQL_BYTES {
            let message = format!("statement has {} bytes; the limit is {MAX_SQL_BYTES}", statement.sql.len());
            return Err(too_large(self.method, message));
        }
        if statement.sql.contains('\0') {
            // SQLite would read up to it and no further.
            return Err(invalid(self.method, "sql", "holds a NUL"));
        }
        // The fault is made outside: it asks the guard what was denied.
        let ran = self.guard.run(self.mode, self.deadline, || self.step_through(statement));
        ran.map_err(|failure| match failure {
            Failure::Sqlite(error) => from_sqlite(self.method, &error, Some(self.guard)),
            Failure::Refused(fault) => fault,
        })
    }

    fn step_through(&self, statement: &Statement) -> Result<Ran, Failure> {
        let mut prepared = self.connection.prepare_cached(&self.mode.marked(&statement.sql))?;
        let reads = prepared.readonly();
        if reads && prepared.column_count() == 0 {
            return Err(Failure::Refused(invalid(self.method, "sql", "is empty or does nothing")));
        }
        if self.mode == Mode::Read && !reads {
            let message = "a query only reads; changes go through exec";
            return Err(Failure::Refused(refuse(Code::Forbidden, Word::InvalidParams, self.method, message)));
        }
        self.bind(&mut prepared, &statement.params)?;
        let (mut columns, mut rows) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut cursor = prepared.raw_query();
        while let Some(row) = cursor.next()? {
            if rows.is_empty() {
                columns = names(row.as_ref());
            }
            let mut values = Vec::with_capacity(columns.len());
            for at in 0..columns.len() {
                let value = SqlValue::from_ref(row.get_ref(at)?);
                bytes += value.weight();
                values.push(value);
            }
            rows.push(values);
            if rows.len() > self.limits.rows || bytes > self.limits.bytes {
                let Limits { rows, bytes } = self.limits;
                let message = format!("the result has more than {rows} rows or {bytes} bytes; add a LIMIT or a WHERE");
                return Err(Failure::Refused(too_large(self.method, message)));
            }
        }
        drop(cursor);
        if rows.is_empty() {
            columns = names(&prepared);
        }
        Ok(Ran { columns, rows })
    }

    fn value<'p>(&self, param: &'p Param) -> Result<&'p SqlValue, Failure> {
        match param {
            Param::Value(value) => Ok(value),
            _ => Err(Failure::Refused(invalid(self.method, "params", "no statement comes before this one"))),
        }
    }

    fn bind(&self, prepared: &mut CachedStatement<'_>, params: &Params) -> Result<(), Failure> {
        let wanted = prepared.parameter_count();
        match params {
            Params::Positional(values) if values.len() != wanted => {
                Err(Error::InvalidParameterCount(values.len(), wanted).into())
            }
            Params::Positional(values) => {
                for (at, value) in values.iter().enumerate() {
                    prepared.raw_bind_parameter(at + 1, self.value(value)?)?;
                }
                Ok(())
            }
            Params::Named(values) => {
                let mut bound = vec![false; wanted];
                for (name, value) in values {
                    let at = find(prepared, name)?.ok_or_else(|| Error::InvalidParameterName(name.clone()))?;
                    if std::mem::replace(&mut bound[at - 1], true) {
                        let why = format!("parameter {name} has two values");
                        return Err(Failure::Refused(invalid(self.method, "params", why)));
                    }
                    prepared.raw_bind_parameter(at, self.value(value)?)?;
                }
                match bound.iter().position(|bound| !bound) {
                    None => Ok(()),
                    Some(at) => {
                        let name = prepared.parameter_name(at + 1).unwrap_or("?").to_owned();
                        Err(Failure::Refused(invalid(self.method, "params", format!("parameter {name} has no value"))))
                    }
                }
            }
        }
    }
}

/// Returns the names of a statement's columns, which hold once it was stepped: where the schema has changed, SQLite prepares it anew only then.
fn names(stepped: &SqliteStatement<'_>) -> Vec<String> {
    stepped.column_names().map(str::to_owned).collect()
}

/// Returns the place of a named parameter; without a sign any of the three is meant.
fn find(prepared: &CachedStatement<'_>, name: &str) -> Result<Option<usize>, Error> {
    if name.starts_with([':', '@', '$']) {
        return prepared.parameter_index(name);
    }
    for sign in [':', '@', '$'] {
        if let Some(at) = prepared.parameter_index(&format!("{sign}{name}"))? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

enum Failure {
    Sqlite(Error),
    Refused(Fault),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sqlite(error)
    }
}
