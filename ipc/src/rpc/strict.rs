//! JSON without a second meaning: what two readers could read differently is refused.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::raw::Name;

/// Deepest nesting that is read; `serde_json`'s own limit.
pub const MAX_DEPTH: usize = 127;
/// What `serde_json` says of deeper JSON.
const TOO_DEEP: &str = "recursion limit exceeded";

/// Keys of an object that are compared one by one.
const FEW_KEYS: usize = 16;

/// Says in our words why JSON was not read.
pub(super) fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix(TOO_DEEP) {
        Some(place) => format!("nested deeper than {MAX_DEPTH} levels{place}"),
        None => text,
    }
}

/// Tells whether JSON was not read because it is nested too deep.
pub(super) fn is_too_deep(error: &serde_json::Error) -> bool {
    error.to_string().starts_with(TOO_DEEP)
}

/// Passes over any value; an object with a key twice is an error. It keeps the keys of the objects around it, innermost last.
struct Check<'k, 'de>(&'k mut Vec<Cow<'de, str>>);

impl<'de> DeserializeSeed<'de> for Check<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Check(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(keys) = self;
        let first = keys.len();
        // In an object with many keys they are looked up, not gone through.
        let mut many: Option<HashSet<Cow<'de, str>>> = None;
        while let Some(Name(key)) = map.next_key()? {
            if many.is_none() && keys.len() - first >= FEW_KEYS {
                many = Some(keys.drain(first..).collect());
            }
            let stands_twice = match &mut many {
                Some(many) => !many.insert(key.clone()),
                None => keys[first..].contains(&key),
            };
            if stands_twice {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format_args!("key {key:?} stands twice")));
            }
            if many.is_none() {
                keys.push(key);
            }
            map.next_value_seed(Check(&mut *keys))?;
        }
        keys.truncate(first);
        Ok(())
    }
}

/// Makes sure that text is one JSON value in which no object has a key twice, at any depth.
pub(super) fn check(text: &str) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_str(text);
    Check(&mut Vec::with_capacity(FEW_KEYS)).deserialize(&mut reader)?;
    reader.end()
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
    use serde_json::Value;

    #[test]
    fn a_key_twice_is_refused_at_any_depth() {
        let many = |last: &str| {
            let keys = (0..100).map(|key| format!(r#""k{key}":{{"k{key}":0}}"#)).collect::<Vec<_>>().join(",");
            format!(r"[{{{keys},{last}:1}}]")
        };
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"a":1,"a":2}]}"#,
            r#"{"id":1,"id":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"a":{"b":1}},"a":2}"#,
            &many(r#""k7""#),
            &many(r#""\u006b99""#),
        ] {
            assert!(check(text).unwrap_err().to_string().contains("stands twice"), "{text}");
        }
        check(r#"{"a":{"b":1,"a":2},"b":[{"a":1},{"a":1}]}"#).unwrap();
        check(&many(r#""k100""#)).unwrap();
    }

    #[test]
    fn what_is_too_deep_is_refused_in_our_words() {
        let deep = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(check(&deep(MAX_DEPTH - 1)).is_ok());
        let error = check(&deep(MAX_DEPTH)).unwrap_err();
        assert!(explain(&error).starts_with("nested deeper than 127 levels at line 1"), "{}", explain(&error));
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
        fn whatever_serde_json_writes_is_json(value in any_json()) {
            check(&value.to_string()).unwrap();
        }

        #[test]
        fn whatever_serde_json_does_not_read_is_none(text in r#"[\[\]{}:,"a0-9.eE+\\ utrfalsn-]{0,12}"#) {
            let stands_twice = check(&text).is_err_and(|error| error.to_string().contains("stands twice"));
            prop_assert_eq!(check(&text).is_ok() || stands_twice, serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
