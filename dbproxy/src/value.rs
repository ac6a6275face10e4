//! SQLite's values as Rust and as JSON.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, Value as Sql, ValueRef};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

/// One value of SQLite.
///
/// As JSON: `null`, a number without fraction (all 64 bits), a number with one, a string, `{"$blob": "<base64>"}`, and
/// `{"$real": "inf" | "-inf" | "nan"}` for what JSON has no number for. `true` and `false` read as 1 and 0. Stored text
/// that is not UTF-8 reads as a blob. SQLite itself turns NaN into NULL.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum SqlValue {
    /// NULL.
    #[default]
    Null,
    /// An integer of 64 bits.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// Text in UTF-8; may hold NUL.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// Why JSON is no SQLite value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// An integer above 2^63 - 1.
    #[error("{0} does not fit into 64 bits with sign")]
    OutOfRange(String),
    /// `$blob` holds no base64.
    #[error("$blob holds no base64 (standard alphabet, padded)")]
    Base64,
    /// `$real` holds something else than `inf`, `-inf` or `nan`.
    #[error("$real is {0:?}, not \"inf\", \"-inf\" or \"nan\"")]
    Real(String),
    /// An array, or an object that is neither `$blob` nor `$real`.
    #[error("{0} is no SQLite value (null, boolean, number, string, {{\"$blob\": base64}} or {{\"$real\": \"inf\"}})")]
    Shape(&'static str),
}

impl SqlValue {
    /// Reads a value from JSON.
    pub fn from_json(value: &Value) -> Result<Self, ValueError> {
        match value {
            Value::Null => Ok(Self::Null),
            Value::Bool(truth) => Ok(Self::Integer(i64::from(*truth))),
            Value::Number(number) => {
                if let Some(integer) = number.as_i64() {
                    Ok(Self::Integer(integer))
                } else if number.is_u64() {
                    Err(ValueError::OutOfRange(number.to_string()))
                } else {
                    number.as_f64().map(Self::Real).ok_or_else(|| ValueError::OutOfRange(number.to_string()))
                }
            }
            Value::String(text) => Ok(Self::Text(text.clone())),
            Value::Array(_) => Err(ValueError::Shape("an array")),
            Value::Object(map) if map.len() == 1 => match map.iter().next() {
                Some((key, Value::String(text))) if key == "$blob" => {
                    decode_base64(text).map(Self::Blob).ok_or(ValueError::Base64)
                }
                Some((key, Value::String(text))) if key == "$real" => match text.as_str() {
                    "inf" => Ok(Self::Real(f64::INFINITY)),
                    "-inf" => Ok(Self::Real(f64::NEG_INFINITY)),
                    "nan" => Ok(Self::Real(f64::NAN)),
                    other => Err(ValueError::Real(other.to_owned())),
                },
                _ => Err(ValueError::Shape("an object")),
            },
            Value::Object(_) => Err(ValueError::Shape("an object")),
        }
    }

    /// Returns the value as JSON.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Integer(integer) => json!(integer),
            Self::Real(real) if real.is_finite() => json!(real),
            Self::Real(real) if real.is_nan() => json!({"$real": "nan"}),
            Self::Real(real) => json!({"$real": if *real > 0.0 { "inf" } else { "-inf" }}),
            Self::Text(text) => json!(text),
            Self::Blob(bytes) => json!({"$blob": encode_base64(bytes)}),
        }
    }

    /// Returns what the value is, for messages: never the text itself.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "NULL".to_owned(),
            Self::Integer(integer) => format!("integer {integer}"),
            Self::Real(real) => format!("real {real}"),
            Self::Text(text) => format!("text of {} bytes", text.len()),
            Self::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
        }
    }

    pub(crate) fn from_ref(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::Real(real),
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => Self::Blob(bytes.to_owned()),
            },
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_owned()),
        }
    }

    /// Returns about how many bytes the value takes as JSON.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Null | Self::Integer(_) | Self::Real(_) => 8,
            Self::Text(text) => text.len() + 2,
            Self::Blob(bytes) => bytes.len() * 4 / 3 + 16,
        }
    }
}

impl fmt::Display for SqlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Integer(integer) => integer.fmt(f),
            // With a point or an exponent: no integer, and never three hundred digits.
            Self::Real(real) => write!(f, "{real:?}"),
            Self::Text(text) => f.write_str(text),
            Self::Blob(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl Serialize for SqlValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(integer) => serializer.serialize_i64(*integer),
            Self::Null => serializer.serialize_unit(),
            other => other.to_json().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SqlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl ToSql for SqlValue {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Owned(Sql::Null),
            Self::Integer(integer) => ToSqlOutput::Owned(Sql::Integer(*integer)),
            Self::Real(real) => ToSqlOutput::Owned(Sql::Real(*real)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

macro_rules! from {
    ($($from:ty => $value:ident, $make:expr;)*) => {$(
        impl From<$from> for SqlValue {
            fn from($value: $from) -> Self {
                $make
            }
        }
    )*};
}
from! {
    i64 => value, Self::Integer(value);
    i32 => value, Self::Integer(value.into());
    i16 => value, Self::Integer(value.into());
    u16 => value, Self::Integer(value.into());
    u8 => value, Self::Integer(value.into());
    u32 => value, Self::Integer(value.into());
    bool => value, Self::Integer(value.into());
    f64 => value, Self::Real(value);
    &str => value, Self::Text(value.to_owned());
    String => value, Self::Text(value);
    &String => value, Self::Text(value.clone());
    Vec<u8> => value, Self::Blob(value);
    &[u8] => value, Self::Blob(value.to_owned());
}

impl<T: Into<SqlValue>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Writes bytes as base64 (RFC 4648, section 4: standard alphabet, padded).
fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place)) as usize & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[digit]) });
        }
    }
    text
}

/// Reads base64 as [`encode_base64`] writes it, and nothing else: one text for each sequence of bytes.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.as_bytes().chunks(4) {
        let mut group = 0_u32;
        for digit in chunk {
            let value = ALPHABET.iter().position(|known| known == digit)?;
            group = group << 6 | u32::try_from(value).ok()?;
        }
        let spare = 6 * (4 - chunk.len());
        let whole = (group << spare).to_be_bytes();
        let count = chunk.len() * 3 / 4;
        if whole[1 + count..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&whole[1..=count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check_json(value: &SqlValue, json: &str) {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<SqlValue>(json).unwrap(), value);
    }

    #[test]
    fn every_value_crosses_the_wire_unchanged() {
        check_json(&SqlValue::Null, "null");
        check_json(&SqlValue::Integer(i64::MAX), "9223372036854775807");
        check_json(&SqlValue::Integer(i64::MIN), "-9223372036854775808");
        check_json(&SqlValue::Real(1.0), "1.0");
        check_json(&SqlValue::Real(f64::NEG_INFINITY), r#"{"$real":"-inf"}"#);
        check_json(&SqlValue::Text("a\0é".into()), r#""a\u0000é""#);
        check_json(&SqlValue::Blob(b"\xff\0pando".to_vec()), r#"{"$blob":"/wBwYW5kbw=="}"#);
        check_json(&SqlValue::Blob(vec![]), r#"{"$blob":""}"#);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for bad in
            ["[1]", r#"{"a":1}"#, "9223372036854775808", r#"{"$blob":"a"}"#, r#"{"$blob":"QR=="}"#, r#"{"$real":"x"}"#]
        {
            assert!(serde_json::from_str::<SqlValue>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_and_any_float_come_back(bytes: Vec<u8>, real in any::<f64>().prop_filter("a number", |x| !x.is_nan())) {
            for value in [SqlValue::Blob(bytes), SqlValue::Real(real)] {
                let text = serde_json::to_string(&value).unwrap();
                prop_assert_eq!(serde_json::from_str::<SqlValue>(&text).unwrap(), value);
            }
        }
    }
}
