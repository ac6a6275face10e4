//! Pando's vocabulary and wire.
//!
//! ```text
//!  who leads?   workdir ─► lock (flock, LockInfo) ─► ports
//!  what is said? topic ─► envelope (PUB frame)      rpc (JSON-RPC) ─► fault
//!  who speaks?  client ── DEALER, zeromq SUB ──►  bus ── doors     (under both: stream, zmtp)
//!  who may?     access: what a method needs, what a peer has
//! ```
//!
//! The crate knows no SQL and, but for the handshake in [`hello`], no method names. A program that only
//! calls and follows needs nothing else of Pando.

pub mod access;
pub mod bus;
pub mod client;
pub mod cursor;
pub mod envelope;
pub mod failpoint;
pub mod fault;
pub mod hello;
pub mod lock;
pub mod methods;
pub mod metrics;
mod parting;
pub mod ports;
pub mod process;
pub mod rpc;
mod stream;
pub mod topic;
pub mod workdir;
pub mod zmtp;

pub use access::{Allow, AllowList, Capability, LocalTrust, PeerVerifier};
pub use bus::{Bus, BusError, BusOptions, BusStats, Limits, TcpDoor};
pub use client::{CallError, Cause, Client};
pub use envelope::{Envelope, FrameError, Recorded, Timestamp};
pub use fault::{Code, Fault};
pub use hello::{Hello, Kind, PROTOCOL, Welcome};
pub use lock::{Claim, Endpoints, Holder, Lease, LockError, LockInfo, acquire_lock, read_lock_for_path};
pub use methods::{Call, Caller, Door, Methods};
pub use ports::{Ports, ports_for_path};
pub use topic::{Pattern, Topic, TopicError};
pub use workdir::{Workdir, WorkdirError};
