//! What programs read has a published shape: `docs/schemas` for the command line, `rpc.discover` for the methods.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{PandoProcess, Sandbox, pando};

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

/// Returns where a value is not what its schema says.
fn violations(at: &str, value: &Value, schema: &Value) -> Vec<String> {
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
            found.extend(violations(
                &format!("{at}.{key}"),
                member,
                schema["properties"].get(key).unwrap_or(&json!(true)),
            ));
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
fn check(what: &str, value: &Value, schema: &Value) {
    let found = violations("", value, schema);
    assert!(found.is_empty(), "{what}: {found:#?}\n{value:#}");
}

fn published(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas").join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn said(sandbox: &Sandbox, args: &[&str]) -> Value {
    let outcome = pando(sandbox, args);
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error} in {outcome}"))
}

#[test]
fn a_wrong_value_is_seen() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": ["integer", "null"]}, "b": {"enum": ["x"]}}});
    assert_eq!(violations("", &json!({"a": null, "b": "x", "more": 1}), &schema), [""; 0]);
    assert_eq!(violations("", &json!({"a": "1", "b": "y"}), &schema).len(), 2);
    assert_eq!(violations("", &json!({}), &schema), [": a is missing"]);
    assert_eq!(violations("", &json!(1), &json!({"$ref": "x"})).len(), 1);
}

#[test]
fn the_command_lines_json_is_as_published() {
    let sandbox = Sandbox::new();
    check("status, free", &said(&sandbox, &["status", "--json"]), &published("status"));
    check("doctor, free", &said(&sandbox, &["doctor", "--json"]), &published("doctor"));
    let (instance, _) = PandoProcess::primary(&sandbox);
    assert_eq!(pando(&sandbox, &["ipc", "publish", "note.made", "{}"]).code, Some(0));
    let events = pando(&sandbox, &["ipc", "tail", "--json", "--since", "all", "--until", "now", "--cursor", "c"]);
    assert!(events.stdout.lines().count() >= 2, "{events}");
    for line in events.stdout.lines() {
        check("an event", &serde_json::from_str(line).unwrap(), &published("event"));
    }
    check("cursors", &said(&sandbox, &["ipc", "cursors", "--json"]), &published("cursors"));
    check("status, led", &said(&sandbox, &["status", "--json", "--diag"]), &published("status"));
    check("doctor, led", &said(&sandbox, &["doctor", "--json"]), &published("doctor"));
    instance.signal(rustix::process::Signal::STOP);
    check("status, silent", &said(&sandbox, &["status", "--json"]), &published("status"));
    check("doctor, silent", &said(&sandbox, &["doctor", "--json"]), &published("doctor"));
}

#[test]
fn role_lines_are_as_published() {
    let sandbox = Sandbox::new();
    let mut instance = PandoProcess::start(&sandbox, &[]);
    let line =
        instance.wait_for("a role", std::time::Duration::from_secs(10), |line| serde_json::from_str(&line.text).ok());
    check("a role", &line, &published("role"));
}

#[test]
fn what_methods_answer_is_as_they_describe_it() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    assert_eq!(pando(&sandbox, &["ipc", "publish", "note.made", "{}"]).code, Some(0));
    for (method, params) in [
        ("instance.ping", "{}"),
        ("instance.info", "{}"),
        ("instance.list", "{}"),
        ("instance.doors", "{}"),
        ("instance.metrics", "{}"),
        ("state.sync", "{}"),
        ("session.list", "{}"),
        ("events.publish", r#"{"topic":"note.made"}"#),
        ("events.since", r#"{"after":0}"#),
        ("events.head", "{}"),
        ("events.ack", r#"{"cursor":"c","seq":1}"#),
        ("events.cursors", "{}"),
        ("db.query", r#"{"sql":"SELECT 1"}"#),
    ] {
        let described = said(&sandbox, &["ipc", "describe", method, "--json"]);
        check(method, &said(&sandbox, &["ipc", "call", method, params, "--json"]), &described["result"]["schema"]);
        let given: Value = serde_json::from_str(params).unwrap();
        for param in described["params"].as_array().unwrap() {
            match given.get(param["name"].as_str().unwrap()) {
                Some(value) => check(method, value, &param["schema"]),
                None => assert_ne!(param["required"], true, "{method} wants {}", param["name"]),
            }
        }
    }
    let misspelt = pando(&sandbox, &["ipc", "describe", "events.sinse"]);
    assert!(misspelt.stderr.contains("did you mean 'events.since'?"), "{misspelt}");
}
