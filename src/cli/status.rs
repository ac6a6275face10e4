//! `pando status`: who is primary, who else is here, and what to do when something is wrong.

pub(super) mod view;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pando_dbproxy::Readers;
use pando_dbproxy::catalog::Stats;
use pando_dbproxy::file_system::FileSystem;
use pando_ipc::client::CallError;
use pando_ipc::metrics::Metric;
use pando_ipc::process::ProcessState;
use pando_ipc::{Holder, Kind as PeerKind, LockInfo, Workdir};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::context::Context;
use super::failure::Failure;
use super::lifecycle::{self, Stuck};
use super::output;
use super::standing::Standing;

/// Show who is primary, who else is here, and what to do when something is wrong
///
/// Works without a primary too. Exit code 0 when a primary answers or the lock is free; 3 or 5 when somebody holds the lock
/// but does not answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando status
  pando status --watch
  pando status --json | jq -r .state     led, free or silent")]
pub(crate) struct Args {
    /// Look again every second until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Add who led when, and the last connections that came and went
    #[arg(long)]
    diag: bool,
}

/// Lines of each list that `--diag` shows.
const SHOWN_LINES: usize = 20;
/// Pause between two looks of `--watch`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Clears the screen, once.
const CLEAR_SCREEN: &[u8] = b"\x1b[2J";

/// How the workdir stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// A primary answers.
    Led,
    /// Nobody holds the lock.
    Free,
    /// Somebody holds the lock and does not answer.
    Silent,
}

/// Where it is said what is wrong with a holder that does not answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    /// With all else: the command goes on.
    Here,
    /// On stderr, as what the command failed by.
    OnStderr,
}

/// What `--json` prints; more keys may follow.
#[derive(Debug, Serialize)]
struct Report {
    workdir: PathBuf,
    state: State,
    /// What the primary says of itself: the result of `instance.info`.
    primary: Option<Value>,
    /// Who holds the lock.
    holder: Option<LockInfo>,
    /// The holder's program.
    executable: Option<PathBuf>,
    /// What the holder's process does, such as `stopped`.
    process_state: Option<ProcessState>,
    /// Who held the lock last, when it is free.
    last_holder: Option<LockInfo>,
    instances: Vec<Value>,
    /// Instances that left in this term.
    gone: Vec<Value>,
    /// What the primary counts and times: the result of `instance.metrics`.
    metrics: Vec<Metric>,
    /// Who follows events, and how many bytes wait for it.
    followers: Vec<Value>,
    /// Sizes and counts of the database's file, with or without a primary.
    database: Option<Stats>,
    /// With --diag: who led when, and the last connections.
    diag: Option<Diag>,
    /// The kind of file system that the database lies on, or would.
    file_system: Option<String>,
    problem: Option<String>,
    hints: Vec<String>,
}

/// What `--diag` adds.
#[derive(Debug, Default, Serialize)]
struct Diag {
    /// The end of the lifecycle log, oldest first.
    lifecycle: Vec<Value>,
    /// The last connections to the primary that came and went, oldest first.
    transitions: Vec<Value>,
}

/// Prints how the workdir stands, once or every second. A primary that does not answer is printed and is a failure.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    if !args.watch {
        let (report, failure) = look(&workdir, context, args.diag).await?;
        if context.json() {
            output::json_for_reader(&report)?;
        } else {
            output::line(&view::human(&report, Trouble::OnStderr, context.palette(), context.width()))?;
        }
        return failure.map_or(Ok(()), Err);
    }
    let in_place = output::is_terminal() && !context.json();
    if in_place {
        output::raw(CLEAR_SCREEN)?;
    }
    loop {
        let (report, _) = look(&workdir, context, args.diag).await?;
        if context.json() {
            output::json(&report)?;
        } else {
            let text = view::human(&report, Trouble::Here, context.palette(), context.width());
            if in_place {
                output::raw(in_place_of_the_last(&text, output::terminal_rows()).as_bytes())?;
            } else {
                output::line(&text)?;
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Returns the text so that it takes the place of the one before without a flicker: home, each line to its end, then what is below.
///
/// Of one that is higher than the terminal the end is left out: the top would scroll away.
fn in_place_of_the_last(text: &str, rows: Option<usize>) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    // The cursor stands below.
    let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(1).max(1));
    let left_out = lines.len().saturating_sub(room);
    let more = format!("… {} more lines; the window is too low", left_out + 1);
    if left_out > 0 {
        lines.truncate(room - 1);
        lines.push(&more);
    }
    format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
}

/// Looks at the lock and asks the primary.
async fn look(workdir: &Workdir, context: &Context, diag: bool) -> Result<(Report, Option<Failure>), Failure> {
    let mut report = Report { diag: diag.then(Diag::default), ..Report::empty(workdir.path()) };
    if let Ok(FileSystem { name, objection }) = FileSystem::of(&place(workdir)) {
        report.problem = objection.map(|why| format!("no primary can lead on this file system ({name}): {why}"));
        report.file_system = Some(name);
    }
    let mut failure = None;
    match Standing::of(workdir).map_err(|error| Failure::lock(&error))? {
        Standing::Free(last) => {
            report.last_holder = last;
            report.hints.push(match (&report.problem, Stuck::of(workdir)) {
                (Some(_), _) => "work in a directory on a disk of this machine".to_owned(),
                (None, Some(stuck)) => {
                    report.problem = Some(stuck.to_string());
                    stuck.next_step()
                }
                (None, None) => "start a primary with 'pando up'".to_owned(),
            });
        }
        Standing::Held(_) => {
            let answer = ask(context, workdir).await;
            // Looked up after the answer: until a new primary has advertised itself, the file names the one before.
            if let Some(Holder { info, executable, state }) = Holder::of(workdir) {
                (report.holder, report.executable, report.process_state) = (Some(info), executable, state);
            }
            match answer {
                Ok(answers) => {
                    report.state = State::Led;
                    report.take(answers);
                }
                Err(mut error) => {
                    report.state = State::Silent;
                    report.problem = Some(error.message.clone());
                    report.hints.clone_from(&error.hints);
                    // This is that status.
                    report.hints.retain(|hint| !hint.contains("'pando status'"));
                    error.hints.clone_from(&report.hints);
                    failure = Some(error);
                }
            }
        }
    }
    // The file is read whoever leads; only a database of another make has no such counts.
    report.database = Readers::open(workdir.database_path(), 1).stats().await.ok();
    if let Some(diag) = &mut report.diag {
        diag.lifecycle = lifecycle_end(workdir);
    }
    report.hints.extend(view::next_steps(&report));
    Ok((report, failure))
}

/// Returns the directory in which the database lies, or would: another file system than the workdir's may be mounted there.
pub(crate) fn place(workdir: &Workdir) -> PathBuf {
    let own = workdir.pando_dir();
    if own.is_dir() { own } else { workdir.path().to_owned() }
}

/// Returns the end of the lifecycle log, oldest first.
pub(crate) fn lifecycle_end(workdir: &Workdir) -> Vec<Value> {
    let lines = lifecycle::lines(workdir);
    lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec()
}

/// What a primary answers.
struct Answers {
    info: Value,
    list: Value,
    metrics: Value,
    doors: Value,
}

async fn ask(context: &Context, workdir: &Workdir) -> Result<Answers, Failure> {
    let deadline = Instant::now() + context.timeout();
    let client = context.client(workdir, PeerKind::Client).await?;
    let call = async |method: &str| client.call_by(method, json!({}), deadline).await;
    // An older primary knows neither metrics nor doors.
    let newer = async |method: &str| match call(method).await {
        Err(CallError::Refused(fault)) if fault.is_method_not_found() => Ok(Value::Null),
        answer => answer,
    };
    let answers = async {
        let info = call("instance.info").await?;
        let list = call("instance.list").await?;
        Ok(Answers { info, list, metrics: newer("instance.metrics").await?, doors: newer("instance.doors").await? })
    };
    let answers = answers.await;
    client.close().await;
    answers.map_err(|error| Failure::call(error, workdir))
}

impl Report {
    /// Returns the report on a workdir of which nothing is known yet.
    fn empty(workdir: &Path) -> Self {
        Self {
            workdir: workdir.to_owned(),
            state: State::Free,
            primary: None,
            holder: None,
            executable: None,
            process_state: None,
            last_holder: None,
            instances: vec![],
            gone: vec![],
            metrics: vec![],
            followers: vec![],
            database: None,
            diag: None,
            file_system: None,
            problem: None,
            hints: vec![],
        }
    }

    fn take(&mut self, answers: Answers) {
        let Answers { info, mut list, mut metrics, mut doors } = answers;
        let array = |value: &mut Value| match value.take() {
            Value::Array(values) => values,
            _ => vec![],
        };
        self.instances = array(&mut list["instances"]);
        self.gone = array(&mut list["gone"]);
        self.metrics = serde_json::from_value(metrics["metrics"].take()).unwrap_or_default();
        self.followers = array(&mut doors["peers"]).into_iter().filter(|peer| peer["socket"] == "pub").collect();
        if let Some(diag) = &mut self.diag {
            let mut transitions = array(&mut doors["transitions"]);
            diag.transitions = transitions.split_off(transitions.len().saturating_sub(SHOWN_LINES));
        }
        self.primary = Some(info);
    }
}
