//! What Pando promises, kept while its processes are killed, stopped and starved: faults, a recorded history, and a checker.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]
#![expect(clippy::print_stdout, reason = "a soak tells its seeds as it goes")]

mod checker;
mod controls;
mod document;
mod faults;
mod history;
mod judged;
mod kills;
mod model;
mod observer;
mod points;
mod random;
#[path = "../../src/cli/up/trial/record.rs"]
mod record;
mod shim;
mod soak;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the other integration tests, which need more of it")]
mod support;
mod world;
