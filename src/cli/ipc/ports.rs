//! `pando ipc ports`: where the primary can be reached.

use pando_ipc::{Endpoints, ports_for_path};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Palette};
use crate::cli::standing::Standing;

/// Show the ports and sockets of the primary, or the ports it would try first
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The lock file is the truth: what is advertised there is bound. Without a primary the ports are those that
the workdir's path suggests (40000 + FNV-1a-32 of the path % 20000).

Examples:
  pando ipc ports
  pando ipc ports --json | jq .rpc"
)]
pub(crate) struct Args {}

#[derive(Debug, Serialize)]
struct Doors {
    #[serde(rename = "pub")]
    publish: u16,
    rpc: u16,
    /// Whether a primary advertises them; else they are a guess.
    advertised: bool,
    endpoints: Endpoints,
}

/// Prints what the lock file says, or the guess.
pub(crate) fn run(_args: &Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let standing = Standing::of(&workdir).map_err(|error| Failure::lock(&error))?;
    let doors = match standing {
        Standing::Held(Some(holder)) => {
            let info = holder.info;
            Doors { publish: info.pub_port, rpc: info.rpc_port, advertised: true, endpoints: info.doors() }
        }
        Standing::Held(None) | Standing::Free(_) => {
            let hint = ports_for_path(workdir.path());
            Doors { publish: hint.publish, rpc: hint.rpc, advertised: false, endpoints: Endpoints::default() }
        }
    };
    if context.json() {
        return output::json_for_reader(&doors);
    }
    output::line(&human(&doors, context.palette()))
}

fn human(doors: &Doors, palette: Palette) -> String {
    let port = |port: u16| if port == 0 { "closed".to_owned() } else { port.to_string() };
    let mut facts = vec![("pub", port(doors.publish)), ("rpc", port(doors.rpc))];
    if doors.advertised {
        facts.extend(doors.endpoints.publish.iter().map(|endpoint| ("pub at", endpoint.clone())));
        facts.extend(doors.endpoints.rpc.iter().map(|endpoint| ("rpc at", endpoint.clone())));
    } else {
        facts.push(("state", "no primary; these ports would be tried first".to_owned()));
    }
    output::facts(&facts, palette)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
        let socket = |door: &str| vec![format!("ipc:///home/user/projects/pando/.pando/run/3-8cd20e.{door}")];
        let endpoints = Endpoints { publish: socket("pub"), rpc: socket("rpc") };
        human(&Doors { publish: 45337, rpc: 0, advertised: true, endpoints }, palette)
    }

    pub(crate) fn look_free(palette: Palette, _columns: Option<usize>) -> String {
        let doors = Doors { publish: 45337, rpc: 45338, advertised: false, endpoints: Endpoints::default() };
        human(&doors, palette)
    }
}
