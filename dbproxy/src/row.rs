//! One row of a result, read by column and type.

use crate::value::SqlValue;

/// Why a row does not read as wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The result has no such column.
    #[error("no column {column}; there are {known}")]
    NoColumn {
        /// The name or place that was asked for.
        column: String,
        /// The columns that there are.
        known: String,
    },
    /// The value is of another type, or does not fit.
    #[error("column {column} holds {found}, not {wanted}")]
    Type {
        /// The column's name.
        column: String,
        /// What was wanted.
        wanted: &'static str,
        /// What was found.
        found: String,
    },
    /// The mapping itself refused.
    #[error("{0}")]
    Refused(String),
}

/// A row of a result. Columns are found by place (from 0) or by name.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    columns: &'a [String],
    values: &'a [SqlValue],
}

impl<'a> Row<'a> {
    pub(crate) fn new(columns: &'a [String], values: &'a [SqlValue]) -> Self {
        Self { columns, values }
    }

    /// Returns the value of a column as `T`: see [`FromValue`] for what reads as what.
    pub fn get<T: FromValue>(&self, column: impl Column) -> Result<T, RowError> {
        let at = column.place(self.columns)?;
        let value = &self.values[at];
        T::from_value(value).ok_or_else(|| RowError::Type {
            column: self.columns[at].clone(),
            wanted: T::WANTED,
            found: value.describe(),
        })
    }

    /// Returns the value of a column as it is.
    pub fn value(&self, column: impl Column) -> Result<&'a SqlValue, RowError> {
        column.place(self.columns).map(|at| &self.values[at])
    }

    /// Returns the names of the columns.
    pub fn columns(&self) -> &'a [String] {
        self.columns
    }

    /// Returns the row as a JSON object, in the order of the columns.
    pub fn to_json(&self) -> serde_json::Value {
        let pairs = self.columns.iter().cloned().zip(self.values.iter().map(SqlValue::to_json));
        serde_json::Value::Object(pairs.collect())
    }
}

/// Names a column: its place from 0, or its name.
pub trait Column {
    /// Returns the place among the columns.
    fn place(self, columns: &[String]) -> Result<usize, RowError>;
}

impl Column for usize {
    fn place(self, columns: &[String]) -> Result<usize, RowError> {
        if self < columns.len() { Ok(self) } else { Err(no_column(self.to_string(), columns)) }
    }
}

impl Column for &str {
    fn place(self, columns: &[String]) -> Result<usize, RowError> {
        // SQLite's names know no upper and lower case.
        let found = columns.iter().position(|name| name.eq_ignore_ascii_case(self));
        found.ok_or_else(|| no_column(format!("{self:?}"), columns))
    }
}

fn no_column(column: String, columns: &[String]) -> RowError {
    RowError::NoColumn { column, known: columns.join(", ") }
}

/// A type that reads from an [`SqlValue`].
///
/// Integers read as integers that hold them and as `bool` (not 0); reals as `f64`, and so do integers; text as `String`; blobs as `Vec<u8>`;
/// anything as [`SqlValue`]; NULL as the `None` of an `Option`. Nothing is cut or rounded but an integer beyond 2^53 that is read as `f64`.
pub trait FromValue: Sized {
    /// Names the type in errors.
    const WANTED: &'static str;
    /// Reads the value, unless it is of another type.
    fn from_value(value: &SqlValue) -> Option<Self>;
}

macro_rules! integers {
    ($($kind:ty),*) => {$(
        impl FromValue for $kind {
            const WANTED: &'static str = stringify!($kind);
            fn from_value(value: &SqlValue) -> Option<Self> {
                match value {
                    SqlValue::Integer(integer) => (*integer).try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integers!(i64, i32, i16, i8, u64, u32, u16, u8, usize);

impl FromValue for bool {
    const WANTED: &'static str = "bool";
    fn from_value(value: &SqlValue) -> Option<Self> {
        i64::from_value(value).map(|integer| integer != 0)
    }
}

impl FromValue for f64 {
    const WANTED: &'static str = "f64";
    #[expect(clippy::cast_precision_loss, reason = "SQLite itself reads an integer as a real so")]
    fn from_value(value: &SqlValue) -> Option<Self> {
        match value {
            SqlValue::Real(real) => Some(*real),
            SqlValue::Integer(integer) => Some(*integer as Self),
            _ => None,
        }
    }
}

impl FromValue for String {
    const WANTED: &'static str = "text";
    fn from_value(value: &SqlValue) -> Option<Self> {
        match value {
            SqlValue::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for Vec<u8> {
    const WANTED: &'static str = "a blob";
    fn from_value(value: &SqlValue) -> Option<Self> {
        match value {
            SqlValue::Blob(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }
}

impl FromValue for SqlValue {
    const WANTED: &'static str = "a value";
    fn from_value(value: &SqlValue) -> Option<Self> {
        Some(value.clone())
    }
}

impl<T: FromValue> FromValue for Option<T> {
    const WANTED: &'static str = T::WANTED;
    fn from_value(value: &SqlValue) -> Option<Self> {
        match value {
            SqlValue::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_as_its_own_type_and_says_so_otherwise() {
        let columns: Vec<String> = ["id", "name", "gone"].map(str::to_owned).into();
        let values = [SqlValue::Integer(300), SqlValue::Text("a\0b".into()), SqlValue::Null];
        let row = Row::new(&columns, &values);
        assert_eq!(row.get::<i64>("ID"), Ok(300));
        assert_eq!((row.get::<u16>(0), row.get::<f64>(0), row.get::<bool>(0)), (Ok(300), Ok(300.0), Ok(true)));
        assert_eq!(row.get::<String>("name").unwrap(), "a\0b");
        assert_eq!((row.get::<Option<i64>>("gone"), row.get::<Option<i64>>("id")), (Ok(None), Ok(Some(300))));
        let said = |error: RowError| error.to_string();
        assert_eq!(said(row.get::<u8>("id").unwrap_err()), "column id holds integer 300, not u8");
        assert_eq!(said(row.get::<i64>("name").unwrap_err()), "column name holds text of 3 bytes, not i64");
        assert_eq!(said(row.get::<String>(2).unwrap_err()), "column gone holds NULL, not text");
        assert_eq!(said(row.get::<i64>("nope").unwrap_err()), "no column \"nope\"; there are id, name, gone");
        assert_eq!(said(row.get::<i64>(3).unwrap_err()), "no column 3; there are id, name, gone");
    }
}
