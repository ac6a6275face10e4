//! The hot inner parts of Pando, each as a fixed piece of work that can be repeated.
//!
//! ```text
//!  parts() ──► benches/hot.rs   times, for people: `cargo bench -p pando-bench-inner`
//!         └──► guard            instructions, for CI: `scripts/bench instructions`
//! ```

mod parts;

pub mod guard;

pub use parts::{Part, parts};
