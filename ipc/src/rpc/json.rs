//! JSON that stays text: written once, passed on as it is.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Raw, strict};

/// JSON as text on one line: written once, passed on as it is, and read by whoever wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Json(pub(super) String);

/// By this name `serde_json` is given text and asked for text. What knows none, such as the buffer of an untagged enum, gives the value.
///
/// A `RawValue` of its own would be read again wherever it is made of text that is known to be JSON.
const RAW: &str = "$serde_json::private::RawValue";

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut raw = serializer.serialize_struct(RAW, 1)?;
        raw.serialize_field(RAW, self.as_str())?;
        raw.end()
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl<'de> Visitor<'de> for AsText {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Json, A::Error> {
                Box::<RawValue>::deserialize(MapAccessDeserializer::new(map))
                    .map(|raw| Json::on_one_line(Box::<str>::from(raw).into()))
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
                Value::deserialize(deserializer).map(Json::from)
            }
        }
        deserializer.deserialize_newtype_struct(RAW, AsText)
    }
}

/// Tells whether text has a control character. All bytes are looked at, for that is done many at a time.
pub(super) fn has_control(text: &str) -> bool {
    text.bytes().fold(u8::MAX, u8::min) < b' '
}

/// Tells whether text stands in JSON as it is, between quotes. All bytes are looked at, for that is done many at a time.
pub(crate) fn needs_no_escape(text: &str) -> bool {
    let is_escaped = |byte| u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\');
    text.bytes().fold(0, |any, byte| any | is_escaped(byte)) == 0
}

/// Leaves out what stands between the tokens of JSON text.
fn without_space(text: &str) -> String {
    let (mut in_string, mut is_escaped) = (false, false);
    let keeps = |c: &char| {
        let is_kept = in_string || !c.is_ascii_whitespace();
        in_string ^= *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_kept
    };
    text.chars().filter(keeps).collect()
}

impl Default for Json {
    fn default() -> Self {
        Self::null()
    }
}

impl Json {
    /// Returns `null`.
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Writes a value, which must be one that always can be: no map but with keys of text.
    pub fn of(value: &impl Serialize) -> Self {
        #[expect(clippy::expect_used, reason = "what serde_json writes into memory is JSON")]
        Self::write(value).expect("the value has keys of text")
    }

    /// Writes a value, or says why it has no JSON.
    pub fn write(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::to_string(value).map(Self)
    }

    /// Takes text that is one JSON value with one meaning: as in a request, no object in it may have a key twice.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        strict::check(text)?;
        serde_json::from_str(text)
    }

    /// Takes text that is known to be JSON, with nothing around it.
    pub(super) fn on_one_line(text: String) -> Self {
        // Inside of a string they are escaped.
        Self(if has_control(&text) { without_space(&text) } else { text })
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns a look into it.
    pub fn raw(&self) -> Raw<'_> {
        Raw(&self.0)
    }

    /// Tells whether arrays and objects in it are nested deeper than so many levels.
    pub fn is_deeper_than(&self, levels: usize) -> bool {
        let opens = |byte: &u8| matches!(byte, b'[' | b'{');
        // Mostly there are not even so many brackets, and counting goes by many bytes at a time.
        if self.0.as_bytes().iter().filter(|byte| opens(byte)).count() <= levels {
            return false;
        }
        let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
        self.0.bytes().any(|byte| {
            match byte {
                b'"' if !is_escaped => in_string = !in_string,
                b'[' | b'{' if !in_string => depth += 1,
                b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            is_escaped = byte == b'\\' && !is_escaped;
            depth > levels
        })
    }

    /// Reads it as `T`.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Raw<'_>> for Json {
    fn from(raw: Raw<'_>) -> Self {
        Self::on_one_line(raw.0.into())
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self::of(&value)
    }
}

impl PartialEq<Value> for Json {
    fn eq(&self, other: &Value) -> bool {
        self.read::<Value>().is_ok_and(|value| value == *other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Incoming, parse_request};
    use super::*;
    use serde_json::json;

    #[test]
    fn json_has_one_line_whatever_it_came_as() {
        let spaced = "{\n\t\"a b\" : [ 1,\r\n 2.50 ],\n \"c\\\\\" : \"\\\" d \\n\"\n}";
        let json: Json = serde_json::from_str(spaced).unwrap();
        assert_eq!(json.as_str(), r#"{"a b":[1,2.50],"c\\":"\" d \n"}"#);
        let request = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{spaced}}}"#);
        let Ok(Incoming::Single(read)) = parse_request(request.as_bytes()) else { panic!("{request}") };
        assert_eq!(read.params, json);
        let kept: Json = serde_json::from_str(r#"{ "a": "é" }"#).unwrap();
        assert_eq!(kept.as_str(), r#"{ "a": "é" }"#);
    }

    #[test]
    fn json_is_as_deep_as_what_is_nested_in_it() {
        let depth = |text: &str| {
            let json = serde_json::from_str::<Json>(text).unwrap();
            (0..9).find(|levels| !json.is_deeper_than(*levels)).unwrap()
        };
        let found = ["1", "[]", "[{},[],{}]", r#"{"a":[1,{"b":[]}]}"#, r#"["[[\"[","\\",[1]]"#].map(depth);
        assert_eq!(found, [0, 1, 2, 4, 2]);
    }

    #[test]
    fn json_is_read_from_buffers_and_values_too() {
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(untagged)]
        enum Either {
            Number { number: u64 },
            Any { any: Json },
        }
        for value in [json!({"b": [1, 2.5, null], "a": "x"}), json!(null), json!(7), json!("\n")] {
            let whole = json!({"any": value});
            let expected = Either::Any { any: Json::of(&value) };
            assert_eq!(serde_json::from_str::<Either>(&whole.to_string()).unwrap(), expected);
            assert_eq!(serde_json::from_value::<Either>(whole).unwrap(), expected);
            assert_eq!(serde_json::from_value::<Json>(value.clone()).unwrap(), value);
        }
        assert_eq!(serde_json::from_str::<Either>(r#"{"number":3}"#).unwrap(), Either::Number { number: 3 });
    }

    #[test]
    fn text_needs_no_escape_exactly_where_it_is_written_as_it_is() {
        for byte in 0..=u8::MAX {
            let text = format!("before{}after", char::from(byte));
            let is_same = serde_json::to_string(&text).is_ok_and(|json| json == format!("\"{text}\""));
            assert_eq!(needs_no_escape(&text), is_same, "{byte:#x}");
        }
    }
}
