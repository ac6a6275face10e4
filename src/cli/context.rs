//! What every command needs: the common options, the workdir and a way to the primary.

use std::io::{self, IsTerminal};
use std::time::Duration;

use pando_ipc::client::{CallError, Cause, Client, Options};
use pando_ipc::{Kind, Workdir};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use super::args::{Command, Globals, LogFormat};
use super::environment::Environment;
use super::failure::{self, Failure};
use super::output::{self, Palette};
use super::standing::Standing;

/// How long a call may take when nothing else is said.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a primary is looked for when nothing else is said.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two primaries the lock is free for an instant: look again after this, before saying that there is none.
const SECOND_LOOK: Duration = Duration::from_millis(30);

/// What every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    globals: Globals,
    environment: Environment,
}

impl Context {
    /// Joins the options with the environment.
    pub(crate) fn new(globals: Globals, environment: Environment) -> Self {
        Self { globals, environment }
    }

    /// Tells whether the output is for programs.
    pub(crate) fn json(&self) -> bool {
        self.globals.json
    }

    /// Tells whether to print only what was asked for.
    pub(crate) fn quiet(&self) -> bool {
        self.globals.quiet
    }

    /// Returns the common options, to hand them on to a process of our own.
    pub(crate) fn globals(&self) -> &Globals {
        &self.globals
    }

    /// Returns the environment.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns the colours for stdout.
    pub(crate) fn palette(&self) -> Palette {
        Palette::for_stream(self.globals.color, io::stdout().is_terminal(), self.environment.no_color)
    }

    /// Returns the colours for stderr.
    pub(crate) fn stderr_palette(&self) -> Palette {
        Palette::for_stream(self.globals.color, io::stderr().is_terminal(), self.environment.no_color)
    }

    /// Returns how long the command may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout_or(CALL_TIMEOUT)
    }

    /// Returns how long the command may take, `usual` when nothing is said.
    pub(crate) fn timeout_or(&self, usual: Duration) -> Duration {
        self.globals.timeout.unwrap_or(usual)
    }

    /// Returns how long the command may take, when that was said.
    pub(crate) fn time_limit(&self) -> Option<Duration> {
        self.globals.timeout
    }

    /// Returns how wide a line may be; `None`: as wide as it is.
    pub(crate) fn width(&self) -> Option<usize> {
        let columns = output::terminal_columns()?;
        Some(self.environment.columns.unwrap_or(columns))
    }

    /// Returns the workdir: the one named, else the nearest upwards. Another user's is refused.
    pub(crate) fn workdir(&self) -> Result<Workdir, Failure> {
        let workdir = self.any_workdir()?;
        workdir.check_access().map_err(|error| Failure::workdir(&error))?;
        Ok(workdir)
    }

    /// Returns the same, whoever's it is.
    pub(crate) fn any_workdir(&self) -> Result<Workdir, Failure> {
        let found = match (&self.globals.workdir, &self.environment.current_dir) {
            (Some(named), _) => Workdir::open(named),
            (None, Ok(here)) => Workdir::discover(here, self.environment.home.as_deref()),
            (None, Err(error)) => {
                return Err(Failure::new(failure::Kind::Usage, format!("cannot tell the current directory: {error}"))
                    .hint("name one with '--workdir DIR'"));
            }
        };
        let found = found.map_err(|error| Failure::workdir(&error))?;
        Ok(found.with_runtime_dir(self.environment.runtime_dir.clone()))
    }

    /// Sends the log to stderr. `-q` and `-v` decide, else `PANDO_LOG`, else warnings; instances in the background tell more.
    pub(crate) fn start_log(&self, command: &Command) {
        let level = match (self.globals.quiet, self.globals.verbose) {
            (true, _) => Some("off"),
            (false, 0) => None,
            (false, 1) => Some("info"),
            (false, 2) => Some("debug"),
            (false, _) => Some("trace"),
        };
        let usual = if matches!(command, Command::Up(args) if args.is_in_background()) { "info" } else { "warn" };
        let filter = match (level, &self.environment.log) {
            // Other people's crates stay at warnings: their detail hides ours.
            (Some("off"), _) => "off".to_owned(),
            (Some(level), _) => {
                format!("warn,pando={level},pando_ipc={level},pando_bridge={level},pando_dbproxy={level}")
            }
            (None, Some(filter)) => filter.clone(),
            (None, None) => format!("warn,pando={usual},pando_ipc={usual},pando_bridge={usual},pando_dbproxy={usual}"),
        };
        let colored = io::stderr().is_terminal() && !self.environment.no_color;
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(io::stderr);
        // A second start is the only error, and this is the first.
        drop(match self.globals.log_format {
            LogFormat::Text => log.with_ansi(colored).try_init(),
            LogFormat::Json => log.json().flatten_event(true).try_init(),
        });
    }

    /// Connects to the primary of `workdir`. Where the lock is free it says so at once instead of waiting for one.
    pub(crate) async fn client(&self, workdir: &Workdir, kind: Kind) -> Result<Client, Failure> {
        if is_free(workdir)? {
            tokio::time::sleep(SECOND_LOOK).await;
            if is_free(workdir)? {
                return Err(Failure::no_primary(workdir));
            }
        }
        let options = self.options(kind);
        let (patience, began) = (options.dial_timeout, Instant::now());
        let client = Client::open(workdir.clone(), options);
        match self.linked(&client).await {
            Ok(()) => Ok(client),
            Err(CallError::NotSent(cause @ Cause::ConnectionFailed { .. })) if began.elapsed() >= patience => {
                Err(Failure::silent(&cause, patience, workdir))
            }
            Err(error) => Err(Failure::call(error, workdir)),
        }
    }

    /// Waits for the link: until the holder of the lock is known to be silent, or as long as the user said.
    async fn linked(&self, client: &Client) -> Result<(), CallError> {
        let mut silence = client.silence();
        tokio::select! {
            linked = client.linked() => linked,
            Ok(_) = silence.wait_for(Option::is_some), if self.globals.timeout.is_none() => {
                Err(CallError::NotSent(client.trouble().unwrap_or(Cause::Closed)))
            }
        }
    }

    /// Starts a client of `workdir` that looks for a primary as long as it takes.
    pub(crate) fn open(&self, workdir: &Workdir, kind: Kind) -> Client {
        Client::open(workdir.clone(), self.options(kind))
    }

    fn options(&self, kind: Kind) -> Options {
        Options {
            // A label for one short connection: short enough to read in a table.
            instance_id: format!("cli-{}", &Uuid::new_v4().simple().to_string()[..12]),
            kind,
            headless: false,
            dial_timeout: self.globals.timeout.unwrap_or(DIAL_TIMEOUT),
            call_timeout: self.timeout(),
        }
    }

    /// Connects, calls one method and hangs up; one deadline covers all of it.
    pub(crate) async fn call(&self, method: &str, params: impl Serialize) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.timeout();
        let workdir = self.workdir()?;
        let client = self.client(&workdir, Kind::Client).await?;
        let outcome = client.call_by(method, params, deadline).await;
        client.close().await;
        outcome.map_err(|error| Failure::call(error, &workdir))
    }
}

fn is_free(workdir: &Workdir) -> Result<bool, Failure> {
    match Standing::of(workdir) {
        Ok(standing) => Ok(matches!(standing, Standing::Free(_))),
        Err(error) => Err(Failure::lock(&error)),
    }
}
