//! `pando up --replace`: takes the primary's role over, then ends the instance that had it.

use std::time::Duration;

use pando::{Instance, Role};
use pando_ipc::{Code, Workdir};
use serde_json::json;
use tokio::time::Instant;

use crate::cli::failure::Failure;

/// Pause between two attempts to reach the former primary, which first has to connect to us.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long it may take to connect. Later it is left alone: it runs on as a secondary.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// Takes over from the primary, whoever it is, and asks it to leave. One inside another program stays, as a secondary.
pub(super) async fn run(instance: &Instance, workdir: &Workdir) -> Result<(), Failure> {
    let former = match &*instance.role().borrow() {
        Role::Secondary { primary, .. } => Some(primary.clone()),
        Role::Seeking | Role::Primary { .. } => None,
    };
    instance.take_over().await.map_err(|error| Failure::call(error, workdir))?;
    let Some(former) = former else { return Ok(()) };
    let deadline = Instant::now() + CONNECTS_WITHIN;
    while Instant::now() < deadline {
        match instance.call("instance.stop", json!({"instance_id": former})).await {
            Ok(_) => return Ok(()),
            Err(error) if error.fault().is_some_and(|fault| fault.is(Code::NotFound)) => {}
            Err(error) => return Err(Failure::call(error, workdir)),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    tracing::info!(former, "the former primary stays: it runs inside another program, or has left already");
    Ok(())
}
