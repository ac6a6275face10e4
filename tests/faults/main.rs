//! What Pando promises, kept while its processes are killed, stopped and starved: faults, a recorded history, and a checker.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

mod checker;
mod controls;
mod history;
mod kills;
mod points;
mod random;
#[path = "../../src/cli/up/trial/record.rs"]
mod record;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the other integration tests, which need more of it")]
mod support;
mod world;
