//! A look into JSON text, one level at a time: what nobody asks for is passed over, not read.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A value inside of JSON text. The text is known to be JSON; its meaning is not read yet.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a>(pub(super) &'a str);

/// A member's name; borrowed when nothing in it is escaped.
#[derive(Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl<'a> Raw<'a> {
    /// Returns the text.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Tells whether it is null.
    pub fn is_null(self) -> bool {
        self.as_str() == "null"
    }

    /// Reads it as `T`.
    pub fn read<T: Deserialize<'a>>(self) -> serde_json::Result<T> {
        serde_json::from_str(self.as_str())
    }

    /// Reads a string.
    pub fn text(self) -> Option<Cow<'a, str>> {
        self.read::<Name<'_>>().ok().map(|name| name.0)
    }

    /// Returns the members of an object, in order.
    pub fn members(self) -> Option<Vec<(Cow<'a, str>, Self)>> {
        if !self.as_str().starts_with('{') {
            return None;
        }
        serde_json::Deserializer::from_str(self.as_str()).deserialize_map(Members).ok()
    }

    /// Returns a member of an object.
    pub fn member(self, name: &str) -> Option<Self> {
        self.members()?.into_iter().find_map(|(other, value)| (other == name).then_some(value))
    }

    /// Returns the elements of an array.
    pub fn elements(self) -> Option<Vec<Self>> {
        if !self.as_str().starts_with('[') {
            return None;
        }
        serde_json::Deserializer::from_str(self.as_str()).deserialize_seq(Elements).ok()
    }
}

/// Reads the members of one object.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, Raw<'de>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((Name(name), value)) = map.next_entry::<_, &RawValue>()? {
            members.push((name, Raw(value.get())));
        }
        Ok(members)
    }
}

/// Reads the elements of one array.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<Raw<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element::<&RawValue>()? {
            elements.push(Raw(element.get()));
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Json;

    #[test]
    fn one_level_is_read_and_the_next_is_text() {
        let json = Json::of(&serde_json::json!({"a\n": [1, "x\u{1}", null], "b": {"c": 1}, "d": "plain"}));
        let members = json.raw().members().unwrap();
        let seen: Vec<_> = members.iter().map(|(name, value)| (&**name, value.as_str())).collect();
        assert_eq!(seen, [("a\n", r#"[1,"x\u0001",null]"#), ("b", r#"{"c":1}"#), ("d", r#""plain""#)]);
        let elements = members[0].1.elements().unwrap();
        assert_eq!((elements[0].read::<u64>().unwrap(), elements[2].is_null()), (1, true));
        assert_eq!((elements[1].text().as_deref(), members[2].1.text().as_deref()), (Some("x\u{1}"), Some("plain")));
        assert!(elements[0].text().is_none() && members[0].1.members().is_none() && members[1].1.elements().is_none());
    }
}
