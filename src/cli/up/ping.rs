//! `pando up --ping`: shows that the primary answers this very instance.

use std::time::Instant;

use pando::Instance;
use pando_ipc::hello::PING;
use serde::Serialize;
use serde_json::json;

use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

/// The line on stdout.
#[derive(Debug, Serialize)]
struct Pong {
    ping: &'static str,
    ms: u128,
}

/// Calls the primary, whoever it is, and prints how long the answer took.
pub(super) async fn run(instance: &Instance) -> Result<(), Failure> {
    let asked = Instant::now();
    let answer = instance.call(PING, json!({})).await;
    answer.map_err(|error| Failure::new(Kind::Failed, format!("the primary did not answer {PING}: {error}")))?;
    output::json(&Pong { ping: "ok", ms: asked.elapsed().as_millis() })
}
