//! The parameters of a statement: values, and what earlier statements of the same write made.

use std::collections::HashSet;

use pando_ipc::Fault;
use pando_ipc::rpc::Raw;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::refusal::invalid;
use crate::value::SqlValue;
use crate::write::StatementResult;

/// One parameter. Whatever is an [`SqlValue`] is one: integers, floats, text, blobs, booleans and `Option`s of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// A value.
    Value(SqlValue),
    /// The row id that an earlier statement of the same write inserted last; as JSON `{"$rowid": 0}`.
    RowId {
        /// The statement's place, from 0.
        statement: usize,
    },
    /// A value that an earlier statement of the same write returned; as JSON `{"$returned": {"statement": 0, "row": 0, "column": "id"}}`.
    Returned {
        /// The statement's place, from 0.
        statement: usize,
        /// The row, from 0.
        row: usize,
        /// The column's name.
        column: String,
    },
}

impl<T: Into<SqlValue>> From<T> for Param {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

impl Serialize for Param {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::RowId { statement } => json!({"$rowid": statement}).serialize(serializer),
            Self::Returned { statement, row, column } => {
                json!({"$returned": {"statement": statement, "row": row, "column": column}}).serialize(serializer)
            }
        }
    }
}

impl Param {
    /// Reads a parameter from JSON, or says what is wrong with it.
    fn from_json(value: &Value) -> Result<Self, String> {
        let place = |value: &Value| value.as_u64().and_then(|place| usize::try_from(place).ok());
        let only = value.as_object().filter(|map| map.len() == 1);
        if let Some(statement) = only.and_then(|map| map.get("$rowid")) {
            return match place(statement) {
                Some(statement) => Ok(Self::RowId { statement }),
                None => Err("$rowid is not the place of a statement, from 0".to_owned()),
            };
        }
        if let Some(from) = only.and_then(|map| map.get("$returned")) {
            let row = from.get("row").map_or(Some(0), place);
            let (statement, column) =
                (from.get("statement").and_then(place), from.get("column").and_then(Value::as_str));
            return match (statement, row, column) {
                (Some(statement), Some(row), Some(column)) => {
                    Ok(Self::Returned { statement, row, column: column.to_owned() })
                }
                _ => Err("$returned is not {statement, row?, column}".to_owned()),
            };
        }
        SqlValue::from_json(value).map(Self::Value).map_err(|why| why.to_string())
    }

    fn weight(&self) -> usize {
        match self {
            Self::Value(value) => value.weight(),
            Self::RowId { .. } => 16,
            Self::Returned { column, .. } => 48 + column.len(),
        }
    }

    /// Returns the value, given what the statements before have done; or why there is none.
    fn resolve(&self, done: &[StatementResult]) -> Result<SqlValue, String> {
        let earlier = |statement: usize| {
            done.get(statement).ok_or_else(|| format!("statement {statement} does not come before this one"))
        };
        match self {
            Self::Value(value) => Ok(value.clone()),
            Self::RowId { statement } => match earlier(*statement)?.last_insert_rowid {
                0 => Err(format!("statement {statement} inserted no row")),
                rowid => Ok(SqlValue::Integer(rowid)),
            },
            Self::Returned { statement, row, column } => {
                let returned = earlier(*statement)?.returned.as_ref();
                let table = returned.ok_or_else(|| format!("statement {statement} returns nothing"))?;
                let found = table.rows().nth(*row);
                let row = found.ok_or_else(|| format!("statement {statement} returned {} rows", table.rows.len()))?;
                row.get(column.as_str()).map_err(|why| format!("statement {statement}: {why}"))
            }
        }
    }
}

/// The parameters of a statement. Arrays, `Vec`s and tuples of what is a [`Param`] are parameters for `?`; `()` is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Params {
    /// For `?`, `?1`, .. in order.
    Positional(Vec<Param>),
    /// For `:name`, `@name` or `$name`; without its sign a name means `:name`, `@name` or `$name` alike.
    Named(Vec<(String, Param)>),
}

impl Serialize for Params {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Positional(values) => values.serialize(serializer),
            Self::Named(values) => serializer.collect_map(values.iter().map(|(name, value)| (name, value))),
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self::Positional(Vec::new())
    }
}

impl Params {
    /// Returns parameters by name.
    pub fn named<N: Into<String>, P: Into<Param>>(pairs: impl IntoIterator<Item = (N, P)>) -> Self {
        Self::Named(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Reads parameters from JSON: an array, an object, or nothing for none. `field` is named in the fault.
    pub fn from_json(method: &str, field: &str, value: Option<Raw<'_>>) -> Result<Self, Fault> {
        let Some(value) = value else { return Ok(Self::default()) };
        let read = |path: &dyn Fn() -> String, value: Raw<'_>| {
            let param = match value.as_str() {
                // As a float it would be another number.
                text if is_integer(text) && text.parse::<i64>().is_err() => {
                    Err(format!("{text} is no integer of 64 bits; write it as text, or with a fraction"))
                }
                "-0" => Ok(Param::Value(SqlValue::Integer(0))),
                _ => value.read().map_err(|error| error.to_string()).and_then(|value| Param::from_json(&value)),
            };
            param.map_err(|why| invalid(method, &format!("{field}{}", path()), why))
        };
        if let Some(values) = value.elements() {
            let values = values.into_iter().enumerate().map(|(at, value)| read(&|| format!("[{at}]"), value));
            return values.collect::<Result<_, _>>().map(Self::Positional);
        }
        let members = value.members().ok_or_else(|| invalid(method, field, "neither an array nor an object"))?;
        let values =
            members.into_iter().map(|(name, value)| Ok((name.to_string(), read(&|| format!(".{name}"), value)?)));
        values.collect::<Result<_, _>>().map(Self::Named)
    }

    /// Returns a name that stands twice, with one value of the two nobody knows which.
    pub(crate) fn repeated(&self) -> Option<&str> {
        let Self::Named(values) = self else { return None };
        let mut seen = HashSet::new();
        values.iter().map(|(name, _)| name.as_str()).find(|name| !seen.insert(name.trim_start_matches([':', '@', '$'])))
    }

    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Positional(values) => values.iter().map(Param::weight).sum(),
            Self::Named(values) => values.iter().map(|(name, value)| name.len() + value.weight()).sum(),
        }
    }

    /// Puts values in the place of what refers to earlier statements. The fault names the parameter of statement `at`.
    pub(crate) fn resolve(&mut self, method: &str, done: &[StatementResult]) -> Result<(), Fault> {
        let at = done.len();
        let put = |param: &mut Param, path: &dyn Fn() -> String| {
            if !matches!(param, Param::Value(_)) {
                let value = param.resolve(done);
                *param = Param::Value(
                    value.map_err(|why| invalid(method, &format!("statements[{at}].params{}", path()), why))?,
                );
            }
            Ok(())
        };
        match self {
            Self::Positional(values) => {
                values.iter_mut().enumerate().try_for_each(|(place, param)| put(param, &|| format!("[{place}]")))
            }
            Self::Named(values) => values.iter_mut().try_for_each(|(name, param)| put(param, &|| format!(".{name}"))),
        }
    }

    /// Tells whether any parameter refers to an earlier statement.
    pub(crate) fn refers(&self) -> bool {
        let refers = |param: &Param| !matches!(param, Param::Value(_));
        match self {
            Self::Positional(values) => values.iter().any(refers),
            Self::Named(values) => values.iter().any(|(_, param)| refers(param)),
        }
    }
}

/// Tells whether JSON is a number without fraction and exponent.
fn is_integer(json: &str) -> bool {
    json.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && !json.contains(['.', 'e', 'E'])
}

impl<T: Into<Param>> From<Vec<T>> for Params {
    fn from(values: Vec<T>) -> Self {
        Self::Positional(values.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Param>, const N: usize> From<[T; N]> for Params {
    fn from(values: [T; N]) -> Self {
        Self::Positional(values.into_iter().map(Into::into).collect())
    }
}

impl From<()> for Params {
    fn from((): ()) -> Self {
        Self::default()
    }
}

macro_rules! tuples {
    ($(($($name:ident),+))+) => {$(
        impl<$($name: Into<Param>),+> From<($($name,)+)> for Params {
            #[expect(non_snake_case, reason = "a value has the name of its type parameter")]
            fn from(($($name,)+): ($($name,)+)) -> Self {
                Self::Positional(vec![$($name.into()),+])
            }
        }
    )+};
}
tuples! {
    (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F) (A, B, C, D, E, F, G) (A, B, C, D, E, F, G, H)
    (A, B, C, D, E, F, G, H, I) (A, B, C, D, E, F, G, H, I, J) (A, B, C, D, E, F, G, H, I, J, K)
    (A, B, C, D, E, F, G, H, I, J, K, L)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_ipc::rpc::Json;

    #[track_caller]
    fn check(params: impl Into<Params>, expected: &str) {
        let params = params.into();
        assert_eq!(serde_json::to_string(&params).unwrap(), expected);
        assert_eq!(Params::from_json("exec", "params", Some(Json::of(&params).raw())), Ok(params));
    }

    #[test]
    fn an_integer_that_fits_nowhere_is_refused_and_not_rounded() {
        let read = |text: &str| {
            let params: Json = serde_json::from_str(&format!("[{text}]")).unwrap();
            Params::from_json("exec", "params", Some(params.raw()))
        };
        for text in ["9223372036854775808", "18446744073709551616", "-9223372036854775809"] {
            assert_eq!(read(text).unwrap_err().data.unwrap()["field"], "params[0]", "{text}");
        }
        assert_eq!(read("-9223372036854775808"), Ok([i64::MIN].into()));
        assert_eq!(read("-0"), Ok([0].into()));
        assert_eq!(read("1e19"), Ok([1e19].into()));
    }

    #[test]
    fn what_is_a_value_is_a_parameter() {
        check((), "[]");
        check([1, 2], "[1,2]");
        check(
            (1_i64, 2_u32, "three", 4.5, true, None::<String>, vec![0_u8]),
            r#"[1,2,"three",4.5,1,null,{"$blob":"AA=="}]"#,
        );
        check(Params::named([("a", Some(1)), ("b", None)]), r#"{"a":1,"b":null}"#);
        let returned = Param::Returned { statement: 1, row: 2, column: "id".into() };
        check(
            (Param::RowId { statement: 0 }, returned),
            r#"[{"$rowid":0},{"$returned":{"statement":1,"row":2,"column":"id"}}]"#,
        );
    }

    #[test]
    fn a_bad_reference_is_refused_by_name() {
        for bad in [
            json!({"$rowid": -1}),
            json!({"$rowid": "0"}),
            json!({"$returned": 0}),
            json!({"$returned": {"statement": 0}}),
        ] {
            let fault = Params::from_json("exec", "params", Some(Json::from(json!([0, bad])).raw())).unwrap_err();
            assert_eq!(fault.data.unwrap()["field"], "params[1]");
        }
    }
}
