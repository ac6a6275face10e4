//! `pando ipc methods`: what the primary can be asked.

use serde_json::{Value, json};

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Table, WIDE, cell};

/// List the methods of the primary
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --json it prints the OpenRPC document of 'rpc.discover'; 'pando ipc describe METHOD' shows what one takes and answers.

Examples:
  pando ipc methods
  pando ipc methods --json | jq -r '.methods[].name'"
)]
pub(crate) struct Args {}

/// Prints the list.
pub(crate) async fn run(_args: Args, context: &Context) -> Result<(), Failure> {
    let document = context.call("rpc.discover", json!({})).await?;
    if context.json() {
        output::json_for_reader(&document)
    } else {
        output::line(&table(&document, context.width()).render_within(context.palette(), context.width()))
    }
}

/// Returns the names in an OpenRPC document.
pub(crate) fn names(document: &Value) -> Vec<String> {
    all(document).filter_map(|method| Some(method["name"].as_str()?.to_owned())).collect()
}

fn all(document: &Value) -> impl Iterator<Item = &Value> {
    document["methods"].as_array().into_iter().flatten()
}

/// Returns the methods; a narrow terminal leaves their params to `describe`.
fn table(document: &Value, width: Option<usize>) -> Table {
    let is_wide = width.is_none_or(|width| width >= WIDE);
    let titles = ["METHOD", "NEEDS", "PARAMS", "WHAT IT DOES"];
    let mut table = Table::new(titles.into_iter().filter(|title| is_wide || *title != "PARAMS"));
    for method in all(document) {
        let params: Vec<String> = method["params"].as_array().into_iter().flatten().map(param).collect();
        let summary = if method["summary"].is_null() { &method["description"] } else { &method["summary"] };
        let summary = if summary.is_null() { String::new() } else { cell(summary) };
        let needs = method["x-needs"].as_str().unwrap_or("-").to_owned();
        let params = is_wide.then(|| params.join(" "));
        table.row([Some(cell(&method["name"])), Some(needs), params, Some(summary)].into_iter().flatten());
    }
    table
}

/// A param's name, with a question mark when it may be left out.
fn param(param: &Value) -> String {
    let optional = if param["required"].as_bool().unwrap_or(false) { "" } else { "?" };
    format!("{}{optional}", cell(&param["name"]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    fn document() -> Value {
        json!({"methods": [
            {"name": "instance.ping", "summary": "Tells that the primary is alive.", "x-needs": "read", "params": []},
            {"name": "session.list", "params": [{"name": "limit", "schema": {}}, {"name": "id", "required": true}]},
            {"name": "events.since", "summary": "Reads the journal, or waits for its next event.", "x-needs": "read",
                "params": [{"name": "after"}, {"name": "cursor"}, {"name": "topics"}, {"name": "limit"}, {"name": "wait_ms"}]},
        ]})
    }

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        table(&document(), columns).render_within(palette, columns)
    }

    #[test]
    fn names_are_those_of_the_document() {
        assert_eq!(names(&document()), ["instance.ping", "session.list", "events.since"]);
    }
}
