//! Ours: instances of one workdir, joined as an application joins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pando::{Batch, Db, Instance, Options, Role, Workdir};
use pando_dbproxy::Statement;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::open::micros;
use super::{Activity, BODY_BYTES, COUNT, Engine, FILL, FILLED_ENTRIES, INSERT, Job, READ, SCHEMA};
use crate::load::{Course, Outcome, wait_until};
use crate::runtime::Threads;
use crate::{Failure, fleet};

/// Joins, and does what the job says.
pub(super) fn work(job: &Job, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let instance = runtime.block_on(join(job))?;
    ready()?;
    let outcome = match job.activity {
        None => Course::idle(job.pace),
        Some(activity) => run(&runtime, instance.db(), job, activity)?,
    };
    fleet::done(Some(&outcome).filter(|_| job.counts))?;
    runtime.block_on(instance.leave());
    Ok(())
}

async fn join(job: &Job) -> Result<Instance, Failure> {
    let leads = job.engine == Engine::Lead;
    let options = Options { require_primary: leads, durability: Some(job.durability), ..Options::default() };
    let instance = Instance::join(Workdir::open(&job.workdir)?, options).await?;
    instance.role().wait_for(|role| *role != Role::Seeking).await?;
    if leads {
        instance.db().exec_ddl(SCHEMA.map(|sql| Statement::new(sql, ())).into()).await?;
        let mut fill = Batch::new();
        for sql in FILL {
            fill.execute(sql, ());
        }
        instance.db().transaction(fill).await?;
    }
    // The first read opens what later ones use.
    instance.db().query_one(READ, [1], |_| Ok(())).await?;
    Ok(instance)
}

fn run(runtime: &Runtime, db: &Db, job: &Job, activity: Activity) -> Result<Outcome, Failure> {
    match activity {
        Activity::Write { pairs, .. } if job.pace.per_second.is_some() => {
            let mut course = Course::begin(job.pace);
            // The runtime's own timer is too coarse.
            while let Some(due) = course.next() {
                wait_until(due);
                let written = runtime.block_on(db.transaction(batch(job.number, pairs)));
                course.ended(due, written.is_ok());
            }
            Ok(course.outcome())
        }
        Activity::Write { in_flight, pairs } => {
            let number = job.number;
            repeat(
                runtime,
                job,
                in_flight,
                move |db| async move { db.transaction(batch(number, pairs)).await.is_ok() },
                db,
            )
        }
        Activity::Read => {
            let next = Arc::new(AtomicU64::new(0));
            let read = move |db: Db| {
                let id = next.fetch_add(7, Ordering::Relaxed) % FILLED_ENTRIES + 1;
                async move {
                    let found = db.query_one(READ, [i64::try_from(id).unwrap_or(1)], |_| Ok(())).await;
                    found.is_ok_and(|found| found.is_some())
                }
            };
            repeat(runtime, job, 1, read, db)
        }
    }
}

/// Runs so many loops of `operation` at once.
fn repeat<F>(
    runtime: &Runtime,
    job: &Job,
    in_flight: u32,
    operation: impl Fn(Db) -> F + Clone + Send + 'static,
    db: &Db,
) -> Result<Outcome, Failure>
where
    F: Future<Output = bool> + Send,
{
    let mut loops = JoinSet::new();
    for _ in 0..in_flight {
        let (db, operation, mut course) = (db.clone(), operation.clone(), Course::begin(job.pace));
        let run = async move {
            while let Some(due) = course.next() {
                let is_ok = operation(db.clone()).await;
                course.ended(due, is_ok);
            }
            course.outcome()
        };
        loops.spawn_on(run, runtime.handle());
    }
    let outcomes = runtime.block_on(loops.join_all());
    outcomes.into_iter().reduce(Outcome::and).ok_or_else(|| "no loop ran".into())
}

fn batch(number: u32, pairs: u32) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..pairs {
        batch.execute(INSERT, (number, micros(), "x".repeat(BODY_BYTES)));
        batch.execute(COUNT, [number]);
    }
    batch
}
