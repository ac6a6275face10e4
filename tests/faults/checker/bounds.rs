//! Bounds: what an instance may use, and what may be left of it.

use std::time::Duration;

use super::{Invariant, LOG_PINNED, LOG_RELEASED, Seen};
use crate::history::Deed;

/// Most memory of an instance, in KiB; one at rest has a tenth of it.
const RESIDENT_KIB: u64 = 256 << 10;
/// Most descriptors of an instance; one at rest has a few dozen.
const DESCRIPTORS: u64 = 512;
/// Largest write-ahead log, in bytes: it begins anew at half of that.
const WAL_BYTES: u64 = 64 << 20;
/// Largest one while the harness itself pins it, in bytes: beyond it writes are refused.
const PINNED_WAL_BYTES: u64 = pando_dbproxy::MAX_WAL_BYTES;
/// How long after it was let go a log may still be large: the next look comes a second later, and whoever looks may be stopped for as long as
/// any fault stops anybody.
const SHRINKS_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn check(seen: &mut Seen<'_>) {
    let mut pins = 0_u64;
    let mut released: Option<u64> = None;
    for dated in &seen.history.deeds {
        match &dated.deed {
            Deed::Fault { name, .. } if name == LOG_PINNED => pins += 1,
            Deed::Fault { name, .. } if name == LOG_RELEASED => {
                pins = pins.saturating_sub(1);
                released = Some(dated.at);
            }
            Deed::Usage { who, resident_kib, descriptors }
                if *resident_kib > RESIDENT_KIB || *descriptors > DESCRIPTORS =>
            {
                let shown = format!("{who} has {resident_kib} KiB in memory and {descriptors} descriptors");
                seen.violated(Invariant::Bounded, shown);
            }
            Deed::Wal { bytes } => {
                let shrinks = released.is_some_and(|at| Duration::from_nanos(dated.at - at) <= SHRINKS_WITHIN);
                let bound = if pins > 0 || shrinks { PINNED_WAL_BYTES } else { WAL_BYTES };
                if *bytes > bound {
                    let shown = format!("the write-ahead log has {bytes} bytes, and may have {bound}");
                    seen.violated(Invariant::Bounded, shown);
                }
            }
            Deed::Left { what } => seen.violated(Invariant::NothingLeft, what.clone()),
            _ => {}
        }
    }
}
