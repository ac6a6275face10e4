//! `pando ipc describe`: what one method takes and answers.

use clap_complete::ArgValueCandidates;
use serde_json::{Value, json};

use super::methods;
use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{self, Palette, Table, cell};
use crate::cli::suggest;

/// How deep fields within fields are shown; --json has them all.
const DEPTH: usize = 3;

/// Show what a method takes and answers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --json it prints the method's part of the OpenRPC document, with JSON Schemas of params and result.

Examples:
  pando ipc describe events.since
  pando ipc describe db.exec --json | jq .result.schema"
)]
pub(crate) struct Args {
    /// Name of the method
    #[arg(add = ArgValueCandidates::new(live::methods))]
    method: String,
}

/// Prints it.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let document = context.call("rpc.discover", json!({})).await?;
    let found = document["methods"].as_array().into_iter().flatten().find(|method| method["name"] == args.method);
    let Some(method) = found else {
        let names = methods::names(&document);
        let near = suggest::nearest(&args.method, names.iter().map(String::as_str));
        let failure = Failure::new(Kind::Failed, format!("the primary has no method {:?}", args.method));
        let failure =
            if near.is_empty() { failure } else { failure.hint(format!("did you mean '{}'?", near.join("' or '"))) };
        return Err(failure.hint("list them: 'pando ipc methods'"));
    };
    if context.json() {
        return output::json_for_reader(method);
    }
    output::line(&human(method, context.palette(), context.width()))
}

fn human(method: &Value, palette: Palette, columns: Option<usize>) -> String {
    let mut parts = vec![format!("{}  {}", palette.heading(&cell(&method["name"])), cell(&method["summary"]))];
    let mut params = Table::new(["PARAM", "TYPE", "WHAT IT IS"]);
    for param in method["params"].as_array().into_iter().flatten() {
        let mark = if param["required"] == true { "" } else { "?" };
        fields(&mut params, &format!("{}{mark}", cell(&param["name"])), &param["schema"], DEPTH);
    }
    parts.push(if params.is_empty() {
        "It takes no params.".to_owned()
    } else {
        params.render_within(palette, columns)
    });
    let mut result = Table::new(["RESULT", "TYPE", "WHAT IT IS"]);
    members(&mut result, "", &method["result"]["schema"], DEPTH);
    parts.push(if result.is_empty() {
        "It answers what fits the call, or null.".to_owned()
    } else {
        result.render_within(palette, columns)
    });
    parts.join("\n\n")
}

/// Adds a row for a field, and below it those for its own fields.
fn fields(table: &mut Table, path: &str, schema: &Value, depth: usize) {
    let what = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
    table.row([path.to_owned(), kind(schema), what]);
    if depth > 0 {
        members(table, path, schema, depth - 1);
        members(table, &format!("{path}[]"), &schema["items"], depth - 1);
    }
}

fn members(table: &mut Table, path: &str, schema: &Value, depth: usize) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&json!(name)) { "" } else { "?" };
        let dot = if path.is_empty() { "" } else { "." };
        fields(table, &format!("{path}{dot}{name}{mark}"), member, depth);
    }
}

/// Returns a schema's type as people write it: `string`, `integer or null`, `array of string`.
fn kind(schema: &Value) -> String {
    let name = |name: &Value| match name.as_str() {
        Some("array") => match kind(&schema["items"]).as_str() {
            "any" => "array".to_owned(),
            items => format!("array of {items}"),
        },
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    };
    match &schema["type"] {
        Value::Array(names) => names.iter().map(name).collect::<Vec<_>>().join(" or "),
        one => name(one),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let method = json!({
            "name": "events.since", "summary": "Reads the journal, or waits for its next event.",
            "params": [
                {"name": "after", "required": false, "schema": {"type": ["integer", "null"], "description": "Return events behind this number."}},
                {"name": "topics", "required": true, "schema": {"type": "array", "items": {"type": "string"}}},
            ],
            "result": {"name": "result", "schema": {"type": "object", "required": ["head"], "properties": {
                "head": {"type": "integer", "description": "Number of the last journaled event; there is more to read while `upto` is below."},
                "events": {"type": "array", "items": {"type": "object", "properties": {"seq": {"type": "integer"}}}},
                "resync": true,
            }}},
        });
        human(&method, palette, columns)
    }

    #[test]
    fn a_method_without_params_says_so() {
        let text =
            human(&json!({"name": "a.b", "summary": "Does.", "params": [], "result": {}}), Palette::plain(), None);
        assert_eq!(text, "a.b  Does.\n\nIt takes no params.\n\nIt answers what fits the call, or null.");
    }
}
