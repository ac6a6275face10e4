//! `pando up --record`: an instance of the fault tests. It writes as fast as it goes and records all it does and sees.

mod record;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use pando::{Delivery, Instance, Options, Pattern, Role, Topic};
use pando_dbproxy::{Ack, Migrations, SqlValue, Statement, StatementResult, Tracked, WriteError};
use pando_ipc::failpoint::{self, Armed, Flaw, Plan, Point};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cli::failure::Failure;
use crate::cli::output;
use record::{Event, Outcome, Record, What, Work};

/// How long one write is tried, in milliseconds.
const CALL_TIMEOUT_MS: u64 = 5_000;
/// Pause after a write that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// One of so many writes publishes an event; the others insert a row.
const PUBLISH_EVERY: u64 = 4;
/// One of so many rows is read back.
const READ_EVERY: u64 = 7;
/// Signal of a file that grew beyond its limit: a full disk shall be an error, as it is without a limit.
const SIGXFSZ: i32 = 25;

/// What the fault tests set; all of it is hidden.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "trial")]
pub(super) struct Args {
    /// Write, and record every call in this file
    #[arg(long, hide = true, requires = "name")]
    record: Option<PathBuf>,
    /// Instance id of the recorded instance, and the beginning of its op ids
    #[arg(long, hide = true)]
    name: Option<String>,
    /// Writes in flight at once
    #[arg(long, hide = true, default_value_t = 2)]
    writers: usize,
    /// Record every event that a subscriber sees
    #[arg(long, hide = true)]
    follow: bool,
    /// `point[@time][=kill|stop|sleep:MS]`: what happens where
    #[arg(long, hide = true)]
    arm: Vec<Armed>,
    /// Speak this version of the wire, as another release would
    #[arg(long, hide = true)]
    protocol: Option<u32>,
    /// Make a known mistake
    #[arg(long, hide = true, value_parser = flaw)]
    flaw: Vec<Flaw>,
}

fn flaw(name: &str) -> Result<Flaw, String> {
    Flaw::find(name).ok_or_else(|| format!("there is no flaw {name:?}"))
}

/// The file that history is written to: a record is there before what it tells of goes on.
#[derive(Debug, Clone)]
struct Recorder(Arc<File>);

impl Recorder {
    fn note(&self, what: What) {
        let now = clock_gettime(ClockId::Monotonic);
        let at = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
        let mut line = json!(Record { at, what }).to_string();
        line.push('\n');
        // One write of an appended file: lines of threads do not mix, and a kill leaves whole lines.
        drop((&*self.0).write_all(line.as_bytes()));
    }
}

impl Args {
    fn recorder(&self) -> Result<Recorder, Failure> {
        let path = self.record.clone().unwrap_or_default();
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(|error| Failure::io(format_args!("open {}", path.display()), &error))?;
        Ok(Recorder(Arc::new(file)))
    }

    /// Plans what shall happen, before anything else does; returns the options of a trial.
    pub(super) fn begin(&self, options: Options) -> Result<Options, Failure> {
        if self.record.is_none() {
            return Ok(options);
        }
        let recorder = self.recorder()?;
        failpoint::plan(Plan {
            armed: self.arm.clone(),
            flaws: self.flaw.clone(),
            protocol: self.protocol,
            witness: Box::new(move |point, action| {
                if action.is_some() || point == Point::LockRelease {
                    let action = action.map(|action| format!("{action:?}"));
                    recorder.note(What::Point { name: point.name().to_owned(), action });
                }
            }),
        });
        Ok(Options { instance_id: self.name.clone(), call_timeout: Duration::from_millis(CALL_TIMEOUT_MS), ..options })
    }

    /// Returns the trial of an instance, if it is on one.
    pub(super) fn of<'a>(&'a self, instance: &'a Instance) -> Result<Option<Trial<'a>>, Failure> {
        if self.record.is_none() {
            return Ok(None);
        }
        Ok(Some(Trial { args: self, instance, recorder: self.recorder()?, epoch_acked: AtomicU64::new(0) }))
    }
}

/// An instance that records what it does.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    args: &'a Args,
    instance: &'a Instance,
    recorder: Recorder,
    /// The latest epoch of which stdout was told that a write was acknowledged in it.
    epoch_acked: AtomicU64,
}

impl Trial<'_> {
    /// Records a role, before anybody is told of it: who reads stdout may stop this process right then.
    pub(super) async fn note_role(&self, role: &Role) {
        let (role, epoch, database) = match role {
            Role::Seeking => {
                // The next term may be in another database, where epochs begin anew.
                self.epoch_acked.store(0, Ordering::Relaxed);
                ("seeking", None, None)
            }
            Role::Secondary { epoch, .. } => ("secondary", Some(*epoch), None),
            Role::Primary { epoch, .. } => {
                ("primary", Some(*epoch), self.instance.db().readers().database().await.ok())
            }
        };
        let database = database.map(|database| database.to_string());
        self.recorder.note(What::Role { role: role.to_owned(), epoch, database });
    }

    /// Writes until stdin ends, and then until every write has ended.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let kind = tokio::signal::unix::SignalKind::from_raw(SIGXFSZ);
        let _is_handled =
            tokio::signal::unix::signal(kind).map_err(|error| Failure::io("listen to signals", &error))?;
        let stop = CancellationToken::new();
        let steer = async {
            end_of_stdin().await;
            stop.cancel();
        };
        let writers = (0..self.args.writers).map(|writer| self.write(writer, &stop));
        let writers = async { join_all(writers).await.into_iter().collect::<Result<(), Failure>>() };
        tokio::select! {
            ((), written) = async { tokio::join!(steer, writers) } => written,
            () = record_events(self.instance, &self.recorder), if self.args.follow => Ok(()),
        }
    }

    async fn write(&self, writer: usize, stop: &CancellationToken) -> Result<(), Failure> {
        let Self { args, instance, recorder, epoch_acked } = self;
        let schema = Migrations::of("trial").step(1, "trial", TABLE).track(Tracked::table("trial"));
        let mut has_table = false;
        for n in 1_u64.. {
            if stop.is_cancelled() {
                break;
            }
            if !has_table {
                has_table = instance.db().migrate(&schema).await.is_ok();
                if !has_table {
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            }
            let op = format!("{}-{writer}-{n}", args.name.as_deref().unwrap_or_default());
            let work = if n % PUBLISH_EVERY == 0 { Work::Publish } else { Work::Insert };
            recorder.note(What::Invoke { op: op.clone(), work, within_ms: CALL_TIMEOUT_MS });
            // Both kinds of op id: one that counts, and one that the caller chose.
            let db = instance.db();
            let answer = match writer % 2 {
                0 => db.write(work_of(work, &op)).await,
                _ => db.write_as(&op, work_of(work, &op)).await,
            };
            has_table = !matches!(&answer, Err(error) if error.to_string().contains("no such table"));
            let outcome = outcome_of(&answer);
            recorder.note(What::Return { op: op.clone(), outcome });
            match answer {
                Ok(ack) => {
                    if epoch_acked.swap(ack.epoch, Ordering::Relaxed) != ack.epoch {
                        output::json(&json!({"acked": ack.epoch}))?;
                    }
                    if work == Work::Insert && n % READ_EVERY == 0 {
                        read_back(instance, recorder, op, &ack).await;
                    }
                }
                Err(_) => tokio::time::sleep(AFTER_FAILURE).await,
            }
        }
        Ok(())
    }
}

async fn record_events(instance: &Instance, recorder: &Recorder) {
    let mut events = instance.subscribe([Pattern::All]);
    while let Some(delivery) = events.recv().await {
        match delivery {
            Delivery::Event(event) => {
                let (Some(seq), Some(epoch)) = (event.seq, event.epoch) else { continue };
                let (topic, mark) = (event.topic.to_string(), Event::mark(&event.payload.read().unwrap_or_default()));
                recorder.note(What::Event(Event { seq, epoch, topic, mark }));
            }
            Delivery::Lagged(events) => recorder.note(What::Lagged { events }),
        }
    }
}

async fn read_back(instance: &Instance, recorder: &Recorder, op: String, ack: &Ack) {
    let results = ack.results.read::<Vec<StatementResult>>().unwrap_or_default();
    let rowid = results.first().map_or(0, |result| result.last_insert_rowid);
    let sql = "SELECT count(*) FROM trial WHERE rowid = ?1 AND op = ?2";
    let params = [SqlValue::from(rowid), SqlValue::from(op.clone())];
    if let Ok(Some(count)) = instance.db().query_one(sql, params, |row| row.get::<i64>(0)).await {
        recorder.note(What::Read { op, found: count == 1 });
    }
}

const TABLE: &str = "CREATE TABLE trial (op TEXT NOT NULL)";

fn work_of(work: Work, op: &str) -> pando_dbproxy::Work {
    match work {
        Work::Insert => {
            let insert = Statement::new("INSERT INTO trial (op) VALUES (?1)", [SqlValue::from(op.to_owned())]);
            pando_dbproxy::Work::Exec { statements: vec![insert], ddl: false }
        }
        Work::Publish => pando_dbproxy::Work::Publish {
            topic: Topic::known("trial.published"),
            payload: json!({"op": op}).into(),
            session_id: String::new(),
            project_id: String::new(),
        },
    }
}

fn outcome_of(answer: &Result<Ack, WriteError>) -> Outcome {
    match answer {
        Ok(Ack { seq, epoch, replayed, .. }) => Outcome::Ok { seq: *seq, epoch: *epoch, replayed: *replayed },
        Err(error @ WriteError::Unknown { .. }) => Outcome::Unknown { why: error.to_string() },
        Err(error) => Outcome::Fail { why: error.to_string() },
    }
}

/// Waits until stdin ends. The thread that reads it ends with it, or with the process.
async fn end_of_stdin() {
    let (ended, end) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        drop(io::stdin().lock().read_to_end(&mut Vec::new()));
        drop(ended);
    });
    drop(end.await);
}
