//! `pando status`: who is primary, who else is here, and what to do when something is wrong.

use std::path::PathBuf;
use std::time::Duration;

use pando_dbproxy::file_system::FileSystem;
use pando_ipc::process::ProcessState;
use pando_ipc::{Holder, Kind as PeerKind, LockInfo, Timestamp, Workdir};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::context::Context;
use super::failure::Failure;
use super::output::{self, Palette};
use super::standing::Standing;
use super::{duration, ipc};

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
}

/// Pause between two looks of `--watch`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears what is below.
const CLEAR_SCREEN: &[u8] = b"\x1b[H\x1b[J";

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
    /// The kind of file system that the workdir lies on.
    file_system: Option<String>,
    problem: Option<String>,
    hints: Vec<String>,
}

/// Prints how the workdir stands, once or every second. A primary that does not answer is printed and is a failure.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    if !args.watch {
        let (report, failure) = look(&workdir, context).await?;
        print(&report, context)?;
        return failure.map_or(Ok(()), Err);
    }
    loop {
        let (report, _) = look(&workdir, context).await?;
        if output::is_terminal() && !context.json() {
            output::raw(CLEAR_SCREEN)?;
        }
        if context.json() {
            output::json(&report)?;
        } else {
            print(&report, context)?;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn print(report: &Report, context: &Context) -> Result<(), Failure> {
    if context.json() { output::json_for_reader(report) } else { output::line(&human(report, context.palette())) }
}

/// Looks at the lock and asks the primary.
async fn look(workdir: &Workdir, context: &Context) -> Result<(Report, Option<Failure>), Failure> {
    let mut report = Report {
        workdir: workdir.path().to_owned(),
        state: State::Free,
        primary: None,
        holder: None,
        executable: None,
        process_state: None,
        last_holder: None,
        instances: vec![],
        file_system: None,
        problem: None,
        hints: vec![],
    };
    if let Ok(FileSystem { name, objection }) = FileSystem::of(workdir.path()) {
        report.problem = objection.map(|why| format!("no primary can lead on this file system ({name}): {why}"));
        report.file_system = Some(name);
    }
    let mut failure = None;
    match Standing::of(workdir).map_err(|error| Failure::lock(&error))? {
        Standing::Free(last) => {
            report.last_holder = last;
            report.hints.push(match &report.problem {
                None => "start a primary with 'pando up'".to_owned(),
                Some(_) => "work in a directory on a disk of this machine".to_owned(),
            });
        }
        Standing::Held(_) => {
            let answer = ask(context, workdir).await;
            // Looked up after the answer: until a new primary has advertised itself, the file names the one before.
            if let Some(Holder { info, executable, state }) = Holder::of(workdir) {
                (report.holder, report.executable, report.process_state) = (Some(info), executable, state);
            }
            match answer {
                Ok((info, instances)) => {
                    report.state = State::Led;
                    (report.primary, report.instances) = (Some(info), instances);
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
    Ok((report, failure))
}

async fn ask(context: &Context, workdir: &Workdir) -> Result<(Value, Vec<Value>), Failure> {
    let deadline = Instant::now() + context.timeout();
    let client = context.client(workdir, PeerKind::Client).await?;
    let answers = async {
        let info = client.call_by("instance.info", json!({}), deadline).await?;
        let list = client.call_by("instance.list", json!({}), deadline).await?;
        Ok((info, list))
    };
    let answers = answers.await;
    client.close().await;
    let (info, mut list) = answers.map_err(|error| Failure::call(error, workdir))?;
    let instances = match list["instances"].take() {
        Value::Array(instances) => instances,
        _ => vec![],
    };
    Ok((info, instances))
}

/// Says what an acknowledged write has survived.
fn written(durability: Option<&str>) -> String {
    match durability {
        Some("os") => "os: acknowledged once the system has them; a power cut may take the last ones".to_owned(),
        Some(other) => format!("{other}: acknowledged once they are on the disk"),
        None => "unknown".to_owned(),
    }
}

fn human(report: &Report, palette: Palette) -> String {
    let mut facts = vec![("workdir", report.workdir.display().to_string())];
    match report.state {
        State::Free => {
            facts.push(("state", "no primary, the lock is free".to_owned()));
            if let Some(problem) = &report.problem {
                facts.push(("problem", problem.clone()));
            }
            if let Some(last) = &report.last_holder {
                facts.push(("last", format!("{}, from {}", last.instance_id, last.started_at)));
            }
        }
        State::Silent => {
            facts.push(("state", "the lock is held, but its holder does not answer".to_owned()));
            if let Some(info) = &report.holder {
                let executable = report.executable.clone();
                let holder = Holder { info: info.clone(), executable, state: report.process_state };
                facts.push(("holder", format!("{holder:#}")));
            }
        }
        State::Led => led(report, &mut facts),
    }
    // What is wrong goes to stderr as the command's failure; without one the next step belongs here.
    if report.problem.is_none() || matches!(report.state, State::Free) {
        facts.extend(report.hints.iter().map(|hint| ("next", hint.clone())));
    }
    let mut text = output::facts(&facts, palette);
    if !report.instances.is_empty() {
        text.push_str("\n\n");
        text.push_str(&ipc::instances::table(&report.instances, Timestamp::now()).render(palette));
    }
    text
}

fn led(report: &Report, facts: &mut Vec<(&str, String)>) {
    let info = report.primary.as_ref().unwrap_or(&Value::Null);
    let text = |key: &str| info.get(key).map(output::cell).unwrap_or_default();
    let mut primary = format!("{}, pid {}", text("instance_id"), text("pid"));
    if let Some(executable) = &report.executable {
        primary.push_str(", ");
        primary.push_str(&executable.display().to_string());
    }
    facts.push(("primary", primary));
    if let Some(uptime) = info["uptime"].as_f64() {
        facts.push(("up", duration::human(Duration::try_from_secs_f64(uptime).unwrap_or_default())));
    }
    facts.push(("epoch", text("epoch")));
    facts.push(("head", format!("seq {}", text("head"))));
    if !info["durability"].is_null() {
        facts.push(("writes", written(info["durability"].as_str())));
    }
    if !info["sessions"].is_null() {
        facts.push(("sessions", text("sessions")));
    }
    let ports = match (&info["ports"]["pub"], &info["ports"]["rpc"]) {
        (Value::Number(publish), Value::Number(rpc)) => format!("pub {publish}, rpc {rpc}"),
        _ => "closed; Unix sockets only".to_owned(),
    };
    facts.push(("ports", ports));
    let refused: u64 = info["bus"]["refusals"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    if refused > 0 {
        facts.push(("refused", format!("{refused}: {}", info["bus"]["refusals"])));
    }
    facts.push(("version", format!("{}, protocol {}", text("version"), text("protocol"))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: State) -> Report {
        Report {
            workdir: "/w".into(),
            state,
            primary: None,
            holder: None,
            executable: None,
            process_state: None,
            last_holder: None,
            instances: vec![],
            file_system: None,
            problem: None,
            hints: vec![],
        }
    }

    #[test]
    fn a_free_lock_is_told_with_the_next_step() {
        let mut report = report(State::Free);
        report.hints.push("start a primary with 'pando up'".into());
        insta::assert_snapshot!(human(&report, Palette::plain()), @r"
        workdir  /w
        state    no primary, the lock is free
        next     start a primary with 'pando up'
        ");
    }

    #[test]
    fn a_file_system_where_nobody_can_lead_is_named() {
        let mut report = report(State::Free);
        report.problem = Some("no primary can lead on this file system (nfs): other machines see it".into());
        report.hints.push("work in a directory on a disk of this machine".into());
        insta::assert_snapshot!(human(&report, Palette::plain()), @r"
        workdir  /w
        state    no primary, the lock is free
        problem  no primary can lead on this file system (nfs): other machines see it
        next     work in a directory on a disk of this machine
        ");
    }

    #[test]
    fn a_primary_is_shown_with_its_term_and_ports() {
        let mut report = report(State::Led);
        report.executable = Some("/bin/pando".into());
        report.primary = Some(json!({
            "instance_id": "inst-A", "role": "primary", "epoch": 3, "pid": 12, "version": "0.1.0", "protocol": 1,
            "uptime": 61.5, "head": 42, "durability": "os", "sessions": 2, "ports": {"pub": 45337, "rpc": 45338},
            "bus": {"refusals": {"too_large": 2}},
        }));
        insta::assert_snapshot!(human(&report, Palette::plain()), @r#"
        workdir   /w
        primary   inst-A, pid 12, /bin/pando
        up        1m 1s
        epoch     3
        head      seq 42
        writes    os: acknowledged once the system has them; a power cut may take the last ones
        sessions  2
        ports     pub 45337, rpc 45338
        refused   2: {"too_large":2}
        version   0.1.0, protocol 1
        "#);
    }
}
