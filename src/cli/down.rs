//! `pando down`: ends the instances that `pando up` runs here.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use pando_ipc::client::Client;
use pando_ipc::{Kind as PeerKind, Workdir};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::completions::live;
use super::context::Context;
use super::failure::{Failure, Kind};
use super::lifecycle::Stuck;
use super::output;
use super::standing::Standing;

/// Pause between two looks at who is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long one look may take while the primary's role moves on.
const LOOK: Duration = Duration::from_millis(500);

/// End the instances that 'pando up' runs in this workdir, and wait until they are gone
///
/// Instances inside other programs, such as an editor, stay; one of them becomes primary. Where nobody is, there is
/// nothing to stop: that is said, and is no failure.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando down                     end all
  pando down --timeout 1m        give them longer to finish what is in flight
  pando down --instance ID       end one")]
pub(crate) struct Args {
    /// End this instance alone; see 'pando ipc instances'
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(live::instances))]
    instance: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    asked: Vec<String>,
}

#[derive(Deserialize)]
struct Present {
    instances: Vec<PresentInstance>,
}

#[derive(Deserialize)]
struct PresentInstance {
    instance_id: String,
}

/// Asks, waits and says who is gone.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let deadline = Instant::now() + context.timeout();
    let workdir = context.workdir()?;
    if let Ok(Standing::Free(_)) = Standing::of(&workdir) {
        return match Stuck::of(&workdir) {
            // It is here, and nobody can ask it to leave.
            Some(_) => Err(Failure::no_primary(&workdir)),
            None => say(context, &[], &nobody(workdir.path())),
        };
    }
    let client = context.client(&workdir, PeerKind::Client).await?;
    let params = args.instance.as_ref().map_or_else(|| json!({}), |id| json!({"instance_id": id}));
    let answer =
        client.call_by("instance.stop", params, deadline).await.map_err(|error| Failure::call(error, &workdir))?;
    let asked = serde_json::from_value::<Asked>(answer)
        .map_err(|error| {
            Failure::new(Kind::Failed, format!("instance.stop answered something else than documented: {error}"))
        })?
        .asked;
    if asked.is_empty() {
        client.close().await;
        return say(context, &[], NONE_OF_OURS);
    }
    let mut left: BTreeSet<String> = asked.iter().cloned().collect();
    while !left.is_empty() {
        if Instant::now() >= deadline {
            let names: Vec<&str> = left.iter().map(String::as_str).collect();
            return Err(Failure::new(
                Kind::Timeout,
                format!("asked to stop, but still here after {:?}: {}", context.timeout(), names.join(", ")),
            )
            .hint("an instance inside another program stays until that program ends; see 'pando ipc instances'"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Some(present) = present(&client, &workdir).await? {
            left.retain(|id| present.contains(id));
        }
    }
    client.close().await;
    say(context, &asked, &stopped(&asked))
}

/// Said when nobody can be asked to stop.
const NONE_OF_OURS: &str = "nothing to stop: the instances here run inside other programs; see 'pando ipc instances'";

fn nobody(workdir: &Path) -> String {
    format!("nothing to stop: no primary in {} (lock is free)", workdir.display())
}

fn stopped(asked: &[String]) -> String {
    let noun = if asked.len() == 1 { "instance" } else { "instances" };
    format!("stopped {} {noun}: {}", asked.len(), asked.join(", "))
}

/// Returns who is in the workdir, or `None` while that cannot be told.
async fn present(client: &Client, workdir: &Workdir) -> Result<Option<BTreeSet<String>>, Failure> {
    match Standing::of(workdir).map_err(|error| Failure::lock(&error))? {
        Standing::Free(_) => return Ok(Some(BTreeSet::new())),
        Standing::Held(_) => {}
    }
    let Ok(answer) = client.call_by("instance.list", json!({}), Instant::now() + LOOK).await else { return Ok(None) };
    let present = serde_json::from_value::<Present>(answer).ok();
    Ok(present.map(|present| present.instances.into_iter().map(|instance| instance.instance_id).collect()))
}

fn say(context: &Context, stopped: &[String], text: &str) -> Result<(), Failure> {
    match (context.json(), context.quiet()) {
        (true, _) => output::json(&json!({"stopped": stopped, "note": Value::from(text)})),
        (false, true) => Ok(()),
        (false, false) => output::line(text),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let ids = ["inst-a", "inst-b"].map(str::to_owned);
        [nobody("/w".as_ref()), NONE_OF_OURS.to_owned(), stopped(&ids[..1]), stopped(&ids)].join("\n")
    }
}
