//! `pando ipc publish`: one event for everybody.

use clap_complete::ArgValueCandidates;
use pando_ipc::rpc::Json;
use pando_ipc::{Topic, hello};
use serde::Serialize;
use serde_json::Value;

use super::call;
use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output;

/// Publish an event
#[derive(Debug, clap::Args)]
#[command(after_help = "A durable event is in the journal before this returns; its number is printed.

Examples:
  pando ipc publish build.done '{\"ok\":true}'
  pando ipc publish llm.token '{\"text\":\"a\"}' --session s1 --ephemeral")]
pub(crate) struct Args {
    /// Topic, such as 'build.done'
    #[arg(add = ArgValueCandidates::new(live::topics))]
    topic: Topic,
    /// Payload as JSON [default: null]
    payload: Option<String>,
    /// Session it belongs to
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(live::sessions))]
    session: Option<String>,
    /// Skip the journal: no number, and followers may miss it
    #[arg(long)]
    ephemeral: bool,
}

/// What the primary is asked.
#[derive(Serialize)]
struct Params<'a> {
    topic: &'a Topic,
    payload: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    durable: Option<bool>,
}

/// Publishes it.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let payload = args.payload.as_deref().map_or(Ok(Json::null()), |text| call::parse(text, "payloads"))?;
    let Args { topic, session, ephemeral, .. } = &args;
    let params = Params { topic, payload, session_id: session.as_deref(), durable: ephemeral.then_some(false) };
    let answer = context.call(hello::PUBLISH, params).await?;
    if context.json() { output::json(&answer) } else { output::line(&human(&args.topic, &answer["seq"])) }
}

fn human(topic: &Topic, seq: &Value) -> String {
    match seq {
        Value::Number(seq) => format!("published {topic} as seq {seq}"),
        _ => format!("published {topic}, without a number"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let topic = Topic::known("build.done");
        format!("{}\n{}", human(&topic, &json!(42)), human(&topic, &Value::Null))
    }
}
