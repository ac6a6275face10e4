//! `pando ipc call`: one method, one answer.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use pando_ipc::Kind as PeerKind;
use pando_ipc::client::{CallError, Client};
use pando_ipc::rpc::Json;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::methods;
use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::{output, suggest};

/// Call a method of the primary and print its result
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Params are JSON: the argument, or stdin when there is none or it is '-'. The result is JSON, over several lines
on a terminal and in one line otherwise.

Examples:
  pando ipc call instance.info
  pando ipc call session.get '{\"id\":\"s1\"}'
  echo '{\"session_id\":\"s1\",\"content\":\"hello\"}' | pando ipc call message.send"
)]
pub(crate) struct Args {
    /// Method to call; see 'pando ipc methods'
    #[arg(add = ArgValueCandidates::new(live::methods))]
    method: String,
    /// Its params as JSON, or '-' for stdin
    params: Option<String>,
}

/// Calls it.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let params = match args.params {
        Some(text) if text != "-" => parse(&text, "params")?,
        given => {
            if given.is_none() && io::stdin().is_terminal() {
                Json::of(&json!({}))
            } else {
                parse(&read_stdin(context.timeout()).await?, "params on stdin")?
            }
        }
    };
    let deadline = Instant::now() + context.timeout();
    let workdir = context.workdir()?;
    let client = context.client(&workdir, PeerKind::Client).await?;
    let outcome = match client.call_by(&args.method, params, deadline).await {
        Ok(result) => Ok(result),
        Err(CallError::Refused(fault)) if fault.is_method_not_found() => {
            Err(method_not_found(&args.method, &client, deadline).await)
        }
        Err(error) => Err(Failure::call(error, &workdir)),
    };
    client.close().await;
    output::json_for_reader(&outcome?)
}

/// Takes JSON that a person wrote, every digit as it is; nothing at all is an object without members.
pub(crate) fn parse(text: &str, what: &str) -> Result<Json, Failure> {
    if text.trim().is_empty() {
        return Ok(Json::of(&json!({})));
    }
    Json::parse(text).map_err(|error| {
        let near = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default().trim();
        let near: String = near.chars().take(60).collect();
        Failure::new(Kind::Usage, format!("{what} are not JSON: {error}, in {near:?}"))
            .hint("keep JSON in single quotes, so that the shell leaves it alone: '{\"session_id\":\"s1\"}'")
    })
}

/// Reads stdin to its end. One that somebody holds open and never closes must not hang a script.
async fn read_stdin(within: Duration) -> Result<String, Failure> {
    let reading = tokio::task::spawn_blocking(|| io::read_to_string(io::stdin()));
    let read = timeout(within, reading).await.map_err(|_| {
        Failure::new(Kind::Timeout, format!("stdin, where the params are read from, did not end within {within:?}"))
            .hint("give them as an argument: '{}' for none")
    })?;
    read.map_err(io::Error::other).flatten().map_err(|error| Failure::io("read stdin", &error))
}

async fn method_not_found(method: &str, client: &Client, deadline: Instant) -> Failure {
    let failure = Failure::new(Kind::Failed, format!("the primary has no method {method:?}"));
    let known = client.call_by("rpc.discover", json!({}), deadline).await.map(|document| methods::names(&document));
    let known = known.unwrap_or_default();
    let near = suggest::nearest(method, known.iter().map(String::as_str));
    let failure = match near.as_slice() {
        [] => failure,
        near => failure.hint(format!("did you mean '{}'?", near.join("' or '"))),
    };
    failure.hint("list them: 'pando ipc methods'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Palette;

    #[test]
    fn nothing_is_an_object_without_members() {
        let text = |given| parse(given, "params").unwrap().to_string();
        assert_eq!((text(" \n"), text("[1]")), ("{}".to_owned(), "[1]".to_owned()));
        assert_eq!(
            text("100000000000000000001"),
            "100000000000000000001",
            "what becomes of it is said by who takes it"
        );
    }

    #[test]
    fn bad_json_is_a_usage_error_with_its_position() {
        let failure = parse("{\n  id: 1}", "params").unwrap_err();
        assert_eq!(failure.kind.code(), 2);
        insta::assert_snapshot!(failure.render(Palette::plain(), false), @r#"
        error: params are not JSON: key must be a string at line 2 column 3, in "id: 1}"
        hint: keep JSON in single quotes, so that the shell leaves it alone: '{"session_id":"s1"}'
        "#);
    }
}
