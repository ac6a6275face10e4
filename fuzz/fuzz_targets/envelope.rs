//! The target of this name for cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pando_fuzz::targets::envelope(input));
