//! `pando up --detach`: the same instance, in a session of its own.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pando_ipc::Workdir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::role::{RoleLine, RoleName};
use super::{Args, Durability};
use crate::cli::args::LogFormat;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// Starts the instance in the background, waits for its role and prints it.
pub(super) async fn run(args: &Args, workdir: &Workdir, context: &Context) -> Result<(), Failure> {
    workdir.prepare().map_err(|error| Failure::workdir(&error))?;
    let log = Log::open(workdir.pando_dir().join("up.log"))?;
    let mut child = start(args, workdir, context, &log)?;
    match tokio::time::timeout(context.timeout(), first_role(&mut child, args.replace)).await {
        Ok(Some(role)) if context.json() => output::json(&role),
        Ok(Some(role)) => output::line(&role.human(workdir, context.palette())),
        Ok(None) => Err(ended_at_once(&mut child, &log).await),
        Err(_elapsed) => Err(too_slow(&mut child, context.timeout(), &log).await),
    }
}

fn start(args: &Args, workdir: &Workdir, context: &Context, log: &Log) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::io("find our own program", &error))?;
    let mut command = Command::new(&program);
    command.arg("--json").arg("--workdir").arg(workdir.path());
    if context.quiet() {
        command.arg("--quiet");
    }
    command.args((0..context.globals().verbose).map(|_| "-v"));
    if context.globals().log_format == LogFormat::Json {
        command.args(["--log-format", "json"]);
    }
    command.args(["up", "--background"]);
    if let Some(durability) = args.durability {
        command.arg("--durability").arg(match durability {
            Durability::Disk => "disk",
            Durability::Os => "os",
        });
    }
    if args.require_primary {
        command.arg("--require-primary");
    }
    if let Some(after) = args.evict_after {
        command.arg(format!("--evict-after={}ms", after.as_millis()));
    }
    if args.replace {
        command.arg("--replace");
    }
    if args.no_tcp {
        command.arg("--no-tcp");
    }
    if args.tcp_unverified {
        command.arg("--tcp-unverified");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.handle()?);
    command.spawn().map_err(|error| Failure::io(format_args!("start {}", program.display()), &error))
}

/// Reads roles until one is settled, which with `replace` is the primary's alone; `None` when the instance ended first.
async fn first_role(child: &mut Child, replace: bool) -> Option<RoleLine> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<RoleLine>(&line) {
            Ok(role) if role.role == RoleName::Primary => return Some(role),
            Ok(role) if role.role == RoleName::Secondary && !replace => return Some(role),
            _ => {}
        }
    }
    None
}

/// Says of an instance that ended what it said itself.
async fn ended_at_once(child: &mut Child, log: &Log) -> Failure {
    let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = log.since_start();
    let failure = Failure::from_stderr(&said).unwrap_or_else(|| {
        let last = said.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
        Failure::new(Kind::Failed, format!("the instance ended at once, {status}{last}"))
    });
    failure.hint(format!("read its log: {}", log.path.display()))
}

async fn too_slow(child: &mut Child, after: Duration, log: &Log) -> Failure {
    // It may have ended by itself meanwhile, which is what we want.
    drop(child.kill().await);
    Failure::new(Kind::Timeout, format!("the instance found no role within {after:?} and was ended"))
        .hint("see who holds the workdir: 'pando status'")
        .hint(format!("read its log: {}", log.path.display()))
}

/// The log of instances in the background, and where ours begins.
struct Log {
    path: PathBuf,
    start: usize,
    file: File,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let failed = |path: &Path, error| Failure::io(format_args!("open {}", path.display()), &error);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(|error| failed(&path, error))?;
        let len = file.metadata().map_err(|error| failed(&path, error))?.len();
        Ok(Self { path, start: usize::try_from(len).unwrap_or(usize::MAX), file })
    }

    fn handle(&self) -> Result<File, Failure> {
        self.file.try_clone().map_err(|error| Failure::io(format_args!("open {}", self.path.display()), &error))
    }

    fn since_start(&self) -> String {
        let all = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(all.get(self.start..).unwrap_or_default()).into_owned()
    }
}
