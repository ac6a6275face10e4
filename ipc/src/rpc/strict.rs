//! JSON without a second meaning: what two readers could read differently is refused.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Deepest nesting that is read; `serde_json`'s own limit.
pub const MAX_DEPTH: usize = 128;

/// Says in our words why JSON was not read.
pub(super) fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("recursion limit exceeded") {
        Some(place) => format!("nested deeper than {MAX_DEPTH} levels{place}"),
        None => text,
    }
}

/// Reads any value; an object with a key twice is an error.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            insert(&mut members, key, value)?;
        }
        Ok(Value::Object(members))
    }
}

fn insert<E: Error>(members: &mut Map<String, Value>, key: String, value: Value) -> Result<(), E> {
    if members.contains_key(&key) {
        return Err(E::custom(format_args!("key {key:?} stands twice")));
    }
    members.insert(key, value);
    Ok(())
}

/// An object whose `id` is kept as the bytes that came.
#[derive(Debug, Default)]
pub(super) struct Object {
    pub(super) id: Option<Box<RawValue>>,
    /// All members; `id` stands here as null.
    pub(super) members: Map<String, Value>,
}

/// Reads an object of which no key stands twice, at any depth.
pub(super) fn object(text: &str) -> serde_json::Result<Object> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Object;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
            let mut object = Object::default();
            while let Some(key) = map.next_key::<String>()? {
                let value = if key == "id" {
                    object.id = Some(map.next_value()?);
                    Value::Null
                } else {
                    map.next_value_seed(Strict)?
                };
                insert(&mut object.members, key, value)?;
            }
            Ok(object)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let object = reader.deserialize_map(Members)?;
    reader.end()?;
    Ok(object)
}

/// Reads an array of at most `limit` elements, each as the bytes that came; `Err(length)` when it has more. The rest is
/// counted, not kept.
pub(super) fn array(text: &str, limit: usize) -> serde_json::Result<Result<Vec<&RawValue>, usize>> {
    struct Elements(usize);
    impl<'de> Visitor<'de> for Elements {
        type Value = Result<Vec<&'de RawValue>, usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while elements.len() < self.0 {
                match seq.next_element()? {
                    Some(element) => elements.push(element),
                    None => return Ok(Ok(elements)),
                }
            }
            let mut length = elements.len();
            while seq.next_element::<IgnoredAny>()?.is_some() {
                length += 1;
            }
            Ok(if length > self.0 { Err(length) } else { Ok(elements) })
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let elements = reader.deserialize_seq(Elements(limit))?;
    reader.end()?;
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"a":2}]}"#, r#"{"id":1,"id":1}"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(object(text).unwrap_err().to_string().contains("stands twice"), "{text}");
        }
        assert_eq!(object(r#"{"a":{"b":1},"b":[{"a":1}]}"#).unwrap().members.len(), 2);
    }

    #[test]
    fn what_is_too_deep_is_refused_in_our_words() {
        let deep = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(object(&deep(MAX_DEPTH - 2)).is_ok());
        let error = object(&deep(MAX_DEPTH)).unwrap_err();
        assert!(explain(&error).starts_with("nested deeper than 128 levels at line 1"), "{}", explain(&error));
    }

    #[test]
    fn an_array_is_counted_beyond_its_limit() {
        assert_eq!(array("[1,2,3]", 3).unwrap().unwrap().len(), 3);
        assert_eq!(array("[1,2,3]", 2).unwrap().unwrap_err(), 3);
        assert!(array("[1,2", 1).is_err() && array("[1] 2", 1).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(".{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_plain_json_is_read_as_serde_json_reads_it(value in any_json()) {
            let text = format!(r#"{{"value":{value}}}"#);
            let read = object(&text).unwrap().members;
            prop_assert_eq!(&read["value"], &serde_json::from_str::<Value>(&value.to_string()).unwrap());
        }
    }
}
