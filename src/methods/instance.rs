//! `instance.*`: who leads, who is here, and who should leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pando_dbproxy::Durability;
use pando_ipc::access::Capability::{Control, Read};
use pando_ipc::bus::PeerStats;
use pando_ipc::hello::{HELLO, PING, STEP_DOWN, protocol};
use pando_ipc::methods::Call;
use pando_ipc::metrics::Metric;
use pando_ipc::rpc::Json;
use pando_ipc::{Code, Fault, Hello, Kind, Topic, topic};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Method, NoParams, read_params, write_result};
use crate::instance::{Member, Presence, Primary};

/// What `instance.ping` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Pong {
    /// Always `ok`.
    status: &'static str,
    /// The primary.
    instance_id: String,
    /// Seconds since it joined.
    uptime: u64,
}

/// What `instance.hello` takes.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "describes the shape of pando_ipc::Hello, which knows no schemas")]
struct HelloParams {
    /// The caller's own id.
    instance_id: String,
    /// `instance`, `client` or `observer`.
    kind: String,
    /// The caller's process.
    pid: u32,
    /// The caller's release.
    version: String,
    /// The caller's wire version.
    protocol: u32,
    /// Whether it is an instance that leaves when `pando down` asks; false when left out.
    headless: Option<bool>,
}

/// What `instance.hello` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct WelcomeResult {
    /// The primary; the lock file must name the same.
    instance_id: String,
    /// Its term; the lock file must name the same.
    epoch: u64,
    /// Its release.
    version: &'static str,
    /// Its wire version.
    protocol: u32,
    /// The directory it coordinates.
    workdir: PathBuf,
    /// The database's own id.
    database: String,
}

/// TCP ports of the primary.
#[derive(Debug, Serialize, JsonSchema)]
struct PortPair {
    /// Port of the PUB socket.
    r#pub: u16,
    /// Port of the ROUTER socket.
    rpc: u16,
}

/// What `instance.info` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Info {
    instance_id: String,
    role: &'static str,
    epoch: u64,
    pid: u32,
    version: &'static str,
    protocol: u32,
    workdir: PathBuf,
    database: String,
    /// When this term began, RFC 3339.
    started_at: String,
    /// Seconds since the instance joined.
    uptime: u64,
    /// `disk` or `os`: what an acknowledged write has survived.
    durability: Durability,
    /// Number of the last journaled event.
    head: u64,
    /// Rows in the sessions table.
    sessions: i64,
    /// TCP ports; null when that door is closed.
    ports: Option<PortPair>,
    /// ZeroMQ endpoints, best first.
    #[schemars(with = "Value")]
    endpoints: Json,
    /// Connections, refusals and queues of the bus.
    #[schemars(with = "Value")]
    bus: Json,
}

/// One line of `instance.list`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Listed {
    instance_id: String,
    kind: String,
    /// `primary`, `secondary` or `client`.
    role: &'static str,
    pid: u32,
    version: String,
    /// Whether it leaves when `pando down` asks.
    headless: bool,
    /// Since when it leads, or is connected to this primary; RFC 3339.
    since: String,
    /// `online`, `stale` (connected, but it says nothing) or `gone`.
    state: &'static str,
}

/// What `instance.list` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct List {
    /// The primary first, then everyone who said hello, in order of arrival.
    instances: Vec<Listed>,
    /// Instances that left in this term, the last ones of them.
    gone: Vec<Listed>,
}

/// What `instance.metrics` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Metrics {
    /// Each `{name, help, type, samples: [{labels, value}]}`. A histogram's value is `{count, sum, max, p50, p90, p99, buckets}`; times
    /// are in microseconds.
    #[schemars(with = "Vec<serde_json::Map<String, Value>>")]
    metrics: Vec<Metric>,
}

/// One line of `instance.doors`: a connection.
#[derive(Debug, Serialize, JsonSchema)]
struct Connection {
    /// What the bus knows of it.
    #[serde(flatten)]
    #[schemars(with = "serde_json::Map<String, Value>")]
    stats: PeerStats,
    /// The program of its process, where the system tells.
    executable: Option<PathBuf>,
}

/// What `instance.doors` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Doors {
    /// ZeroMQ endpoints, best first.
    #[schemars(with = "Value")]
    endpoints: Json,
    /// Who is connected, oldest first: one line per connection.
    peers: Vec<Connection>,
    /// The last connections that came and went, oldest first: `{at, peer, door, pid, socket, what}`; what is `connected`, `closed`, or why
    /// it was cut off.
    #[schemars(with = "Value")]
    transitions: Json,
    /// Connections accepted in this term, refused ones included.
    accepted: u64,
    /// What was refused or cut off in this term, by reason.
    #[schemars(with = "Value")]
    refusals: Json,
}

/// What `instance.stop` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct Stop {
    /// Whom to ask; everyone when left out.
    instance_id: Option<String>,
}

/// What `instance.step_down` takes.
#[derive(Debug, Deserialize, JsonSchema)]
struct StepDown {
    /// The secondary that is to lead; the one that arrived last when left out.
    to: Option<String>,
}

/// What `instance.step_down` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Successor {
    /// Who leads next, unless it dies just then.
    successor: String,
}

/// What `instance.stop` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Asked {
    /// Who was asked: headless instances (`pando up`) alone, the primary last.
    asked: Vec<String>,
}

pub(super) fn methods() -> Vec<Method> {
    vec![
        Method::inline::<NoParams, Pong>(PING, Read, "Tells that the primary is alive.", |primary, _call| {
            let shared = &primary.shared;
            write_result(Pong {
                status: "ok",
                instance_id: shared.id.clone(),
                uptime: shared.joined.elapsed().as_secs(),
            })
        }),
        Method::inline::<HelloParams, WelcomeResult>(HELLO, Read, "Introduces a peer and tells who leads.", hello),
        Method::new(
            "instance.info",
            Read,
            "Tells everything about the primary.",
            |primary, _caller, NoParams {}| async move { info(&primary).await },
        ),
        Method::new("instance.list", Read, "Lists who is connected.", |primary, _caller, NoParams {}| async move {
            Ok(List { instances: list(&primary), gone: primary.roster.gone().into_iter().map(listed).collect() })
        }),
        Method::new(
            "instance.metrics",
            Read,
            "Tells what was counted and timed in this term.",
            |primary, _caller, NoParams {}| async move { Ok(Metrics { metrics: primary.metrics() }) },
        ),
        Method::new(
            "instance.doors",
            Read,
            "Lists every connection: whose it is, and what went through it.",
            |primary, _caller, NoParams {}| async move { doors(&primary).await },
        ),
        Method::new(
            "instance.stop",
            Control,
            "Asks headless instances to leave.",
            |primary, _caller, params: Stop| async move { stop(&primary, params).await },
        ),
        Method::new(
            STEP_DOWN,
            Control,
            "Hands the primary's role to a secondary.",
            |primary, _caller, params: StepDown| async move {
                primary.hand_over(params.to.as_deref()).map(|successor| Successor { successor })
            },
        ),
    ]
}

fn hello(primary: &Primary, call: &Call) -> Result<Json, Fault> {
    let hello: Hello = read_params(&call.params)?;
    if hello.protocol != protocol() {
        let why = format!(
            "protocol {} of {} {} does not fit protocol {} of pando {}",
            hello.protocol,
            hello.instance_id,
            hello.version,
            protocol(),
            env!("CARGO_PKG_VERSION")
        );
        let fault = Fault::new(Code::Version, why).with("version", env!("CARGO_PKG_VERSION"));
        return Err(fault.with("protocol", protocol()));
    }
    primary.welcome(call.caller.peer, call.caller.introduce(hello).clone());
    write_result(WelcomeResult {
        instance_id: primary.shared.id.clone(),
        epoch: primary.writer.epoch(),
        version: env!("CARGO_PKG_VERSION"),
        protocol: protocol(),
        workdir: primary.shared.workdir.path().to_owned(),
        database: primary.writer.database().to_string(),
    })
}

async fn doors(primary: &Primary) -> Result<Doors, Fault> {
    let bus = primary.bus().ok_or_else(leaving)?;
    let (stats, endpoints, transitions) = (bus.stats(), write_result(bus.endpoints())?, bus.transitions());
    let peers = tokio::task::spawn_blocking(move || {
        let mut peers = bus.peers();
        name_followers(&mut peers);
        let executable = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        peers.into_iter().map(|stats| Connection { executable: stats.pid.and_then(executable), stats }).collect()
    });
    Ok(Doors {
        endpoints,
        peers: peers.await.map_err(Fault::internal)?,
        transitions: write_result(transitions)?,
        accepted: stats.accepted,
        refusals: write_result(stats.refusals)?,
    })
}

/// A connection that only follows says no hello: it is named after the one instance whose calls come from the same process.
fn name_followers(peers: &mut [PeerStats]) {
    let mut names: BTreeMap<u32, Option<String>> = BTreeMap::new();
    for peer in peers.iter() {
        if let (Some(pid), Some(name)) = (peer.pid, &peer.instance_id) {
            names
                .entry(pid)
                .and_modify(|known| {
                    known.take_if(|known| known != name);
                })
                .or_insert_with(|| Some(name.clone()));
        }
    }
    for peer in peers.iter_mut().filter(|peer| peer.instance_id.is_none()) {
        peer.instance_id = peer.pid.and_then(|pid| names.get(&pid).cloned().flatten());
    }
}

fn leaving() -> Fault {
    Fault::new(Code::NotPrimary, "the primary is leaving")
}

async fn info(primary: &Primary) -> Result<Info, Fault> {
    let shared = &primary.shared;
    let bus = primary.bus().ok_or_else(leaving)?;
    Ok(Info {
        instance_id: shared.id.clone(),
        role: "primary",
        epoch: primary.writer.epoch(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION"),
        protocol: protocol(),
        workdir: shared.workdir.path().to_owned(),
        database: primary.writer.database().to_string(),
        started_at: primary.since.to_string(),
        uptime: Instant::now().duration_since(shared.joined).as_secs(),
        durability: primary.writer.durability(),
        head: primary.writer.head(),
        sessions: shared.count_sessions().await,
        ports: bus.ports().map(|ports| PortPair { r#pub: ports.publish, rpc: ports.rpc }),
        endpoints: write_result(bus.endpoints())?,
        bus: write_result(bus.stats())?,
    })
}

/// Returns the primary and everyone who said hello.
pub(super) fn list(primary: &Primary) -> Vec<Listed> {
    let leader = Listed {
        instance_id: primary.shared.id.clone(),
        kind: Kind::Instance.to_string(),
        role: "primary",
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        headless: primary.shared.options.headless,
        since: primary.since.to_string(),
        state: Presence::Online.name(),
    };
    std::iter::once(leader).chain(primary.roster.list().into_iter().map(listed)).collect()
}

fn listed(member: Member) -> Listed {
    let state = member.presence(Instant::now()).name();
    let Member { hello, since, .. } = member;
    Listed {
        role: if hello.kind == Kind::Instance { "secondary" } else { "client" },
        instance_id: hello.instance_id,
        kind: hello.kind.to_string(),
        pid: hello.pid,
        version: hello.version,
        headless: hello.headless,
        since: since.to_string(),
        state,
    }
}

async fn stop(primary: &Primary, params: Stop) -> Result<Asked, Fault> {
    let mut asked: Vec<String> =
        list(primary).into_iter().filter(|listed| listed.headless).map(|listed| listed.instance_id).collect();
    if let Some(wanted) = params.instance_id {
        if !asked.contains(&wanted) {
            let why = format!("no headless instance {wanted:?} is here; 'pando ipc instances' lists all");
            return Err(Fault::new(Code::NotFound, why));
        }
        asked = vec![wanted];
    }
    // The primary goes last, so that its secondaries still hear that they were asked.
    if asked.first() == Some(&primary.shared.id) {
        asked.rotate_left(1);
    }
    primary.publish(Topic::known(topic::STOP), json!({"instances": asked}), String::new()).await?;
    Ok(Asked { asked })
}
