//! Durable events: journaled by the primary before they are acknowledged, published by secondaries.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pando::{Durability, Envelope, Instance, Options, Role, Topic, Workdir};
use tokio::task::JoinSet;

use super::jet_stream::JetStream;
use super::redis::Redis;
use super::{DURABLE, Job, payload, per_subscriber};
use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Course, Outcome, Pace, monotonic_ns, wait_until};
use crate::runtime::Threads;
use crate::servers::{self, Talk};

async fn join(workdir: &Path, leads: bool, durability: Durability) -> Result<Instance, Failure> {
    let options = Options { require_primary: leads, durability: leads.then_some(durability), ..Options::default() };
    let instance = Instance::join(Workdir::open(workdir)?, options).await?;
    instance.role().wait_for(|role| *role != Role::Seeking).await?;
    Ok(instance)
}

/// Leads, and serves.
pub(super) fn lead(
    workdir: &Path,
    durability: Durability,
    pace: Pace,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let instance = runtime.block_on(join(workdir, true, durability))?;
    ready()?;
    fleet::done(Some(&Course::idle(pace)))?;
    runtime.block_on(instance.leave());
    Ok(())
}

/// Publishes, at a pace one after the other, or so many at once; what is measured is the acknowledgement.
pub(super) fn publish(
    workdir: &Path,
    in_flight: u32,
    pace: Pace,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let instance = Arc::new(runtime.block_on(join(workdir, false, Durability::Os))?);
    let mut bare = Envelope::new(instance.id(), Topic::new(DURABLE)?, payload(0, 0, 0));
    (bare.epoch, bare.seq, bare.prev) = (Some(1), Some(10_000), Some(10_000));
    let around = bare.to_frame().len() - bare.payload.to_string().len();
    ready()?;
    let number = Arc::new(AtomicU64::new(0));
    let outcome = if let Some(rate) = pace.per_second {
        let began = Instant::now();
        let mut course = Course::begin(Pace { per_second: None, ..pace });
        for count in 1_u32.. {
            let due = began + Duration::from_secs_f64(f64::from(count) / rate);
            wait_until(due);
            if course.next().is_none() {
                break;
            }
            let due_ns = monotonic_ns() - u64::try_from(due.elapsed().as_nanos())?;
            let is_ok = runtime.block_on(publish_one(&instance, &number, due_ns, around));
            course.ended(due, is_ok);
        }
        // What counts is what subscribers received.
        course.outcome().into_idle()
    } else {
        let mut loops = JoinSet::new();
        for _ in 0..in_flight {
            let (instance, number, mut course) = (Arc::clone(&instance), Arc::clone(&number), Course::begin(pace));
            let run = async move {
                while let Some(due) = course.next() {
                    let is_ok = publish_one(&instance, &number, monotonic_ns(), around).await;
                    course.ended(due, is_ok);
                }
                course.outcome()
            };
            loops.spawn_on(run, runtime.handle());
        }
        let outcomes = runtime.block_on(loops.join_all());
        outcomes.into_iter().reduce(Outcome::and).ok_or("no loop ran")?
    };
    fleet::done(Some(&outcome))?;
    let instance = Arc::into_inner(instance).ok_or("somebody still publishes")?;
    runtime.block_on(instance.leave());
    Ok(())
}

async fn publish_one(instance: &Instance, number: &AtomicU64, due_ns: u64, around: usize) -> bool {
    let number = number.fetch_add(1, Ordering::Relaxed) + 1;
    instance.events().publish(DURABLE, payload(due_ns, number, around), "").await.is_ok()
}

/// How durable events flow.
#[derive(Debug, Clone, Copy)]
struct Flow {
    durability: Durability,
    publishers: u32,
    in_flight: u32,
    subscribers: u32,
    per_second: Option<f64>,
}

impl Flow {
    fn run(self, context: &Context) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let workdir = scratch.path().to_owned();
        let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: self.per_second, seed: 1 };
        let mut fleet = Fleet::default();
        let mut start = |job| fleet.start(&fleet::Job::Events(job), None);
        start(Job::Lead { workdir: workdir.clone(), durability: self.durability, pace })?;
        for _ in 0..self.subscribers {
            start(Job::Subscribe { workdir: workdir.clone(), topic: DURABLE.to_owned(), pace })?;
        }
        for _ in 0..self.publishers {
            start(Job::Publish { workdir: workdir.clone(), in_flight: self.in_flight, pace })?;
        }
        let metrics = load::sum(&fleet.go()?);
        Ok(if self.subscribers > 0 { per_subscriber(metrics, self.subscribers) } else { metrics })
    }

    fn case(self, name: &'static str, peers: Vec<Contender>, targets: Vec<Target>) -> Case {
        let about = if self.subscribers == 0 {
            format!(
                "{} secondaries publish with {} in flight each; rate and latency of acknowledgements",
                self.publishers, self.in_flight
            )
        } else {
            format!("a secondary publishes, {} subscribe; latency from publish to receive", self.subscribers)
        };
        let durability = match self.durability {
            Durability::Disk => "disk",
            Durability::Os => "os",
        };
        let own = Contender::new("pando", move |context| self.run(context));
        Case { name, about: format!("durable ({durability}), {about}"), peers, own, targets, skip: None }
    }
}

/// Returns the cases with durable events.
pub(super) fn cases(context: &Context) -> Vec<Case> {
    use Durability::{Disk, Os};
    let subscribers = if context.quick { 4 } else { 16 };
    let paced = Flow { durability: Os, publishers: 1, in_flight: 1, subscribers, per_second: Some(1_000.0) };
    let (publishers, in_flight) = (4, 64);
    let rate = |durability| Flow { durability, publishers, in_flight, subscribers: 0, per_second: None };
    let redis = |durability| servers::contender(Redis(durability), publishers, in_flight, context);
    vec![
        rate(Disk).case("durable-disk", vec![redis(Disk)], vec![Target::new("per_s", Rule::AtLeast(20_000.0))]),
        rate(Os).case(
            "durable-os",
            vec![servers::contender(JetStream, publishers, in_flight, context), redis(Os)],
            vec![Target::new("per_s", Rule::RatioAtLeast(1.0)).to(JetStream::NAME)],
        ),
        paced.case("durable-paced-16", vec![], vec![Target::new("lost", Rule::AtMost(0.0))]),
    ]
}
