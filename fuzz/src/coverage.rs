//! Where an input has been: the counters that the compiler puts into every branch when it is told to
//! (`-Cpasses=sancov-module` with inline 8-bit counters; stable since Rust 1.60, see scripts/fuzz).
//!
//! The only `unsafe` of the house: the instrumentation hands its counters out as two raw pointers, and changes them behind
//! the language's back.
#![expect(unsafe_code, reason = "counters of the compiler's are reached in no other way")]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

/// Where the counters begin, and how many there are. Set before `main`, and never again.
static START: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Takes the counters; called by each instrumented object file before `main`, always with the same ones.
///
/// # Safety
/// `start` and `stop` bound the counters of this program, which live as long as it does.
// SAFETY: the name is reserved for this purpose; libFuzzer, which has it too, is linked in another build alone.
#[cfg(not(feature = "libfuzzer"))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    START.store(start, Relaxed);
    COUNT.store(stop.addr() - start.addr(), Relaxed);
}

/// Sets all counters to zero.
fn reset() {
    // SAFETY: the bounds come from the instrumentation; nothing else runs, for the driver has one thread.
    unsafe { START.load(Relaxed).write_bytes(0, COUNT.load(Relaxed)) }
}

/// Copies all counters.
fn copy_to(counts: &mut [u8]) {
    let count = COUNT.load(Relaxed).min(counts.len());
    // SAFETY: as above, and a slice of ours overlaps no counter.
    unsafe { START.load(Relaxed).copy_to_nonoverlapping(counts.as_mut_ptr(), count) }
}

/// What all inputs so far have reached: for each counter, the magnitudes that it had, a bit each.
#[derive(Debug)]
pub struct Coverage {
    seen: Vec<u8>,
    counts: Vec<u8>,
}

impl Default for Coverage {
    fn default() -> Self {
        let branches = COUNT.load(Relaxed);
        Self { seen: vec![0; branches], counts: vec![0; branches] }
    }
}

impl Coverage {
    /// Returns how many branches there are; none when the program was not instrumented.
    pub fn branches(&self) -> usize {
        self.seen.len()
    }

    /// Returns how many branches were reached.
    pub fn reached(&self) -> usize {
        self.seen.iter().filter(|seen| **seen != 0).count()
    }

    /// Runs `work`; tells whether it went where nobody was before, or went there a magnitude more often.
    pub fn is_new(&mut self, work: impl FnOnce()) -> bool {
        if self.counts.is_empty() {
            work();
            return false;
        }
        reset();
        work();
        copy_to(&mut self.counts);
        let mut is_new = false;
        for (counts, seen) in self.counts.chunks(64).zip(self.seen.chunks_mut(64)) {
            // Most of the program has nothing to do with this input.
            if counts.iter().fold(0, |all, count| all | count) == 0 {
                continue;
            }
            for (count, seen) in counts.iter().zip(seen) {
                is_new |= *seen & magnitude(*count) != magnitude(*count);
                *seen |= magnitude(*count);
            }
        }
        is_new
    }
}

/// Returns the bit for a count, which tells few of something well and many of it roughly; none for 0.
fn magnitude(count: u8) -> u8 {
    match count {
        0 => 0,
        1..=3 => 1 << (count - 1),
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}
