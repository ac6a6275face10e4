//! Topics and patterns: no panic, and a pattern selects the same topics as its ZeroMQ subscription selects frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pando_ipc::{Pattern, Topic};

fuzz_target!(|texts: (&str, &str)| {
    let (Ok(pattern), Ok(topic)) = (Pattern::new(texts.0), Topic::new(texts.1)) else { return };
    let frame = format!("{topic}\0");
    assert_eq!(pattern.matches(topic.as_str()), frame.starts_with(&pattern.subscription()));
    assert_eq!(Pattern::new(&pattern.to_string()), Ok(pattern));
});
