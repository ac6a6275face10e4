//! Bounds: what an instance may use, and what may be left of it.

use super::{Invariant, Seen};
use crate::history::Deed;

/// Most memory of an instance, in KiB; one at rest has a tenth of it.
const RESIDENT_KIB: u64 = 256 << 10;
/// Most descriptors of an instance; one at rest has a few dozen.
const DESCRIPTORS: u64 = 512;
/// Largest write-ahead log, in bytes: beyond it writes are refused, however long somebody reads.
const WAL_BYTES: u64 = pando_dbproxy::MAX_WAL_BYTES;

pub(super) fn check(seen: &mut Seen<'_>) {
    for dated in &seen.history.deeds {
        match &dated.deed {
            Deed::Usage { who, resident_kib, descriptors }
                if *resident_kib > RESIDENT_KIB || *descriptors > DESCRIPTORS =>
            {
                let shown = format!("{who} has {resident_kib} KiB in memory and {descriptors} descriptors");
                seen.violated(Invariant::Bounded, shown);
            }
            Deed::Wal { bytes } if *bytes > WAL_BYTES => {
                seen.violated(Invariant::Bounded, format!("the write-ahead log has {bytes} bytes"));
            }
            Deed::Left { what } => seen.violated(Invariant::NothingLeft, what.clone()),
            _ => {}
        }
    }
}
