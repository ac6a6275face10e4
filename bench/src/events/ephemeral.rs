//! Ephemeral events: published by the primary itself, received by Pando's client.

use std::path::Path;
use std::time::{Duration, Instant};

use pando::{Client, Envelope, Pattern, Topic, Workdir};
use pando_ipc::Kind;
use pando_ipc::client::{Delivery, Options};

use super::{EPHEMERAL, payload, stamp};
use crate::load::{Course, Deliveries, Pace, monotonic_ns, wait_until};
use crate::plain::Stream;
use crate::runtime::Threads;
use crate::station::Station;
use crate::{Failure, fleet};

/// Events that are queued before the publisher waits for the sockets.
const BURST: u32 = 256;
/// How long it waits at a time.
const PATIENCE: Duration = Duration::from_millis(100);

/// Publishes, at a pace or as fast as the sockets take it.
pub(super) fn station(workdir: &Path, pace: Pace, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let station = runtime.block_on(Station::open(Workdir::open(workdir)?))?;
    let topic = Topic::new(EPHEMERAL)?;
    let mut bare = Envelope::new("inst-bench", topic.clone(), payload(0, 0, 0));
    (bare.epoch, bare.n) = (Some(1), Some(100_000));
    // `payload` alone, with an empty text, has as many bytes in any envelope.
    let around = bare.to_frame().len() - bare.payload.to_string().len();
    ready()?;
    let began = Instant::now();
    let end = began + pace.warm_up + pace.time;
    let course = Course::begin(pace);
    let event =
        move |number: u32, due_ns| Envelope::new("inst-bench", topic.clone(), payload(due_ns, number.into(), around));
    let station = if let Some(rate) = pace.per_second {
        for number in 1.. {
            if Instant::now() >= end {
                break;
            }
            let due = began + Duration::from_secs_f64(f64::from(number) / rate);
            wait_until(due);
            station.publish(event(number, monotonic_ns() - u64::try_from(due.elapsed().as_nanos())?));
        }
        station
    } else {
        // On a task, as in an application.
        let task = runtime.spawn(async move {
            for number in 1.. {
                if Instant::now() >= end {
                    break;
                }
                station.publish(event(number, monotonic_ns()));
                if number % BURST == 0 {
                    station.flush(PATIENCE).await;
                }
            }
            station
        });
        runtime.block_on(task)?
    };
    fleet::done(Some(&course.outcome().into_idle()))?;
    runtime.block_on(station.close());
    Ok(())
}

/// Receives until the time is over.
pub(super) fn subscribe(
    workdir: &Path,
    topic: &str,
    pace: Pace,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let options = Options::new(format!("subscriber-{}", std::process::id()), Kind::Client);
    let client = runtime.block_on(Client::connect(Workdir::open(workdir)?, options))?;
    let mut subscription = runtime.block_on(client.subscribe(Pattern::new(topic)?))?;
    ready()?;
    let mut deliveries = Deliveries::begin(pace);
    // On a task, as in an application, not on the thread that only waits.
    let task = runtime.spawn(async move {
        let end = tokio::time::sleep_until(deliveries.end().into());
        tokio::pin!(end);
        loop {
            let delivery = tokio::select! {
                biased;
                delivery = subscription.recv() => delivery,
                () = &mut end => break,
            };
            match delivery {
                Some(Delivery::Event(event)) => {
                    let Some((due_ns, number)) = stamp(&event.payload) else { continue };
                    if deliveries.received(number, due_ns) {
                        break;
                    }
                }
                Some(Delivery::Lagged(count)) => deliveries.lost(count),
                Some(Delivery::Relinked { .. }) => deliveries.lost(1),
                None => break,
            }
        }
        deliveries.outcome()
    });
    let outcome = runtime.block_on(task)?;
    fleet::done(Some(&outcome))?;
    runtime.block_on(client.hang_up());
    Ok(())
}

/// Subscribes, and reads nothing.
pub(super) fn stall(endpoint: &str, pace: Pace, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let _stream = Stream::subscribe(endpoint, EPHEMERAL.as_bytes())?;
    ready()?;
    fleet::done(Some(&Course::idle(pace)))
}
