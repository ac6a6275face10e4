//! What Pando promises, one file per promise, driven through the real binary, real sockets and real files.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

mod calls;
mod completions;
mod cursors;
mod database;
mod demo;
mod dependencies;
mod disk;
mod doctor;
mod documents;
mod doors_access;
mod doors_hostile;
mod doors_input;
mod doors_listing;
mod doors_users;
mod election;
mod errors;
mod events;
mod fencing;
mod golden;
mod handover;
mod house;
mod interop;
mod json_schema;
mod leftovers;
mod metrics;
mod ports;
mod reads;
mod schemas;
mod shapes;
mod skew;
mod sleep;
mod stuck;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the fault tests, which need more of it")]
mod support;
mod takeover;
mod wedged;
mod writes;
