//! The event stream looks local.
//!
//! ```text
//!            primary                                  secondary
//!  writer ── commit ──► Outbound ──► bus (PUB) ~~~~►  Follower ──► inbound ──► Hub ──► subscribers
//!                          └──────► Hub ──► subscribers    │ gap
//!                                                          └──► journal (read locally)
//! ```
//!
//! A subscriber of the [`Hub`] cannot tell which of the two it lives in, nor that one became the other: the hub knows the
//! number of the last durable event it delivered, drops what it has seen and is fed on from there.

mod hub;
mod inbound;
mod outbound;

pub use hub::{Delivery, Hub, HubSubscription, QUEUE_EVENTS};
pub use inbound::inbound;
pub use outbound::{Outbound, Publisher};
