//! `rpc.discover`: the methods describe themselves.

use std::sync::LazyLock;

use pando_ipc::access::Capability::Read;
use pando_ipc::rpc::Json;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Method, NoParams, table};

/// An OpenRPC document, see <https://spec.open-rpc.org>.
#[derive(Debug, serde::Serialize, JsonSchema)]
struct Document(Map<String, Value>);

pub(super) fn methods() -> Vec<Method> {
    vec![Method::new(
        "rpc.discover",
        Read,
        "Describes every method as an OpenRPC document.",
        |_primary, _caller, NoParams {}| async {
            static DOCUMENT: LazyLock<Document> = LazyLock::new(document);
            Ok(&*DOCUMENT)
        },
    )]
}

/// Returns the OpenRPC document of this release's methods, as `rpc.discover` of a primary of this release does.
///
/// It needs no primary: for tools that describe or complete what can be called.
pub fn open_rpc() -> Value {
    Value::Object(document().0)
}

fn document() -> Document {
    let mut generator = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut methods: Vec<Value> = Vec::new();
    for method in table() {
        let params = (method.params)(&mut generator).to_value();
        let result = (method.result)(&mut generator).to_value();
        methods.push(json!({
            "name": method.name,
            "summary": method.summary,
            "x-needs": method.needs.of(&Json::null()),
            "paramStructure": "by-name",
            "params": content_descriptors(&params),
            "result": {"name": "result", "schema": result},
        }));
    }
    let document = json!({
        "openrpc": "1.3.2",
        "info": {"title": "Pando", "version": env!("CARGO_PKG_VERSION")},
        "methods": methods,
    });
    match document {
        Value::Object(map) => Document(map),
        _ => Document(Map::new()),
    }
}

/// Turns the schema of a params object into OpenRPC's list of named params.
fn content_descriptors(schema: &Value) -> Vec<Value> {
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    properties
        .into_iter()
        .map(|(name, schema)| json!({"name": name, "required": required.contains(&json!(name)), "schema": schema}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_method() {
        let Document(document) = document();
        let described = document["methods"].as_array().unwrap();
        assert_eq!(described.len(), table().len());
        let get = described.iter().find(|method| method["name"] == "session.get").unwrap();
        assert_eq!(get["params"][0]["name"], "id");
        assert_eq!(get["params"][0]["required"], true);
    }
}
