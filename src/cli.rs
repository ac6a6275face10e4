//! The command line: stdout is data, stderr everything else, and each way to fail has its own exit code.
//!
//! One command is one file of the same name, with its options, its help and its `run`. Only here is anything printed or
//! the environment read. Commands return a [`Failure`]; it becomes text and an exit code in [`run`] alone.

mod args;
mod completions;
mod context;
mod db;
mod demo;
mod doctor;
mod down;
mod duration;
mod environment;
mod failure;
mod ipc;
mod lifecycle;
#[cfg(test)]
mod looks;
mod man;
mod metrics;
mod output;
mod standing;
mod status;
mod suggest;
mod up;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use args::{Cli, Command};
use context::Context;
use environment::Environment;
use failure::{Failure, Kind};

/// How long threads that still read stdin may hold up the end of the process.
const RUNTIME_END: Duration = Duration::from_millis(50);

/// Reads the command line, runs the command and returns the documented exit code.
pub(crate) fn run() -> ExitCode {
    let environment = Environment::read();
    if completions::answer(&environment) {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error, environment.wants_json),
    };
    let as_json = cli.globals.json;
    let context = Context::new(cli.globals, environment);
    context.start_log(&cli.command);
    match block_on(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Ctrl-C, SIGTERM and a closed pipe are what the reader did, and warnings are printed already: nobody needs telling.
            if !matches!(failure.kind, Kind::ReaderGone | Kind::Interrupted | Kind::Terminated | Kind::Warned) {
                report(&failure.render(context.stderr_palette(), as_json));
            }
            failure.exit_code()
        }
    }
}

fn block_on(command: Command, context: &Context) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    let outcome = runtime.block_on(async {
        // Heard, so that a limit on file sizes (`ulimit -f`) is an error of the write and not the end of the process.
        let _too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
        // An instance leaves in good order first, and a copy takes away what it has begun; all others can stop where they are.
        if matches!(command, Command::Up(_) | Command::Db(db::Command::Backup(_) | db::Command::Restore(_))) {
            return dispatch(command, context).await;
        }
        tokio::select! {
            outcome = dispatch(command, context) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        }
    });
    runtime.shutdown_timeout(RUNTIME_END);
    outcome
}

async fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(args, context).await,
        Command::Down(args) => down::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Metrics(args) => metrics::run(args, context).await,
        Command::Ipc(command) => ipc::run(command, context).await,
        Command::Db(command) => db::run(command, context).await,
        Command::Demo(args) => demo::run(args, context).await,
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Prints what clap says: help and version to stdout as success, all else to stderr as a usage error.
fn usage(error: &clap::Error, as_json: bool) -> ExitCode {
    // Nobody is left to tell when stdout or stderr is closed.
    drop(error.print());
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return ExitCode::SUCCESS;
    }
    if as_json {
        let text = error.to_string();
        let said: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let message = said.join(" ");
        report(&format!("{}\n", Failure::new(Kind::Usage, message.trim_start_matches("error: ")).to_json()));
    }
    Kind::Usage.code().into()
}

fn report(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}
