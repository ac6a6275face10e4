//! As much of JSON Schema, draft 7, as our schemas use.

use serde_json::{Value, json};

/// Keywords of JSON Schema, draft 7, that our schemas use and this reads. Another one is an error, not silence.
const KNOWN: [&str; 22] = [
    "$schema",
    "title",
    "description",
    "type",
    "enum",
    "const",
    "required",
    "properties",
    "items",
    "anyOf",
    "oneOf",
    "allOf",
    "format",
    "minimum",
    "maximum",
    "default",
    "additionalProperties",
    "minItems",
    "maxItems",
    "prefixItems",
    "writeOnly",
    "readOnly",
];

/// Returns where a value is not what its schema says, or has what its schema does not speak of.
pub(crate) fn violations(at: &str, value: &Value, schema: &Value) -> Vec<String> {
    let Value::Object(rules) = schema else {
        return if *schema == json!(false) { vec![format!("{at}: must not be there")] } else { vec![] };
    };
    let mut found: Vec<String> = rules
        .keys()
        .filter(|key| !KNOWN.contains(&key.as_str()))
        .map(|key| format!("{at}: the schema uses {key}"))
        .collect();
    let is_a = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    };
    let fits = match &schema["type"] {
        Value::Null => true,
        Value::Array(names) => names.iter().any(is_a),
        name => is_a(name),
    };
    if !fits {
        found.push(format!("{at}: {value} is no {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        found.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    if rules.get("const").is_some_and(|only| only != value) {
        found.push(format!("{at}: {value} is not {}", schema["const"]));
    }
    if let Value::Object(members) = value {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        found.extend(required.filter(|key| !members.contains_key(*key)).map(|key| format!("{at}: {key} is missing")));
        for (key, member) in members {
            let described = schema["properties"].get(key).or_else(|| rules.get("additionalProperties"));
            // More keys may follow in a later release; those of this one are to be described.
            if described.is_none() && rules.contains_key("properties") {
                found.push(format!("{at}.{key}: is not described"));
            }
            found.extend(violations(&format!("{at}.{key}"), member, described.unwrap_or(&json!(true))));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(violations(&format!("{at}[{index}]"), item, rules.get("items").unwrap_or(&json!(true))));
    }
    for all in schema["allOf"].as_array().into_iter().flatten() {
        found.extend(violations(at, value, all));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(any) =
            schema[key].as_array().filter(|any| any.iter().all(|one| !violations(at, value, one).is_empty()))
        {
            found.push(format!("{at}: {value} is none of {any:?}"));
        }
    }
    found
}

#[track_caller]
pub(crate) fn check(what: &str, value: &Value, schema: &Value) {
    let found = violations("", value, schema);
    assert!(found.is_empty(), "{what}: {found:#?}\n{value:#}");
}

#[test]
fn a_wrong_value_is_seen() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": ["integer", "null"]}, "b": {"enum": ["x"]}}});
    assert_eq!(violations("", &json!({"a": null, "b": "x"}), &schema), [""; 0]);
    assert_eq!(violations("", &json!({"a": "1", "b": "y"}), &schema).len(), 2);
    assert_eq!(violations("", &json!({}), &schema), [": a is missing"]);
    assert_eq!(violations("", &json!({"a": 1, "more": 1}), &schema), [".more: is not described"]);
    assert_eq!(violations("", &json!({"x": 1}), &json!({"additionalProperties": {"type": "string"}})).len(), 1);
    assert_eq!(violations("", &json!(1), &json!({"$ref": "x"})).len(), 1);
}
