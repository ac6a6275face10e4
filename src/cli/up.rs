//! `pando up`: one instance, until it is told to stop.

mod detach;
mod ping;
mod replace;
pub(super) mod role;
#[cfg(feature = "failpoints")]
mod trial;

use std::time::Duration;

use clap::ValueEnum;
use pando::{Instance, JoinError, Options, TcpDoor};
use pando_ipc::Workdir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::context::Context;
use super::demo::load;
use super::duration;
use super::failure::{Failure, Kind};
use pando_ipc::Holder;
use pando_ipc::client::CallError;

use role::Reporter;
pub(crate) use role::{RoleLine, RoleName};

/// Run an instance of this workdir until it is told to stop
///
/// It is primary when nobody else is, else a secondary that takes over when the primary goes. Each change of role is one
/// line on stdout. SIGTERM and 'pando down' end it in good order with exit code 0, Ctrl-C with 130.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  pando up                       run here, in the foreground
  pando up --detach              run in the background; the log is .pando/up.log
  pando up --require-primary     be the primary, or fail with exit code 75
  pando up --replace --detach    upgrade in place: the new program takes over from the old one
  pando up --json                one JSON line per change of role")]
#[expect(clippy::struct_excessive_bools, reason = "each is one option of the command line")]
pub(crate) struct Args {
    /// Start in the background, wait for the role, print it and return
    #[arg(long)]
    detach: bool,
    /// Fail when somebody else is primary, instead of standing by
    #[arg(long)]
    require_primary: bool,
    /// Take over from the primary without a failed call, then end it if it is a 'pando up' too
    #[arg(long, conflicts_with = "require_primary")]
    replace: bool,
    /// Open no TCP ports when primary; other programs then need the Unix sockets
    #[arg(long)]
    no_tcp: bool,
    /// Let in TCP peers whose user the system does not tell, too; for a machine that is yours alone
    #[arg(long, conflicts_with = "no_tcp")]
    tcp_unverified: bool,
    /// End a primary that holds the lock but has said nothing for so long, such as 30s [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    evict_after: Option<Duration>,
    /// When a write counts as done: once it is on the disk, or once the system has it; the workdir keeps it [default: as it was, at first disk]
    #[arg(long, value_enum, value_name = "WHERE")]
    durability: Option<Durability>,
    /// Set by --detach: begin a session of our own
    #[arg(long, hide = true)]
    background: bool,
    /// Set by `pando demo`: write as fast as it goes and tell stdout what was acknowledged
    #[arg(long, hide = true)]
    demo_load: bool,
    /// Set by the acceptance tests: call instance.ping as this instance does, and tell stdout that it was answered
    #[arg(long, hide = true)]
    ping: bool,
    #[cfg(feature = "failpoints")]
    #[command(flatten)]
    trial: trial::Args,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Durability {
    /// Survives a power cut
    Disk,
    /// Survives the end of every process, not a power cut
    Os,
}

impl Args {
    /// Tells whether nobody sees our stderr but the log.
    pub(crate) fn is_in_background(&self) -> bool {
        self.background
    }
}

/// Why the instance leaves.
enum End {
    /// `pando down` asked, or a supervisor by SIGTERM.
    Asked,
    /// Ctrl-C.
    Interrupted,
    /// We cannot go on.
    Failed(Failure),
}

/// Runs the instance, or starts it in the background.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    if args.detach {
        return detach::run(&args, &workdir, context).await;
    }
    if args.background {
        rustix::process::setsid().map_err(|error| Failure::io("begin a session", &error.into()))?;
    }
    raise_descriptors();
    let mut signals = Signals::listen()?;
    let options = Options {
        headless: true,
        require_primary: args.require_primary,
        tcp: match (args.no_tcp, args.tcp_unverified) {
            (true, _) => TcpDoor::Closed,
            (false, true) => TcpDoor::Unverified,
            (false, false) => TcpDoor::OwnUser,
        },
        evict_after: args.evict_after,
        durability: args.durability.map(|durability| match durability {
            Durability::Disk => pando_dbproxy::Durability::Disk,
            Durability::Os => pando_dbproxy::Durability::Os,
        }),
        ..Options::default()
    };
    #[cfg(feature = "failpoints")]
    let options = args.trial.begin(options)?;
    let joined = tokio::select! {
        joined = Instance::join(workdir.clone(), options) => joined,
        end = signals.next() => return end.into_outcome(),
    };
    let instance = joined.map_err(|error| join_failure(error, &workdir))?;
    let reporter = Reporter::new(context, &workdir, instance.id(), args.background);
    let end = serve(&instance, &args, &workdir, reporter, &mut signals).await;
    tokio::select! {
        () = instance.leave() => {}
        // Whoever asks twice means at once: what is in flight stays unacknowledged.
        _ = signals.next() => return Err(Failure::interrupted()),
    }
    end.into_outcome()
}

/// Lets this process open as many descriptors as it may: each client costs it two.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, ?limit, "the limit on descriptors stays as it is");
    }
}

impl End {
    fn into_outcome(self) -> Result<(), Failure> {
        match self {
            Self::Asked => Ok(()),
            Self::Interrupted => Err(Failure::interrupted()),
            Self::Failed(failure) => Err(failure),
        }
    }
}

/// Reports roles until there is a reason to leave.
async fn serve(
    instance: &Instance,
    args: &Args,
    workdir: &Workdir,
    mut reporter: Reporter,
    signals: &mut Signals,
) -> End {
    let mut roles = instance.role();
    #[cfg(feature = "failpoints")]
    let trial = match args.trial.of(instance) {
        Ok(trial) => trial,
        Err(failure) => return End::Failed(failure),
    };
    let load = async {
        #[cfg(feature = "failpoints")]
        if let Some(trial) = &trial {
            return trial.run().await;
        }
        if args.demo_load { load::run(instance).await } else { std::future::pending().await }
    };
    let ping = failure_of(args.ping, ping::run(instance));
    let replace = failure_of(args.replace, replace::run(instance, workdir));
    tokio::pin!(load, ping, replace);
    loop {
        let role = roles.borrow_and_update().clone();
        #[cfg(feature = "failpoints")]
        if let Some(trial) = &trial {
            trial.note_role(&role).await;
        }
        if let Err(failure) = reporter.report(&role) {
            return End::Failed(failure);
        }
        tokio::select! {
            // A role that has changed is told before anything ends.
            biased;
            changed = roles.changed() => if changed.is_err() { return End::Asked },
            () = instance.stop_requested() => return End::Asked,
            end = signals.next() => return end,
            outcome = &mut load => return outcome.map_or_else(End::Failed, |()| End::Asked),
            failure = &mut ping => return End::Failed(failure),
            failure = &mut replace => return End::Failed(failure),
        }
    }
}

/// Does something once, if it is wanted; returns only when that failed.
async fn failure_of(is_wanted: bool, work: impl Future<Output = Result<(), Failure>>) -> Failure {
    if is_wanted && let Err(failure) = work.await {
        return failure;
    }
    std::future::pending().await
}

/// The signals that end an instance in good order.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::io("listen to signals", &error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Interrupted,
            _ = self.terminate.recv() => End::Asked,
            _ = self.hangup.recv() => End::Asked,
        }
    }
}

fn join_failure(error: JoinError, workdir: &Workdir) -> Failure {
    match error {
        JoinError::PrimaryExists(info) => Failure::lost_election(&Holder::new(*info), workdir),
        JoinError::Version(cause) => Failure::call(CallError::NotSent(cause), workdir),
        JoinError::Lock(error) => Failure::lock(&error),
        JoinError::Store(error) => Failure::store(&error),
        JoinError::Bus(error) => Failure::bus(&error),
        error @ JoinError::Migrations { .. } => Failure::new(Kind::Failed, error.to_string()),
    }
}
