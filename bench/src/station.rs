//! A primary of the bench's own: lock, bus and handshake as in Pando, and methods that do nothing that would be measured along.

use std::sync::Arc;
use std::time::Duration;

use pando::{Capability, Envelope, TcpDoor, Topic, Workdir};
use pando_bridge::Outbound;
use pando_ipc::bus::{Bus, BusOptions, Limits};
use pando_ipc::hello::{HELLO, PING, PUBLISH};
use pando_ipc::lock::{Claim, Lease, LockInfo, acquire_lock};
use pando_ipc::methods::Methods;
use pando_ipc::process::ProcessId;
use pando_ipc::{Fault, PROTOCOL, Timestamp, Welcome};
use serde_json::{Value, json};

use crate::Failure;

/// Name of the instance, in events and in the lock file.
const NAME: &str = "inst-bench";
/// Its term.
const EPOCH: u64 = 1;
/// How long the end may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// The method that answers its params, inline.
pub(crate) const ECHO: &str = "echo";

/// A primary that serves until it is closed.
#[derive(Debug)]
pub(crate) struct Station {
    bus: Bus,
    outbound: Arc<Outbound>,
    _lease: Lease,
}

impl Station {
    /// Wins the lock, binds both doors, advertises and serves.
    pub(crate) async fn open(workdir: Workdir) -> Result<Self, Failure> {
        let Claim::Won(lease) = acquire_lock(&workdir, Duration::ZERO).await? else {
            return Err("somebody else leads".into());
        };
        let outbound = Arc::new(Outbound::new(pando_bridge::Hub::new()));
        let methods = methods(&workdir, &outbound);
        let (tcp, limits) = (TcpDoor::OwnUser, Limits::default());
        let bus = Bus::start(BusOptions { workdir: workdir.clone(), epoch: EPOCH, tcp, limits }, methods).await?;
        outbound.attach(EPOCH, bus.clone());
        let ports = bus.ports();
        lease.advertise(&LockInfo {
            instance_id: NAME.to_owned(),
            pid: std::process::id(),
            pub_port: ports.map_or(0, |ports| ports.publish),
            rpc_port: ports.map_or(0, |ports| ports.rpc),
            started_at: Timestamp::now(),
            epoch: Some(EPOCH),
            workdir: Some(workdir.path().to_owned()),
            protocol: Some(PROTOCOL),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            endpoints: Some(bus.endpoints()),
            process: ProcessId::of(std::process::id()),
            successor: None,
        })?;
        Ok(Self { bus, outbound, _lease: lease })
    }

    /// Publishes an ephemeral event.
    pub(crate) fn publish(&self, event: Envelope) {
        self.outbound.ephemeral(event);
    }

    /// Waits until all that was published has been written to the sockets, or for so long.
    pub(crate) async fn flush(&self, within: Duration) -> bool {
        self.bus.flush(within).await
    }

    /// Ends it.
    pub(crate) async fn close(self) {
        self.bus.shutdown(FAREWELL).await;
    }
}

fn methods(workdir: &Workdir, outbound: &Arc<Outbound>) -> Methods {
    let methods = Methods::new();
    let welcome = json!(Welcome {
        instance_id: NAME.to_owned(),
        epoch: EPOCH,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        workdir: workdir.path().to_owned(),
        database: uuid::Uuid::nil(),
    });
    methods.register_inline(HELLO, Capability::Read, move |_| Ok(welcome.clone()));
    methods.register_inline(PING, Capability::Read, |_| Ok(json!({"status": "ok"})));
    methods.register_inline(ECHO, Capability::Read, |call| Ok(call.params));
    let outbound = Arc::clone(outbound);
    // Clients prove their subscriptions by probes.
    methods.register_inline(PUBLISH, Capability::Read, move |call| {
        let params: Value = call.params.read().map_err(|error| Fault::invalid_params("params", error))?;
        let topic = Topic::new(params["topic"].as_str().unwrap_or_default());
        let topic = topic.map_err(|error| Fault::invalid_params("topic", error))?;
        outbound.ephemeral(Envelope::new(NAME, topic, params["payload"].clone()));
        Ok(Value::Object(serde_json::Map::new()))
    });
    methods
}
