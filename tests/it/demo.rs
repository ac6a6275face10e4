//! The README's first command ends well.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::json_schema::check;
use crate::shapes::published;
use crate::support::{Sandbox, heavy, pando};

/// How long the demo may take after the build.
const WITHIN: Duration = Duration::from_secs(20);

#[test]
fn the_demo_loses_nothing_and_says_so() {
    let _turn = heavy();
    let sandbox = Sandbox::new();
    let started = Instant::now();
    let demo = pando(&sandbox, &["--json", "demo"]);
    let report: Value = demo.json();
    check("demo", &report, &published("demo"));
    assert!(started.elapsed() < WITHIN, "{:?}", started.elapsed());
}
