//! `pando ipc`: talk to the primary of this workdir.

pub(crate) mod call;
pub(crate) mod cursors;
pub(crate) mod describe;
pub(crate) mod doors;
pub(crate) mod evict;
pub(crate) mod instances;
pub(crate) mod methods;
pub(crate) mod ports;
pub(crate) mod publish;
pub(crate) mod tail;

use clap::Subcommand;

use super::context::Context;
use super::failure::Failure;
use super::status;

/// Talk to the primary: call methods, follow and publish events
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(status::Args),
    Instances(instances::Args),
    Doors(doors::Args),
    Ports(ports::Args),
    Call(call::Args),
    Tail(tail::Args),
    Cursors(cursors::Args),
    Publish(publish::Args),
    Methods(methods::Args),
    Describe(describe::Args),
    Evict(evict::Args),
}

/// Runs one of them.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Status(args) => status::run(args, context).await,
        Command::Instances(args) => instances::run(args, context).await,
        Command::Doors(args) => doors::run(args, context).await,
        Command::Ports(args) => ports::run(&args, context),
        Command::Call(args) => call::run(args, context).await,
        Command::Tail(args) => tail::run(args, context).await,
        Command::Cursors(args) => cursors::run(args, context).await,
        Command::Publish(args) => publish::run(args, context).await,
        Command::Describe(args) => describe::run(args, context).await,
        Command::Methods(args) => methods::run(args, context).await,
        Command::Evict(args) => evict::run(args, context).await,
    }
}
