//! JSON-RPC 2.0 as it stands in one message body: requests, batches, notifications and answers.

mod json;
mod plain;
mod raw;
mod strict;

use std::fmt;

use serde::de::IgnoredAny;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::fault::Fault;

pub use json::Json;
pub(crate) use json::needs_no_escape;
pub(crate) use plain::Plain;
pub use raw::Raw;
pub use strict::MAX_DEPTH;

/// Most requests in one batch. A larger batch is refused as a whole with -32600.
pub const MAX_BATCH: usize = 1_000;

/// A request's id: a string, a number or null, kept as the bytes that came, so that it goes back unchanged.
#[derive(Debug, Clone)]
pub struct Id(Box<RawValue>);

impl Id {
    /// Returns the null id, which answers what could not be read.
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// Returns a number as id.
    pub fn number(id: u64) -> Self {
        #[expect(clippy::expect_used, reason = "digits are JSON")]
        Self(RawValue::from_string(id.to_string()).expect("digits are JSON"))
    }

    /// Returns the id as JSON text.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }

    /// Returns the id when it is a number, or text that holds one (older servers quote what they got).
    pub fn as_number(&self) -> Option<u64> {
        self.0.get().trim_matches('"').parse().ok()
    }

    fn checked(raw: Box<RawValue>) -> Result<Self, Fault> {
        match raw.get().as_bytes().first() {
            Some(b'"' | b'-' | b'0'..=b'9' | b'n') => Ok(Self(raw)),
            _ => Err(Fault::invalid_request("id must be a string, a number or null")),
        }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.as_json() == other.as_json()
    }
}

/// A call, or a notification when it has no id.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<P = Json> {
    /// What the answer carries back; `None` asks for no answer, not even an error.
    pub id: Option<Id>,
    /// Name of the method.
    pub method: String,
    /// Its parameters; `null` when there were none.
    pub params: P,
}

impl<P: Serialize> Serialize for Request<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let id = self.id.as_ref().map(|id| &id.0);
        Outgoing { jsonrpc: "2.0", id, method: &self.method, params: &self.params }.serialize(serializer)
    }
}

/// A request as it is written.
#[derive(Serialize)]
struct Outgoing<'a, I, P> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<I>,
    method: &'a str,
    params: P,
}

/// Writes a call of this number, or a notification when it has none, from what the caller has at hand.
pub(crate) fn write_request(out: &mut Vec<u8>, number: Option<u64>, method: &str, params: &impl Serialize) {
    let request = Outgoing { jsonrpc: "2.0", id: number, method, params };
    #[expect(clippy::expect_used, reason = "strings, numbers and JSON always serialise into memory")]
    serde_json::to_writer(out, &request).expect("a request serialises");
}

/// The answer to one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Response<R = Json> {
    /// The call's id.
    pub id: Id,
    /// What came of it; a void success is `Ok(Null)`.
    pub outcome: Result<R, Fault>,
}

impl Response {
    /// Returns the answer to something whose id could not be read.
    pub fn refusal(fault: Fault) -> Self {
        Self { id: Id::null(), outcome: Err(fault) }
    }
}

impl<R: Serialize> Serialize for Response<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("jsonrpc", "2.0")?;
        map.serialize_entry("id", &self.id.0)?;
        match &self.outcome {
            Ok(result) => map.serialize_entry("result", result)?,
            Err(fault) => map.serialize_entry("error", fault)?,
        }
        map.end()
    }
}

/// One message body, read.
#[derive(Debug)]
pub enum Incoming {
    /// One request.
    Single(Request),
    /// A batch, in order; never empty. A part that is no valid request comes as the response that refuses it.
    Batch(Vec<Result<Request, Response>>),
}

/// Reads a request body. The error is the one response to a body that is no request.
///
/// An object with a key twice, nesting beyond [`MAX_DEPTH`] and numbers beyond the range of their type are no JSON to us:
/// two readers could make two things of them.
pub fn parse_request(body: &[u8]) -> Result<Incoming, Response> {
    let text = std::str::from_utf8(body).map_err(|error| Response::refusal(Fault::parse_error(error)))?;
    if !text.trim_start().starts_with('[') {
        return read_one(text).map(Incoming::Single);
    }
    match strict::array(text, MAX_BATCH).map_err(unreadable)? {
        Err(length) => Err(Response::refusal(Fault::invalid_request(format_args!(
            "the batch has {length} requests; the limit is {MAX_BATCH}"
        )))),
        Ok(parts) if parts.is_empty() => Err(Response::refusal(Fault::invalid_request("the batch is empty"))),
        Ok(parts) => Ok(Incoming::Batch(parts.into_iter().map(|part| read_one(part.get())).collect())),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn unreadable(error: serde_json::Error) -> Response {
    Response::refusal(Fault::parse_error(strict::explain(&error)))
}

fn read_one(text: &str) -> Result<Request, Response> {
    /// The members of a request, each as it came.
    #[derive(Deserialize)]
    struct Members<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        jsonrpc: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        id: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        method: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        params: Option<&'a RawValue>,
    }
    /// Null is there, too.
    fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        Deserialize::deserialize(deserializer).map(Some)
    }
    if !text.trim_start().starts_with('{') {
        // What is no JSON at all is told so.
        serde_json::from_str::<IgnoredAny>(text).map_err(unreadable)?;
        return Err(Response::refusal(Fault::invalid_request("a request is an object")));
    }
    strict::check(text).map_err(|error| {
        let is_too_deep = strict::is_too_deep(&error);
        let refusal = unreadable(error);
        // Whoever sent it waits for an answer with this id. What is passed over may be of any depth.
        let id = serde_json::from_str::<Members<'_>>(text).ok().filter(|_| is_too_deep).and_then(|members| members.id);
        Response { id: id.and_then(|id| Id::checked(id.to_owned()).ok()).unwrap_or(refusal.id), ..refusal }
    })?;
    let Members { jsonrpc, id, method, params } = serde_json::from_str(text).map_err(unreadable)?;
    let id = id.map(|id| Id::checked(id.to_owned())).transpose().map_err(Response::refusal)?;
    let refuse =
        |why: &str| Response { id: id.clone().unwrap_or_else(Id::null), outcome: Err(Fault::invalid_request(why)) };
    if jsonrpc.and_then(|version| Raw(version.get()).text()).as_deref() != Some("2.0") {
        return Err(refuse("jsonrpc must be \"2.0\""));
    }
    let Some(method) = method.and_then(|method| Raw(method.get()).text()) else {
        return Err(refuse("method must be a string"));
    };
    let params = params.unwrap_or(RawValue::NULL);
    match params.get().as_bytes().first() {
        // The documented deletes take a bare string as params, beyond JSON-RPC's objects and arrays.
        Some(b'n' | b'{' | b'[' | b'"') => {
            Ok(Request { id, method: method.into_owned(), params: Json::on_one_line(params.get().into()) })
        }
        _ => Err(refuse("params must be an object or an array")),
    }
}

/// Why bytes are not an answer.
#[derive(Debug)]
pub struct BadResponse(String);

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answer is no JSON-RPC response: {}", self.0)
    }
}

impl std::error::Error for BadResponse {}

/// Reads an answer. Accepts what older servers send: no `result` for a void success, and id "" for a parse error.
///
/// The result is only known to be JSON; reading it is up to who wants it.
pub fn parse_response(body: &[u8]) -> Result<Response, BadResponse> {
    #[derive(Deserialize)]
    struct Parts {
        #[serde(default)]
        id: Option<Box<RawValue>>,
        #[serde(default)]
        result: Option<Json>,
        #[serde(default)]
        error: Option<Fault>,
        #[serde(default, rename = "jsonrpc")]
        _jsonrpc: Option<IgnoredAny>,
    }
    let parts: Parts = serde_json::from_slice(body).map_err(|error| BadResponse(error.to_string()))?;
    let id = match parts.id {
        Some(raw) => Id::checked(raw).map_err(|fault| BadResponse(fault.message))?,
        None => Id::null(),
    };
    Ok(Response { id, outcome: parts.error.map_or_else(|| Ok(parts.result.unwrap_or_else(Json::null)), Err) })
}

/// Returns the number of an answer with a result, and that result's text, if it is written as [`Response`] writes it; any other must be read as a
/// whole. Nothing else is looked at: the text may be no JSON, or JSON and more.
pub(crate) fn result_text(body: &[u8]) -> Option<(u64, &[u8])> {
    let rest = body.strip_prefix(br#"{"jsonrpc":"2.0","id":"#)?;
    let (digits, rest) = rest.split_at(rest.iter().position(|byte| !byte.is_ascii_digit())?);
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((number, rest.strip_prefix(br#","result":"#)?.strip_suffix(b"}")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn single(body: &str) -> Result<Request, Response> {
        match parse_request(body.as_bytes())? {
            Incoming::Single(one) => Ok(one),
            Incoming::Batch(_) => panic!("a batch"),
        }
    }

    #[track_caller]
    fn check_refused(body: &str, code: i64, id: &str) {
        let refusal = match parse_request(body.as_bytes()) {
            Err(refusal) => refusal,
            Ok(read) => panic!("{body} was read as {read:?}"),
        };
        assert_eq!((refusal.outcome.unwrap_err().code, refusal.id.as_json()), (code, id), "{body}");
    }

    #[test]
    fn ids_come_back_byte_for_byte() {
        for id in ["\"req-1\"", "7", "1.0", "-0", "1e2", "null", "\"\\u00e9\"", "18446744073709551616"] {
            let request = single(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#)).unwrap();
            let answer = Response { id: request.id.unwrap(), outcome: Ok(Value::Null) };
            assert_eq!(
                serde_json::to_string(&answer).unwrap(),
                format!(r#"{{"jsonrpc":"2.0","id":{id},"result":null}}"#)
            );
        }
    }

    #[test]
    fn no_id_is_a_notification_and_null_is_an_id() {
        assert!(single(r#"{"jsonrpc":"2.0","method":"m"}"#).unwrap().id.is_none());
        assert!(single(r#"{"jsonrpc":"2.0","id":null,"method":"m","params":null}"#).unwrap().id.is_some());
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_standard_code() {
        check_refused("{", -32700, "null");
        check_refused("", -32700, "null");
        let deep = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        check_refused(&format!(r#"{{"jsonrpc":"2.0","id":"a","method":"m","params":{deep}}}"#), -32700, "\"a\"");
        check_refused(&format!(r#"{{"jsonrpc":"2.0","id":{deep},"method":"m"}}"#), -32700, "null");
        check_refused(&format!(r#"{{"jsonrpc":"2.0","id":1,"id":2,"method":"m","params":{deep}}}"#), -32700, "null");
        check_refused("[]", -32600, "null");
        check_refused("1", -32600, "null");
        check_refused(r#"{"id":1,"method":"m"}"#, -32600, "1");
        check_refused(r#"{"jsonrpc":"2.0","id":"a"}"#, -32600, "\"a\"");
        check_refused(r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, -32600, "null");
        check_refused(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":5}"#, -32600, "1");
    }

    #[test]
    fn a_batch_keeps_good_and_bad_parts_in_order() {
        let body = br#"[{"jsonrpc":"2.0","id":1,"method":"m"}, 5, {"jsonrpc":"2.0","method":"n"}]"#;
        let Ok(Incoming::Batch(parts)) = parse_request(body) else { panic!("no batch") };
        assert_eq!(parts.len(), 3);
        assert!(parts[0].is_ok() && parts[1].is_err() && parts[2].as_ref().unwrap().id.is_none());
    }

    #[test]
    fn older_answers_are_understood() {
        let void = parse_response(br#"{"jsonrpc":"2.0","id":"3"}"#).unwrap();
        assert_eq!((void.id.as_number(), void.outcome), (Some(3), Ok(Json::null())));
        let broken = parse_response(br#"{"jsonrpc":"2.0","id":"","error":{"code":-32700,"message":"x"}}"#).unwrap();
        assert_eq!(broken.outcome.unwrap_err().code, -32700);
        assert!(parse_response(b"nonsense").is_err());
    }

    #[test]
    fn only_an_answer_of_our_own_form_is_read_by_its_head() {
        let text =
            |body: &'static str| result_text(body.as_bytes()).map(|(number, text)| (number, str::from_utf8(text)));
        assert_eq!(text(r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#), Some((7, Ok(r#"{"a":1}"#))));
        for other in [
            r#"{"jsonrpc":"2.0","id":"7","result":1}"#,
            r#"{"jsonrpc":"2.0","id":null,"result":1}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":""}}"#,
            r#"{"jsonrpc":"2.0","id":18446744073709551616,"result":1}"#,
            r#"{"jsonrpc":"2.0","id":7"#,
            r#"{"jsonrpc":"2.0","id":7}"#,
        ] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_by_its_head_is_what_is_read_as_a_whole(id in any::<u64>(), rest in r#"[\[\]{},":a0e error result]{0,16}"#) {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{rest}}}"#);
            let Some((number, text)) = result_text(body.as_bytes()) else { panic!("{body}") };
            if let Ok(result) = serde_json::from_slice::<Json>(text) {
                let whole = parse_response(body.as_bytes()).unwrap();
                prop_assert_eq!((whole.id.as_number(), whole.outcome), (Some(number), Ok(result)));
            }
        }
    }

    #[test]
    fn a_request_has_the_documented_bytes() {
        let request = Request { id: Some(Id::number(1)), method: "echo".into(), params: json!({"a": 1}) };
        let documented = r#"{"jsonrpc":"2.0","id":1,"method":"echo","params":{"a":1}}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), documented);
        let written = |number| {
            let mut out = Vec::new();
            write_request(&mut out, number, &request.method, &request.params);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            (written(Some(1)), written(None)),
            (documented.to_owned(), documented.replacen(r#""id":1,"#, "", 1))
        );
    }
}
