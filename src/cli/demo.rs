//! `pando demo`: four processes write, the primary is killed, nothing is lost.

mod fleet;
pub(super) mod load;
pub(super) mod tally;

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pando_dbproxy::Readers;
use pando_ipc::Workdir;
use serde_json::Value;
use uuid::Uuid;

use super::context::Context;
use super::failure::{Failure, Kind};
use super::{db, output};
use fleet::Fleet;
use tally::{Found, Tally, Verdict};

/// How many instances write at once.
const INSTANCES: usize = 4;
/// How long all of them write before the primary is killed, and the survivors afterwards.
const LOAD: Duration = Duration::from_secs(2);
/// Longest wait for any one step.
const STEP: Duration = Duration::from_secs(10);
/// How often a step that waits for time alone looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// Rows read at once while checking.
const PAGE: usize = 1_000;

/// Show it: four processes write at once, the primary is killed, nothing is lost
///
/// Makes a temporary workdir, starts four real instances and an observer, kills the primary with SIGKILL while all of them write,
/// lets another take over, and compares what was acknowledged with what is there. Exit code 1 when anything is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando demo
  pando demo --keep --json       keep the workdir with its database and logs; print the result as JSON")]
pub(crate) struct Args {
    /// Keep the temporary workdir and say where it is
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let stage = Stage::new(&context.environment().temp_dir, args.keep)?;
    let mut fleet = Fleet::start(&stage.workdir, INSTANCES)?;
    let mut show = Show { tally: Tally::default(), narrator: Narrator::new(context) };
    let outcome = show.run(&mut fleet, &stage.workdir).await;
    fleet.end().await;
    show.narrator.finish();
    if args.keep {
        show.narrator.say(&format!("the workdir is kept: {}", stage.workdir.path().display()));
    }
    let verdict = outcome.map_err(|failure| {
        Fleet::last_words(stage.workdir.path())
            .into_iter()
            .fold(failure, Failure::hint)
            .hint("keep the logs with '--keep'")
    })?;
    if context.json() {
        output::json_for_reader(&verdict)?;
    } else {
        output::line(&verdict.table(context.palette()))?;
    }
    if verdict.ok {
        return Ok(());
    }
    let failure =
        show.tally.failed.first().map(|error| format!("; the first failed write: {error}")).unwrap_or_default();
    Err(Failure::new(Kind::Failed, format!("the demo found something missing, twice or out of order{failure}"))
        .hint("run it again with '--keep' and look at the logs in its workdir"))
}

/// The acts of the demo, one after the other.
struct Show {
    tally: Tally,
    narrator: Narrator,
}

impl Show {
    async fn run(&mut self, fleet: &mut Fleet, workdir: &Workdir) -> Result<Verdict, Failure> {
        self.narrator.step(5, "starting four instances");
        self.until(fleet, "four instances with one primary among them", |tally| {
            tally.roles.len() == INSTANCES && tally.primary().is_some()
        })
        .await?;
        fleet.observe()?;
        let (old, primary) = self.primary()?;
        self.narrator.say(&format!(
            "{INSTANCES} instances; {} leads (pid {}, epoch {})",
            primary.instance_id, primary.pid, primary.epoch
        ));

        self.narrator.step(15, "all four write");
        fleet.order("go").await;
        self.until(fleet, "acknowledged writes from all four instances", |tally| tally.acked_by.len() == INSTANCES)
            .await?;
        self.run_on(fleet, LOAD).await?;

        self.narrator.step(45, "the primary is killed");
        let before = self.tally.acked();
        let killed_at = Instant::now();
        fleet.kill(old)?;
        self.tally.killed = Some(old);
        self.narrator.say(&format!("SIGKILL to pid {} after {before} acknowledged writes", primary.pid));
        let epoch = primary.epoch;
        self.until(fleet, "a new primary", |tally| tally.primary().is_some_and(|(_, next)| next.epoch > epoch)).await?;
        let (_, next) = self.primary()?;
        let takeover = next.heard.duration_since(killed_at);
        self.narrator.say(&format!(
            "{} leads (pid {}, epoch {}) after {:.1} ms",
            next.instance_id,
            next.pid,
            next.epoch,
            takeover.as_secs_f64() * 1_000.0
        ));
        self.until(fleet, "a write acknowledged by the new primary", |tally| tally.resumed_at.is_some()).await?;
        let resumed = self.tally.resumed_at.map(|at| at.duration_since(killed_at)).unwrap_or_default();

        self.narrator.step(55, "the survivors write on");
        self.run_on(fleet, LOAD).await?;
        self.narrator.step(80, "waiting for the last answers");
        fleet.order("stop").await;
        self.until(fleet, "the end of the load", |tally| tally.done.len() == INSTANCES - 1).await?;

        self.narrator.step(90, "comparing what was acknowledged with what is there");
        let found = find(workdir).await?;
        self.until(fleet, "the observer to see every event", |tally| tally.events.last >= found.head).await?;
        // What came since, such as news of an instance, is not part of the comparison.
        let found = Found { head: self.tally.events.last, ..found };
        self.narrator.step(100, "done");
        Ok(Verdict::new(&self.tally, &found, takeover, resumed))
    }

    fn primary(&self) -> Result<(usize, tally::Standing), Failure> {
        let primary = self.tally.primary().map(|(number, standing)| (number, standing.clone()));
        primary.ok_or_else(|| Failure::new(Kind::Failed, "the demo has no primary"))
    }

    /// Listens until `reached`, or fails when that takes too long.
    async fn until(&mut self, fleet: &mut Fleet, what: &str, reached: impl Fn(&Tally) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + STEP;
        while !reached(&self.tally) {
            let listened = tokio::time::timeout_at(deadline.into(), self.listen(fleet)).await;
            listened.map_err(|_elapsed| {
                Failure::new(Kind::Timeout, format!("the demo waited {STEP:?} in vain for {what}"))
            })?;
            if let Some(who) = self.tally.ended_unasked() {
                return Err(Failure::new(Kind::Failed, format!("{who} ended while the demo waited for {what}")));
            }
        }
        Ok(())
    }

    /// Listens for a while.
    async fn run_on(&mut self, fleet: &mut Fleet, time: Duration) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            // Silence is fine here; what is missing in the end will show.
            drop(tokio::time::timeout(TICK, self.listen(fleet)).await);
        }
        Ok(())
    }

    async fn listen(&mut self, fleet: &mut Fleet) {
        if let Some((speaker, said)) = fleet.next().await {
            self.tally.take(speaker, said, Instant::now());
            self.narrator.count(self.tally.acked());
        }
    }
}

/// Reads what the database holds.
async fn find(workdir: &Workdir) -> Result<Found, Failure> {
    let head = Readers::open(workdir.database_path(), 1).head().await;
    let mut found = Found {
        sessions: ids(workdir, "sessions").await?,
        messages: ids(workdir, "messages").await?,
        miscounted: number(
            workdir,
            "SELECT count(*) FROM sessions AS s LEFT JOIN (SELECT session_id, count(*) AS n FROM messages GROUP BY session_id) AS m \
             ON m.session_id = s.id WHERE s.message_count <> coalesce(m.n, 0)",
        )
        .await?,
        head: head.map_err(|error| db::read_failure(error, workdir))?.seq,
        ..Found::default()
    };
    for row in db::read(workdir, "SELECT id, usage_count FROM skills", vec![], STEP).await?.rows {
        if let [Value::String(id), uses] = row.as_slice() {
            found.uses.insert(id.clone(), uses.as_u64().unwrap_or_default());
        }
    }
    Ok(found)
}

async fn ids(workdir: &Workdir, table: &str) -> Result<HashSet<String>, Failure> {
    let sql = format!("SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT {PAGE}");
    let mut ids = HashSet::new();
    let mut last = String::new();
    loop {
        let page = db::read(workdir, &sql, vec![last.clone().into()], STEP).await?.rows;
        for row in &page {
            if let [Value::String(id)] = row.as_slice() {
                last.clone_from(id);
                ids.insert(id.clone());
            }
        }
        if page.len() < PAGE {
            return Ok(ids);
        }
    }
}

async fn number(workdir: &Workdir, sql: &str) -> Result<u64, Failure> {
    let rows = db::read(workdir, sql, vec![], STEP).await?.rows;
    Ok(rows.first().and_then(|row| row.first()?.as_u64()).unwrap_or_default())
}

/// The temporary workdir. It is removed in the end unless it is to be kept.
struct Stage {
    workdir: Workdir,
    keep: bool,
}

impl Stage {
    fn new(temp_dir: &Path, keep: bool) -> Result<Self, Failure> {
        let id = Uuid::new_v4().simple().to_string();
        let path: PathBuf = temp_dir.join(format!("pando-demo-{}", &id[..8]));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::io(format_args!("make {}", path.display()), &error))?;
        let workdir = Workdir::open(&path).map_err(|error| Failure::workdir(&error))?;
        Ok(Self { workdir, keep })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(self.workdir.path())
        {
            tracing::warn!(%error, path = %self.workdir.path().display(), "the demo's workdir stays");
        }
    }
}

/// Tells what happens, on stderr: with a bar on a terminal, in lines elsewhere.
struct Narrator {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Narrator {
    fn new(context: &Context) -> Self {
        let quiet = context.quiet() || context.json();
        let style = ProgressStyle::with_template("{bar:24} {msg}");
        let bar = match style {
            Ok(style) if io::stderr().is_terminal() && !context.quiet() => {
                Some(ProgressBar::new(100).with_style(style))
            }
            _ => None,
        };
        Self { bar, quiet }
    }

    fn step(&self, percent: u64, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(percent);
            bar.set_message(what.to_owned());
        }
    }

    fn count(&self, acked: u64) {
        if let Some(bar) = &self.bar
            && acked > 0
        {
            bar.set_message(format!("{acked} writes acknowledged"));
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) if !self.quiet => bar.println(text),
            // Nobody is left to tell when stderr is closed.
            None if !self.quiet => drop(writeln!(io::stderr(), "{text}")),
            _ => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
