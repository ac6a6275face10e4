//! The client against fake primaries: real flock, real lock file, the `zeromq` crate's own bound sockets.

mod calling;
mod dialling;
mod fake;
mod following;
mod subscribing;

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::hello::Kind;

/// Whatever should happen does so within this time, on a busy machine too.
const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it happens within 10 s")
}

fn workdir() -> (TempDir, Workdir) {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    workdir.prepare().unwrap();
    (dir, workdir)
}

/// Waits that no test but those about deadlines reaches.
fn patient() -> Options {
    let long = Duration::from_secs(60);
    Options { dial_timeout: long, call_timeout: long, ..Options::new("inst-test", Kind::Client) }
}

fn impatient(dial: Duration) -> Options {
    Options { dial_timeout: dial, ..patient() }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}
