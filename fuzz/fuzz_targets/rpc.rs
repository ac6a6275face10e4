//! A request body and an answer: no panic, ids come back as they came, and what we write we read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pando_ipc::rpc::{Incoming, Request, parse_request, parse_response};

/// What is read as a request is written as one that is read alike.
fn check_request(request: &Request, sent: &str) {
    if let Some(id) = &request.id {
        assert!(sent.contains(id.as_json()), "the id comes back as it came");
    }
    let written = serde_json::to_vec(request).expect("a request is JSON");
    match parse_request(&written) {
        Ok(Incoming::Single(again)) => assert_eq!(&again, request),
        other => panic!("{request:?} was read again as {other:?}"),
    }
}

fuzz_target!(|body: &[u8]| {
    let sent = String::from_utf8_lossy(body);
    match parse_request(body) {
        Ok(Incoming::Single(request)) => check_request(&request, &sent),
        Ok(Incoming::Batch(parts)) => parts.iter().flatten().for_each(|request| check_request(request, &sent)),
        Err(refusal) => assert!(refusal.outcome.is_err()),
    }
    if let Ok(response) = parse_response(body) {
        let written = serde_json::to_vec(&response).expect("an answer is JSON");
        assert_eq!(parse_response(&written).expect("what we write we read").outcome, response.outcome);
    }
});
