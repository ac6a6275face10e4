//! Fuzzing of what comes from outside.
//!
//! ```text
//!  tests/golden ──► seeds ──► mutate ──► targets: the same for our driver (main.rs) and for cargo-fuzz (fuzz_targets/)
//!                    ▲                      │
//!                    └── kept, when it ◄────┘ coverage: what the compiler's instrumentation counted
//!                        went a new way
//! ```

pub mod coverage;
pub mod mutate;
pub mod targets;
