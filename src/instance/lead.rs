//! A primary's term: open the database, bind, advertise, serve, and leave in good order.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pando_bridge::Outbound;
use pando_dbproxy::{Ack, CALM, Db, Fenced, OpId, ReadError, Standby, Work, WriteRequest, Writer, WriterOptions};
use pando_ipc::bus::Bus;
use pando_ipc::failpoint::{self, Point};
use pando_ipc::lock::Lease;
use pando_ipc::methods::{Caller, Door};
use pando_ipc::{Code, Envelope, Fault, Hello, LockInfo, Timestamp, Topic, read_lock_for_path, topic};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use super::binding::Binding;
use super::rates::Rates;
use super::roster::{Member, Roster};
use super::route::Route;
use super::terms::Ended;
use super::{HEARTBEAT, JoinError, Role, Shared};

/// How often an instance compares the lock file's path with the file that it holds, or waits for.
pub(super) const LOCK_CHECK: Duration = Duration::from_millis(500);
/// How often refused and cut-off peers are told of: at most one log line and one event per reason and look, so that nobody
/// fills the log or the journal by knocking.
const REFUSALS_LOOK: Duration = Duration::from_secs(1);
/// How long a leaving primary waits for calls in flight.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it waits for peers to read the last events and answers; and again for the last word to each. Everybody else's writes wait meanwhile. Who reads
/// nothing for so long has the journal, and its calls are sent again.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// The same for one that has lost its place, and must be gone within a second.
const SHORT_FAREWELL: Duration = Duration::from_millis(200);
/// Arrivals that wait to be told to everyone. When it is full an arrival is not announced; it still shows in `instance.list`.
const ARRIVALS: usize = 1_024;
/// Events per read when the hub catches up.
const CATCH_UP_EVENTS: usize = 1_000;

/// What the methods of one primary's term work with.
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Writer,
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) roster: Roster,
    pub(crate) since: Timestamp,
    /// Taken away at the end of the term, see [`Primary::served`].
    bus: Mutex<Option<Bus>>,
    arrivals: mpsc::Sender<Hello>,
    pub(super) rates: Rates,
    /// Takes the instance that the role is handed to; the first one stands.
    successor: mpsc::Sender<String>,
    /// Cancelled when the term ends: methods that wait for something then answer at once.
    pub(crate) leaving: CancellationToken,
}

impl Primary {
    fn new(
        shared: &Arc<Shared>,
        writer: Writer,
        outbound: Arc<Outbound>,
        arrivals: mpsc::Sender<Hello>,
        successor: mpsc::Sender<String>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            writer,
            outbound,
            roster: Roster::default(),
            since: Timestamp::now(),
            bus: Mutex::default(),
            arrivals,
            rates: Rates::default(),
            successor,
            leaving: CancellationToken::new(),
        }
    }

    /// Sends events to the bus from now on.
    pub(super) fn serve_by(&self, bus: &Bus) {
        *self.bus.lock().unwrap_or_else(PoisonError::into_inner) = Some(bus.clone());
        self.outbound.attach(self.writer.epoch(), bus.clone());
    }

    /// Lets go of the bus, which has ended: it holds the methods, which hold this.
    pub(super) fn served(&self) {
        self.outbound.detach();
        self.bus.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns the bus, while the term lasts.
    pub(crate) fn bus(&self) -> Option<Bus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends this term and hands the role to `to`, or to the secondary that came last. Returns who it is; it leads soon after.
    pub(crate) fn hand_over(&self, to: Option<&str>) -> Result<String, Fault> {
        let own = &self.shared.id;
        if to == Some(own) {
            return Ok(own.clone());
        }
        let Some(successor) = self.roster.newest_instance(to).filter(|id| id != own) else {
            let whom = to.map_or_else(|| "no secondary".to_owned(), |to| format!("no instance {to:?}"));
            let why = format!("{whom} is here to hand over to; 'pando ipc instances' lists all");
            return Err(Fault::new(Code::NotFound, why));
        };
        // An error means that a successor was named before, or that the term ends: the caller sees who leads next.
        drop(self.successor.try_send(successor.clone()));
        Ok(successor)
    }

    /// Enters a peer that said hello, and tells everyone when it is a new instance.
    pub(crate) fn welcome(&self, peer: u64, hello: Hello) {
        if self.roster.enter(peer, hello.clone())
            && let Err(error) = self.arrivals.try_send(hello)
        {
            tracing::warn!(%error, "an instance joined unannounced");
        }
    }

    /// Returns the name under which a caller publishes and writes: its instance id once it said hello, else a label of its connection that no other one ever has.
    pub(crate) fn name_of(&self, caller: &Caller) -> String {
        match caller.door {
            Door::Local => self.shared.id.clone(),
            _ => caller.hello().map_or_else(
                || format!("peer-{}.{}", self.writer.epoch(), caller.peer),
                |hello| hello.instance_id.clone(),
            ),
        }
    }

    /// Returns the database for a caller: the reads of one connection take turns with those of the others.
    pub(crate) fn db(&self, caller: &Caller) -> Db {
        self.shared.db.for_source(caller.peer)
    }

    /// Writes in the name of `source`, under a key of its own when none is given.
    pub(crate) async fn write(&self, source: String, op_id: Option<String>, work: Work) -> Result<Ack, Fault> {
        let op_id = op_id.as_deref().map_or_else(OpId::fresh, OpId::parse);
        let deadline = std::time::Instant::now() + self.shared.options.call_timeout;
        self.writer.submit(WriteRequest::new(op_id, source, deadline, work)?).await
    }

    /// Journals an event in the name of this instance and returns its `seq`.
    pub(crate) async fn publish(&self, topic: Topic, payload: Value, session_id: String) -> Result<u64, Fault> {
        let work = Work::Publish { topic, payload: payload.into(), session_id, project_id: String::new() };
        Ok(self.write(self.shared.id.clone(), None, work).await?.seq)
    }

    /// Journals news of this instance. A failure is logged: it is no write of a user.
    async fn announce(&self, topic: &'static str, payload: Value) {
        if let Err(error) = self.publish(Topic::known(topic), payload, String::new()).await {
            tracing::warn!(topic, %error, "event not journaled");
        }
    }

    /// Tells everyone who was refused or cut off since the last look.
    fn tell_refusals(&self) {
        for refused in self.bus().iter().flat_map(Bus::take_refusals) {
            tracing::warn!(?refused, "peers refused");
            let event = Envelope::new(&*self.shared.id, Topic::known(topic::DOOR_REFUSED), json!(refused));
            self.outbound.ephemeral(event);
        }
    }
}

enum Step {
    End(End),
    Beat,
    CheckLock,
    LookAtRefusals,
    Arrived(Hello),
    Departed(Result<u64, broadcast::error::RecvError>),
}

/// Why a term ends.
enum End {
    Stop,
    Deposed(Fenced),
    HandOver(String),
}

/// What comes to a primary while it leads.
struct Incoming {
    arrived: mpsc::Receiver<Hello>,
    departures: broadcast::Receiver<u64>,
    chosen: mpsc::Receiver<String>,
}

/// Leads until `stop`, or until the lock or the database is no longer ours.
pub(super) async fn lead(
    shared: &Arc<Shared>,
    Opened { writer, outbound, lease, winding_up }: Opened,
    stop: &CancellationToken,
    failed: &mut Option<oneshot::Sender<JoinError>>,
) -> Result<Ended, JoinError> {
    let (arrivals, arrived) = mpsc::channel(ARRIVALS);
    let (successor, chosen) = mpsc::channel(1);
    let (primary, bus, previous) = begin(shared, &lease, writer, outbound, winding_up, arrivals, successor).await?;
    failed.take();
    failpoint::hit(Point::TermServes);
    let incoming = Incoming { arrived, departures: bus.departures(), chosen };
    let promoted = json!({
        "instance_id": shared.id,
        "epoch": primary.writer.epoch(),
        "previous": previous.map(|info| json!({"instance_id": info.instance_id, "epoch": info.epoch})),
    });
    shared.terms.fetch_add(1, Ordering::Relaxed);
    primary.announce(topic::PROMOTED, promoted).await;
    let end = serve(&primary, &lease, stop, incoming).await;
    finish(&primary, &bus, &end).await;
    let ended = match end {
        End::Stop => Ended::Stopped,
        End::Deposed(_) => Ended::Deposed,
        End::HandOver(successor) => {
            if let Err(error) = lease.hand_to(&successor) {
                tracing::warn!(%error, successor, "the successor was not written down: any candidate may lead next");
            }
            Ended::HandedOver
        }
    };
    // The lock goes last: whoever wakes now finds everything closed.
    drop(lease);
    Ok(ended)
}

/// The database at the beginning of a term: its epoch is counted up, this instance writes, and nobody else is served yet.
#[derive(Debug)]
pub(super) struct Opened {
    writer: Writer,
    outbound: Arc<Outbound>,
    /// It goes last.
    lease: Lease,
    /// What is left of the former term and may still feed the hub.
    winding_up: Option<JoinHandle<()>>,
}

impl Opened {
    /// Has the former term wind up beside this one.
    pub(super) fn beside(self, winding_up: JoinHandle<()>) -> Self {
        Self { winding_up: Some(winding_up), ..self }
    }
}

/// Waits until what is left of a former term has ended.
pub(super) async fn ended(winding_up: JoinHandle<()>) {
    if let Err(ended) = winding_up.await
        && let Ok(panicked) = ended.try_into_panic()
    {
        std::panic::resume_unwind(panicked);
    }
}

/// Opens the database, begins an epoch with what was prepared for it, and lets this instance write, which needs no socket. Blocks.
pub(super) fn open(shared: &Shared, lease: Lease, standby: Option<Standby>) -> Result<Opened, JoinError> {
    let outbound = Arc::new(Outbound::new(shared.hub.clone()));
    let carrier = Arc::clone(&outbound);
    let options = WriterOptions {
        instance_id: shared.id.clone(),
        workdir: shared.workdir.path().to_owned(),
        durability: shared.options.durability,
        writes: shared.options.writes.clone(),
        on_commit: Box::new(move |events| carrier.carry(events)),
    };
    let writer = Writer::open_prepared(&shared.workdir.database_path(), standby, options)?;
    failpoint::hit(Point::TermOpened);
    shared.place_hub(writer.head());
    shared.routes.set(Route::None, Some(Arc::new(writer.clone())));
    Ok(Opened { writer, outbound, lease, winding_up: None })
}

/// Runs the rest of the winning order: bind, advertise, serve, while the hub catches up. Returns what the lock file said before, too.
async fn begin(
    shared: &Arc<Shared>,
    lease: &Lease,
    writer: Writer,
    outbound: Arc<Outbound>,
    winding_up: Option<JoinHandle<()>>,
    arrivals: mpsc::Sender<Hello>,
    successor: mpsc::Sender<String>,
) -> Result<(Arc<Primary>, Bus, Option<LockInfo>), JoinError> {
    let carrier = Arc::clone(&outbound);
    let binding = Binding::begin(Arc::new(Primary::new(shared, writer.clone(), outbound, arrivals, successor)));
    let previous = read_lock_for_path(&shared.workdir).ok();
    let feeding = async {
        if let Some(winding_up) = winding_up {
            ended(winding_up).await;
        }
        go_live(shared, &writer, &carrier).await;
        failpoint::hit(Point::TermCaughtUp);
    };
    let ((), begun) = tokio::join!(feeding, binding.serve(lease));
    if let Ok((_, bus)) = &begun {
        shared.routes.set(Route::Local(bus.methods().clone()), Some(Arc::new(writer.clone())));
        let (epoch, ports, endpoints) = (writer.epoch(), bus.ports(), bus.endpoints());
        shared.take_role(Role::Primary { epoch, ports, endpoints });
    } else {
        // The lock goes next: nothing is written any more then.
        shared.routes.clear();
        writer.close_for_successor().await;
    }
    begun.map(|(primary, bus)| (primary, bus, previous))
}

/// Feeds the hub with what it has not seen, of former primaries and of this term, until it takes what is committed as it comes.
async fn go_live(shared: &Shared, writer: &Writer, outbound: &Outbound) {
    let mut is_live = outbound.go_live(|position| position == writer.head());
    while !is_live {
        is_live = match catch_up(shared).await {
            Ok(()) => outbound.go_live(|position| position >= writer.head()),
            Err(error) => {
                tracing::warn!(%error, "could not catch up from the journal");
                outbound.go_live(|_behind| true)
            }
        };
    }
}

/// Delivers what primaries committed and subscribers of this instance have not seen. The lock is held.
pub(super) async fn catch_up(shared: &Shared) -> Result<(), ReadError> {
    let interest = shared.hub.interest().borrow().clone();
    loop {
        let page = shared.readers.since(shared.hub.position(), &interest, CATCH_UP_EVENTS).await?;
        if let Some(resync) = page.resync {
            shared.hub.resync(resync.from, resync.to);
        }
        page.events.into_iter().for_each(|event| shared.hub.deliver(&Arc::new(event)));
        shared.hub.start_behind(page.upto);
        if page.upto >= page.head {
            return Ok(());
        }
    }
}

async fn serve(primary: &Arc<Primary>, lease: &Lease, stop: &CancellationToken, mut incoming: Incoming) -> End {
    let shared = &primary.shared;
    // It counts sessions, which reads them: the first writes of a term come before that.
    let mut beat = interval_at(Instant::now() + CALM, HEARTBEAT);
    let mut check = interval(LOCK_CHECK);
    let mut refusals = interval(REFUSALS_LOOK);
    for timer in [&mut beat, &mut check, &mut refusals] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let step = tokio::select! {
            () = stop.cancelled() => Step::End(End::Stop),
            why = primary.writer.fenced() => Step::End(End::Deposed(why)),
            Some(successor) = incoming.chosen.recv() => Step::End(End::HandOver(successor)),
            _ = beat.tick() => Step::Beat,
            _ = check.tick() => Step::CheckLock,
            _ = refusals.tick() => Step::LookAtRefusals,
            Some(hello) = incoming.arrived.recv() => Step::Arrived(hello),
            peer = incoming.departures.recv() => Step::Departed(peer),
        };
        match step {
            Step::End(end) => return end,
            Step::CheckLock if lease.is_current() => {}
            Step::CheckLock => primary.writer.depose(Fenced::LockLost),
            Step::Beat => {
                let payload = shared.heartbeat("primary", primary.writer.head()).await;
                primary.outbound.ephemeral(Envelope::new(&*shared.id, Topic::known(topic::HEARTBEAT), payload));
            }
            Step::LookAtRefusals => {
                primary.tell_refusals();
                primary.sample();
            }
            Step::Arrived(hello) => primary.announce(topic::JOINED, json!(hello)).await,
            Step::Departed(Ok(peer)) => {
                if let Some(Member { hello, .. }) = primary.roster.strike(peer) {
                    primary.outbound.forget(&hello.instance_id);
                    primary.announce(topic::LEFT, json!({"instance_id": hello.instance_id, "pid": hello.pid})).await;
                }
            }
            Step::Departed(Err(lost)) => tracing::warn!(%lost, "departures overlooked"),
        }
    }
}

/// Ends a term. In good order: what is new is refused and waits for the next primary, what is in flight ends, the goodbye is the last
/// write, then everything is written out and closed. A primary that lost its place only closes.
async fn finish(primary: &Primary, bus: &Bus, end: &End) {
    failpoint::hit(Point::ShutdownBegin);
    // Who comes next waits for the lock; what is in the log is moved later, by it.
    let is_followed = matches!(end, End::Deposed(_)) || primary.roster.newest_instance(None).is_some();
    let farewell = match end {
        End::Deposed(why) => {
            tracing::error!(%why, "stepping down");
            bus.refuse(Fault::new(Code::Fenced, format!("{why}; nothing was applied")));
            SHORT_FAREWELL
        }
        End::Stop | End::HandOver(_) => FAREWELL,
    };
    bus.refuse(Fault::new(Code::NotPrimary, "the primary is leaving; nothing was applied"));
    primary.shared.routes.clear();
    primary.leaving.cancel();
    tokio::join!(bus.drain(farewell), primary.shared.routes.drain(farewell));
    if matches!(end, End::Stop) {
        let goodbye = json!({"instance_id": primary.shared.id, "epoch": primary.writer.epoch()});
        primary.announce(topic::SHUTDOWN, goodbye).await;
    }
    failpoint::hit(Point::ShutdownGoodbye);
    if is_followed {
        primary.writer.clone().close_for_successor().await;
    } else {
        primary.writer.clone().close().await;
    }
    failpoint::hit(Point::ShutdownDrained);
    let farewell = farewell.min(LAST_WORDS);
    if !bus.flush(farewell).await {
        tracing::warn!("a subscriber did not read the last events");
    }
    failpoint::hit(Point::ShutdownFlushed);
    bus.shutdown(farewell).await;
    failpoint::hit(Point::ShutdownClosed);
    primary.served();
}
