//! `pando ipc evict`: ends a primary that holds the lock and does nothing else.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use pando_ipc::client::{CallError, Client, Options};
use pando_ipc::lock::EvictError;
use pando_ipc::process::Signal;
use pando_ipc::{Holder, Kind as PeerKind, Workdir};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;
use crate::cli::standing::Standing;

/// How long the holder is given to answer: it counts as silent after 2 s, or when this is over.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at who leads next.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long the lock may be free between two primaries.
const HANDOVER: Duration = Duration::from_millis(500);

/// End a primary that holds the lock but does not answer, so that the next one takes over
///
/// It first makes sure that the primary is silent, and that its process is the very one that took the lock: same pid, same start, same
/// boot. Then it says what it would do and asks. SIGTERM comes first, SIGKILL half a second later; a stopped process gets
/// SIGKILL at once. Nothing acknowledged is lost by it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando ipc evict              look, ask, end it, wait for the next primary
  pando ipc evict --dry-run    look and say what would be done
  pando ipc evict --yes        do not ask")]
pub(crate) struct Args {
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Looks, asks, ends the process and tells who leads now.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let path = workdir.path().display().to_string();
    let holder = match Standing::of(&workdir).map_err(|error| Failure::lock(&error))? {
        Standing::Free(_) => {
            return say(context, &json!({"evicted": null}), &nobody(&path));
        }
        Standing::Held(None) => return Err(Failure::no_primary(&workdir)),
        Standing::Held(Some(_)) => silent_holder(&workdir).await?,
    };
    holder.check().map_err(|error| failed(&error, &workdir))?;
    let means: Vec<_> = holder.means().iter().map(|signal| name_of(*signal)).collect();
    let plan = plan(&holder, &means);
    if args.dry_run {
        return say(context, &json!({"would_evict": describe(&holder), "signals": means}), &plan);
    }
    if !args.yes {
        confirm(&plan).await?;
    }
    let signal = holder.evict().await.map_err(|error| failed(&error, &workdir))?;
    let next = next_primary(&workdir, &holder, context).await?;
    let line = json!({"evicted": describe(&holder), "signal": signal.map(name_of), "primary": next});
    say(context, &line, &done(&holder, signal, next.as_deref()))
}

fn nobody(path: &str) -> String {
    format!("nobody to evict: no primary in {path} (lock is free)")
}

fn plan(holder: &Holder, means: &[&str]) -> String {
    format!("would end {holder:#}: {}", means.join(", then "))
}

fn question(plan: &str) -> String {
    format!("{plan}\ngo on? [y/N] ")
}

fn done(holder: &Holder, signal: Option<Signal>, next: Option<&str>) -> String {
    let how = signal.map_or("it had ended already", name_of);
    let then = match next {
        Some(next) => format!("{next} leads now"),
        None => "nobody leads now; start a primary with 'pando up'".to_owned(),
    };
    format!("evicted {}, pid {} ({how}); {then}", holder.info.instance_id, holder.info.pid)
}

/// Returns the holder of the lock once it is sure that it says nothing; one that answers is left alone.
async fn silent_holder(workdir: &Workdir) -> Result<Holder, Failure> {
    let options = Options { dial_timeout: PATIENCE, ..Options::new("evict", PeerKind::Client) };
    let client = Client::open(workdir.clone(), options);
    let mut silence = client.silence();
    let silent = tokio::select! {
        answer = client.linked() => Err(answer),
        Ok(silence) = silence.wait_for(Option::is_some) => Ok(silence.as_ref().map(|it| it.holder.clone())),
    };
    let leader = client.link().borrow().as_ref().map(|link| link.welcome.instance_id.clone()).unwrap_or_default();
    client.close().await;
    match silent {
        Ok(Some(holder)) => Ok(holder),
        Err(Ok(())) => Err(Failure::new(Kind::Failed, format!("primary {leader} answers: nothing has to be evicted"))
            .hint("end it in good order: 'pando down'")
            .hint("take its place: 'pando up --replace'")),
        Err(Err(CallError::Refused(fault))) => Err(Failure::refused(fault)),
        Err(Err(error)) => Err(Failure::call(error, workdir)),
        Ok(None) => Err(Failure::no_primary(workdir)),
    }
}

async fn confirm(plan: &str) -> Result<(), Failure> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::new(Kind::Usage, format!("{plan}, but nobody is here to ask"))
            .hint("if that is what you want: 'pando ipc evict --yes'"));
    }
    let question = question(plan);
    let asked = tokio::task::spawn_blocking(move || {
        io::stderr().write_all(question.as_bytes())?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok::<_, io::Error>(answer)
    });
    match asked.await {
        Ok(Ok(answer)) if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) => Ok(()),
        Ok(Ok(_)) => Err(Failure::new(Kind::Failed, "nothing was done")),
        Ok(Err(error)) => Err(Failure::io("ask", &error)),
        Err(error) => Err(Failure::new(Kind::Failed, format!("cannot ask: {error}"))),
    }
}

/// Waits for the next primary and returns its id; `None` when nobody takes over.
async fn next_primary(workdir: &Workdir, evicted: &Holder, context: &Context) -> Result<Option<String>, Failure> {
    let deadline = Instant::now() + context.timeout();
    let mut free_since = None;
    while Instant::now() < deadline {
        match Standing::of(workdir).map_err(|error| Failure::lock(&error))? {
            Standing::Free(_) if free_since.get_or_insert_with(Instant::now).elapsed() >= HANDOVER => return Ok(None),
            Standing::Held(Some(next)) if next.info != evicted.info => {
                let client = context.client(workdir, PeerKind::Client).await?;
                client.close().await;
                return Ok(Some(next.info.instance_id));
            }
            Standing::Held(_) => free_since = None,
            Standing::Free(_) => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Err(Failure::no_primary(workdir))
}

fn failed(error: &EvictError, workdir: &Workdir) -> Failure {
    let failure = Failure::new(Kind::Failed, format!("cannot evict the primary: {error}"));
    match error {
        EvictError::Unnamed { .. } | EvictError::Another { .. } => {
            failure.hint(format!("find who holds the lock: 'fuser -v {}'", workdir.lock_path().display()))
        }
        EvictError::Signal { .. } => failure.hint("run as the user who started it"),
        EvictError::Stuck { .. } => failure.hint("the lock is free once the device answers: look at 'dmesg'"),
    }
}

fn describe(holder: &Holder) -> Value {
    json!({
        "instance_id": holder.info.instance_id,
        "pid": holder.info.pid,
        "executable": holder.executable,
        "state": holder.state,
    })
}

fn name_of(signal: Signal) -> &'static str {
    if signal == Signal::TERM { "SIGTERM" } else { "SIGKILL" }
}

fn say(context: &Context, line: &Value, text: &str) -> Result<(), Failure> {
    match (context.json(), context.quiet()) {
        (true, _) => output::json(line),
        (false, true) => Ok(()),
        (false, false) => output::line(text),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_ipc::process::ProcessState;

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let info = serde_json::from_str(include_str!("../../../tests/golden/ipc.lock")).unwrap();
        let holder = Holder { info, executable: Some("/usr/bin/pando".into()), state: Some(ProcessState::Stopped) };
        let asked = question(&plan(&holder, &["SIGTERM", "SIGKILL"]));
        let ended =
            [(None, None), (Some(Signal::KILL), Some("inst-b"))].map(|(signal, next)| done(&holder, signal, next));
        [nobody("/w"), asked, ended.join("\n")].join("\n")
    }
}
