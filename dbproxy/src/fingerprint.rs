//! What binds an op id to the work that it was first used for.
//!
//! Fingerprints are stored: what is fed here, and in which order, must not change. Every part is fed as a tag, its length and its bytes, so that
//! no two works feed the same.

use std::hash::Hasher;

use fnv::FnvHasher;
use serde_json::Value;

use crate::params::{Param, Params};
use crate::value::SqlValue;
use crate::write::Work;

/// Returns the fingerprint of a work.
pub(crate) fn of(work: &Work) -> u64 {
    let mut feed = Feed(FnvHasher::default());
    feed.work(work);
    feed.0.finish()
}

struct Feed(FnvHasher);

impl Feed {
    fn part(&mut self, tag: u8, bytes: &[u8]) {
        self.0.write(&[tag]);
        self.0.write(&(bytes.len() as u64).to_le_bytes());
        self.0.write(bytes);
    }

    fn text(&mut self, text: &str) {
        self.part(b's', text.as_bytes());
    }

    /// Says what follows, and how many of it.
    fn group(&mut self, tag: u8, count: usize) {
        self.part(tag, &(count as u64).to_le_bytes());
    }

    fn work(&mut self, work: &Work) {
        match work {
            Work::Exec { statements, ddl } => {
                self.group(if *ddl { b'D' } else { b'E' }, statements.len());
                for statement in statements {
                    self.text(&statement.sql);
                    self.params(&statement.params);
                }
            }
            Work::Named { method, params } => {
                self.part(b'N', method.as_bytes());
                self.json(params);
            }
            Work::Publish { topic, payload, session_id, project_id } => {
                self.part(b'P', topic.as_str().as_bytes());
                match payload.read() {
                    Ok(value) => self.json(&value),
                    // Nested too deep, or a number too large: it stands for itself.
                    Err(_) => self.text(payload.as_str()),
                }
                self.text(session_id);
                self.text(project_id);
            }
            Work::Settle => self.group(b'S', 0),
        }
    }

    fn params(&mut self, params: &Params) {
        match params {
            Params::Positional(values) => {
                self.group(b'p', values.len());
                for value in values {
                    self.param(value);
                }
            }
            Params::Named(values) => {
                self.group(b'm', values.len());
                let mut values: Vec<_> = values.iter().collect();
                values.sort_by_key(|(name, _)| name);
                for (name, value) in values {
                    self.text(name);
                    self.param(value);
                }
            }
        }
    }

    fn param(&mut self, param: &Param) {
        match param {
            Param::Value(value) => self.value(value),
            Param::RowId { statement } => self.group(b'i', *statement),
            Param::Returned { statement, row, column } => {
                self.group(b'r', *statement);
                self.group(b'r', *row);
                self.text(column);
            }
        }
    }

    fn value(&mut self, value: &SqlValue) {
        match value {
            SqlValue::Null => self.part(b'0', &[]),
            SqlValue::Integer(integer) => self.part(b'n', &integer.to_le_bytes()),
            // There are many that are not a number; on the wire they are one.
            SqlValue::Real(real) if real.is_nan() => self.part(b'f', b"nan"),
            SqlValue::Real(real) => self.part(b'f', &real.to_bits().to_le_bytes()),
            SqlValue::Text(text) => self.text(text),
            SqlValue::Blob(bytes) => self.part(b'x', bytes),
        }
    }

    /// Feeds JSON so that the order of keys does not matter.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Null => self.part(b'0', &[]),
            Value::Bool(truth) => self.part(b'b', &[u8::from(*truth)]),
            Value::Number(number) => self.part(b'n', number.to_string().as_bytes()),
            Value::String(text) => self.text(text),
            Value::Array(values) => {
                self.group(b'a', values.len());
                for value in values {
                    self.json(value);
                }
            }
            Value::Object(map) => {
                self.group(b'o', map.len());
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_by_key(|(key, _)| *key);
                for (key, value) in pairs {
                    self.text(key);
                    self.json(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pando_ipc::Topic;
    use serde_json::json;

    use super::*;
    use crate::write::Statement;

    fn publish(payload: Value) -> u64 {
        let (session_id, project_id) = (String::new(), String::new());
        of(&Work::Publish { topic: Topic::known("a.b"), payload: payload.into(), session_id, project_id })
    }

    fn exec(sql: &str, params: impl Into<Params>) -> u64 {
        of(&Work::Exec { statements: vec![Statement::new(sql, params)], ddl: false })
    }

    #[test]
    fn a_fingerprint_is_bound_to_the_content_and_not_to_the_order_of_keys() {
        assert_eq!(publish(json!({"a": 1, "b": [2.5, null]})), publish(json!({"b": [2.5, null], "a": 1})));
        assert_ne!(publish(json!({"a": 1})), publish(json!({"a": "1"})));
        assert_ne!(publish(json!(["ab", "c"])), publish(json!(["a", "bc"])));
        assert_ne!(publish(json!([[1], 2])), publish(json!([[1, 2]])));
        let named = |pairs: [(&str, i64); 2]| exec("x", Params::named(pairs));
        assert_eq!(named([("a", 1), ("b", 2)]), named([("b", 2), ("a", 1)]));
        assert_ne!(named([("a", 1), ("b", 2)]), named([("a", 2), ("b", 1)]));
        assert_ne!(exec("x", [1]), exec("x", [1.0]));
        assert_ne!(exec("x", ["1"]), exec("x", [1]));
        assert_ne!(exec("x", [vec![b'1']]), exec("x", ["1"]));
        assert_ne!(exec("x", [Param::RowId { statement: 0 }]), exec("x", [0]));
    }

    #[test]
    fn stored_fingerprints_stay_what_they_are() {
        assert_eq!(exec("INSERT INTO t VALUES (?1, ?2)", (7, "seven")), 5_618_376_924_983_073_440);
        assert_eq!(publish(json!({"n": 1})), 16_145_876_348_345_022_079);
    }
}
