//! Which events are shown: by session, instance and content.

use std::collections::BTreeMap;

use pando_ipc::Envelope;
use pando_ipc::rpc::Json;
use serde_json::Value;

/// What an event must have at a path: one of these texts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    path: String,
    value: String,
}

/// What an event has; all else is in its payload.
const FIELDS: [&str; 10] =
    ["topic", "seq", "timestamp", "instanceId", "sessionId", "projectId", "payload", "epoch", "prev", "n"];

/// Tells what is wrong with a path that leads nowhere in any event.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let first = path.split('.').next().unwrap_or_default();
    if FIELDS.contains(&first) {
        return Ok(());
    }
    Err(format!("an event has no {first:?}; did you mean payload.{path}? It has {}", FIELDS.join(", ")))
}

/// Reads `payload.role=user`.
pub(super) fn parse_condition(text: &str) -> Result<Condition, String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => {
            check_path(path)?;
            Ok(Condition { path: path.to_owned(), value: value.to_owned() })
        }
        _ => Err("write PATH=VALUE, such as payload.role=user".to_owned()),
    }
}

/// Selects events; an empty selection selects all.
#[derive(Debug, Default)]
pub(super) struct Selection {
    sessions: Vec<String>,
    instances: Vec<String>,
    /// The texts wanted at each path: any of them, at every path.
    wanted: BTreeMap<String, Vec<String>>,
}

impl Selection {
    pub(super) fn new(sessions: Vec<String>, instances: Vec<String>, conditions: Vec<Condition>) -> Self {
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Condition { path, value } in conditions {
            wanted.entry(path).or_default().push(value);
        }
        Self { sessions, instances, wanted }
    }

    /// Tells whether an event is shown.
    pub(super) fn selects(&self, event: &Envelope) -> bool {
        let among = |wanted: &[String], id: &String| wanted.is_empty() || wanted.contains(id);
        if !among(&self.sessions, &event.session_id) || !among(&self.instances, &event.instance_id) {
            return false;
        }
        if self.wanted.is_empty() {
            return true;
        }
        let event = tree(event);
        self.wanted.iter().all(|(path, texts)| at(&event, path).is_some_and(|value| texts.contains(&plain(value))))
    }
}

/// Returns an event as a tree; a payload that cannot be one, for it is nested too deep, is its text.
pub(super) fn tree(event: &Envelope) -> Value {
    let as_text = |_| {
        let mut event = event.clone();
        event.payload = Json::of(&event.payload.to_string());
        serde_json::to_value(&event)
    };
    serde_json::to_value(event).or_else(as_text).unwrap_or_default()
}

/// Returns what is at a path of keys and indexes, such as `payload.parts.0.text`.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    })
}

/// Returns a value as text: strings without quotes, all else as JSON.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use pando_ipc::Topic;
    use serde_json::json;

    use super::*;

    fn event() -> Envelope {
        let payload = json!({"role": "user", "n": 7, "parts": [{"text": "a=b"}], "none": null});
        let mut event = Envelope::new("inst-A", Topic::known("message.append"), payload);
        event.session_id = "s1".into();
        event
    }

    #[track_caller]
    fn check_selects(sessions: &[&str], instances: &[&str], conditions: &[&str], expected: bool) {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let conditions = conditions.iter().map(|text| parse_condition(text).unwrap()).collect();
        let selection = Selection::new(owned(sessions), owned(instances), conditions);
        assert_eq!(selection.selects(&event()), expected, "{selection:?}");
    }

    #[test]
    fn values_of_one_path_are_alternatives_and_paths_add_up() {
        check_selects(&[], &[], &[], true);
        check_selects(&[], &[], &["payload.role=system", "payload.role=user"], true);
        check_selects(&[], &[], &["payload.role=user", "payload.n=7", "payload.parts.0.text=a=b"], true);
        check_selects(&[], &[], &["payload.role=user", "payload.n=8"], false);
        check_selects(&[], &[], &["payload.none=null", "topic=message.append"], true);
        check_selects(&[], &[], &["payload.missing=null"], false);
    }

    #[test]
    fn the_fields_are_those_of_an_event() {
        let (mut event, known) = (event(), |key: &String| FIELDS.contains(&key.as_str()));
        (event.epoch, event.seq, event.prev, event.n) = (Some(1), Some(2), Some(1), Some(1));
        let event = tree(&event);
        let fields: Vec<_> = event.as_object().unwrap().keys().collect();
        assert!(fields.len() == FIELDS.len() && fields.into_iter().all(known), "{event}");
    }

    #[test]
    fn a_payload_that_is_too_deep_for_a_tree_is_its_text() {
        let text = "[".repeat(200) + &"]".repeat(200);
        let event = Envelope::new("i", Topic::known("a"), serde_json::from_str::<Json>(&text).unwrap());
        assert_eq!((&tree(&event)["topic"], &tree(&event)["payload"]), (&json!("a"), &json!(text)));
    }

    #[test]
    fn a_session_and_an_instance_are_selected_by_their_ids() {
        check_selects(&["s0", "s1"], &["inst-A"], &[], true);
        check_selects(&["s0"], &[], &[], false);
        check_selects(&["s1"], &["inst-B"], &[], false);
    }

    #[test]
    fn a_condition_has_a_path_and_a_value() {
        assert!(parse_condition("payload.role").is_err() && parse_condition("=user").is_err());
        assert!(parse_condition("payload.role=").is_ok());
        let wrong = parse_condition("role=user").unwrap_err();
        assert!(wrong.contains("did you mean payload.role?"), "{wrong}");
    }
}
