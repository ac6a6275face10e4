//! `pando ipc publish`: one event for everybody.

use clap_complete::ArgValueCandidates;
use pando_ipc::{Topic, hello};
use serde_json::{Value, json};

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

/// Publishes it.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let payload = args.payload.as_deref().map_or(Ok(Value::Null), |text| call::parse(text, "payloads"))?;
    let mut params = json!({"topic": args.topic, "payload": payload});
    if let Some(session) = args.session {
        params["session_id"] = session.into();
    }
    if args.ephemeral {
        params["durable"] = false.into();
    }
    let answer = context.call(hello::PUBLISH, params).await?;
    match (context.json(), &answer["seq"]) {
        (true, _) => output::json(&answer),
        (false, Value::Number(seq)) => output::line(&format!("published {} as seq {seq}", args.topic)),
        (false, _) => output::line(&format!("published {}, without a number", args.topic)),
    }
}
