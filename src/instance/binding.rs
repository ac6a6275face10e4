//! The beginning of a primary's service: its sockets are bound by a task of their own, and the workdir is told who leads.

use std::sync::Arc;
use std::time::Duration;

use pando_ipc::bus::{Bus, BusError, BusOptions, Limits};
use pando_ipc::lock::Lease;
use pando_ipc::process::ProcessId;
use pando_ipc::{LockInfo, hello};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::JoinError;
use super::lead::Primary;
use crate::methods;

/// The sockets of a term, while they are bound: the runtime's thread that lets this instance write goes on with those writes at once.
pub(super) struct Binding {
    primary: Arc<Primary>,
    bound: JoinHandle<Result<Bus, BusError>>,
}

impl Binding {
    /// Begins to bind.
    pub(super) fn begin(primary: Arc<Primary>) -> Self {
        let options = BusOptions {
            workdir: primary.shared.workdir.clone(),
            epoch: primary.writer.epoch(),
            tcp: primary.shared.options.tcp,
            limits: Limits::default(),
        };
        let served = Arc::clone(&primary);
        let bound = TaskTracker::new().spawn(async move { Bus::start(options, methods::bind(&served)).await });
        Self { primary, bound }
    }

    /// Waits until all is bound, and tells the workdir who leads. After an error nobody is served.
    pub(super) async fn serve(self, lease: &Lease) -> Result<(Arc<Primary>, Bus), JoinError> {
        let Self { primary, bound } = self;
        let bus = match bound.await {
            Ok(bound) => bound?,
            Err(ended) => match ended.try_into_panic() {
                Ok(panicked) => std::panic::resume_unwind(panicked),
                // The runtime ends, and so does this.
                Err(_cancelled) => std::future::pending().await,
            },
        };
        primary.serve_by(&bus);
        if let Err(error) = lease.advertise(&who_leads(&primary, &bus)) {
            bus.shutdown(Duration::ZERO).await;
            primary.served();
            return Err(error.into());
        }
        Ok((primary, bus))
    }
}

/// Returns what the lock file says of a primary.
fn who_leads(primary: &Primary, bus: &Bus) -> LockInfo {
    let (shared, ports) = (&primary.shared, bus.ports());
    LockInfo {
        instance_id: shared.id.clone(),
        pid: std::process::id(),
        pub_port: ports.map_or(0, |ports| ports.publish),
        rpc_port: ports.map_or(0, |ports| ports.rpc),
        started_at: primary.since,
        epoch: Some(primary.writer.epoch()),
        workdir: Some(shared.workdir.path().to_owned()),
        protocol: Some(hello::protocol()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        endpoints: Some(bus.endpoints()),
        process: ProcessId::of(std::process::id()),
        successor: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Instance, Options, Workdir};

    #[tokio::test]
    async fn nothing_of_a_term_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::join(Workdir::open(dir.path()).unwrap(), Options::default()).await.unwrap();
        let shared = Arc::downgrade(&instance.shared);
        instance.leave().await;
        assert_eq!(shared.strong_count(), 0);
    }
}
