//! Each hot part, made ready once and then repeated.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pando_bridge::{Hub, Outbound};
use pando_dbproxy::{Durability, OpId, Statement, Work, WriteRequest, Writer, WriterOptions};
use pando_ipc::access::Capability;
use pando_ipc::bus::{Bus, BusOptions, Limits, TcpDoor};
use pando_ipc::client::Options;
use pando_ipc::hello::HELLO;
use pando_ipc::lock::{Claim, LockInfo, acquire_lock};
use pando_ipc::methods::{Call, Caller, Methods};
use pando_ipc::rpc::{Incoming, Json, Response, parse_request};
use pando_ipc::zmtp::{Engine, Event, Prefixes, SocketType, WireLimits, encode_delimited, encode_message};
use pando_ipc::{Client, Envelope, Kind, PROTOCOL, Pattern, Timestamp, Topic, Workdir};
use serde::Serialize;
use serde_json::json;
use tokio::runtime::Runtime;

/// A request of 200 bytes.
const REQUEST: &str = concat!(
    r#"{"jsonrpc":"2.0","id":"0000000001","method":"echo","params":{"text":""#,
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    r#""}}"#
);
/// Text of 150 bytes.
const TEXT: &str = concat!(
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
);
/// What a DEALER says before its first request: greeting of ZMTP 3.0 with NULL, and READY.
const READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER";
/// A write may take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One hot part: its name, and what makes it ready. What that returns does the work once.
#[derive(Clone, Copy)]
pub struct Part {
    /// Its name in tables and in the baseline.
    pub name: &'static str,
    /// Makes it ready.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Returns every part.
pub fn parts() -> Vec<Part> {
    let part = |name, prepare| Part { name, prepare };
    vec![
        part("call: read, dispatch, answer", call),
        part("call: there and back", round_trip),
        part("event: make, encode", event_encode),
        part("event: decode", event_decode),
        part("event: to 4 subscribers here", event_hub),
        part("prefixes: 1,000, one matches", prefixes),
        part("write: one statement, committed", || write(OpId::fresh)),
        part("write: of a client that counts", || write(counting())),
    ]
}

/// One call on the primary's side, from the bytes of its frames to the bytes of its answer.
fn call() -> Box<dyn FnMut()> {
    let methods = Methods::new();
    methods.register_inline("echo", Capability::Read, |call| Ok(call.params));
    let mut engine = Engine::new(SocketType::Router, WireLimits::default());
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    engine.input().extend_from_slice(&greeting);
    engine.input().extend_from_slice(READY);
    while next(&mut engine).is_some() {}
    let frames = [&[1, 0][..], &encode_message(REQUEST.as_bytes())].concat();
    let caller = Caller::local();
    let runtime = runtime();
    Box::new(move || {
        engine.input().extend_from_slice(&frames);
        while let Some(event) = next(&mut engine) {
            let Event::Message(body) = event else { continue };
            let Ok(Incoming::Single(request)) = parse_request(&body) else { continue };
            let call = Call { method: request.method.as_str().into(), params: request.params, caller: caller.clone() };
            let outcome = runtime.block_on(methods.dispatch(call));
            let response = Response { id: request.id.unwrap_or_else(pando_ipc::rpc::Id::null), outcome };
            let answer =
                encode_delimited(|out| out.extend_from_slice(&serde_json::to_vec(&response).unwrap_or_default()));
            assert!(answer.len() > REQUEST.len() / 2, "the echo comes back");
        }
    })
}

/// One call of a client, through the native door to a primary in the same thread and back.
fn round_trip() -> Box<dyn FnMut()> {
    let (scratch, runtime) = (Scratch::new(), runtime());
    let linked = runtime.block_on(async {
        let workdir = Workdir::open(&scratch.0)?;
        let Claim::Won(lease) = acquire_lock(&workdir, Duration::ZERO).await? else { return Err("it is new".into()) };
        let methods = Methods::new();
        methods.register_inline("echo", Capability::Read, |call| Ok(call.params));
        let (limits, tcp, epoch) = (Limits::default(), TcpDoor::Closed, 1);
        let bus = Bus::start(BusOptions { workdir: workdir.clone(), epoch, tcp, limits }, methods.clone()).await?;
        let info = LockInfo {
            instance_id: "inst-bench".to_owned(),
            pid: std::process::id(),
            pub_port: 0,
            rpc_port: 0,
            started_at: Timestamp::now(),
            epoch: Some(epoch),
            workdir: None,
            protocol: Some(PROTOCOL),
            version: None,
            endpoints: Some(bus.endpoints()),
            process: None,
            successor: None,
        };
        lease.advertise(&info)?;
        let welcome = json!({"instance_id": info.instance_id, "epoch": epoch, "protocol": PROTOCOL});
        methods.register_inline(HELLO, Capability::Read, move |_| Ok(welcome.clone()));
        let client = Client::connect(workdir, Options::new("caller-bench", Kind::Client)).await?;
        Ok::<_, Box<dyn Error>>((client, bus, lease, scratch))
    });
    let held = linked.unwrap_or_else(|error| panic!("{error}"));
    let params = json!({"text": "x".repeat(124)});
    Box::new(move || {
        let (client, ..) = &held;
        let answer = runtime.block_on(client.call("echo", params.clone()));
        assert_eq!(answer.as_ref(), Ok(&params), "the echo comes back");
    })
}

fn next(engine: &mut Engine) -> Option<Event> {
    engine.poll().unwrap_or_else(|error| panic!("the frames are sound: {error}"))
}

/// What an application has to say.
#[derive(Serialize)]
struct Token<'a> {
    session_id: &'a str,
    message_id: &'a str,
    text: &'a str,
}

/// An event of about 300 bytes.
fn event() -> Envelope {
    let payload = Json::of(&Token { session_id: "s-1", message_id: "m-1", text: TEXT });
    Envelope { n: Some(1), epoch: Some(1), ..Envelope::new("inst-bench", Topic::known("llm.token"), payload) }
}

fn event_encode() -> Box<dyn FnMut()> {
    Box::new(move || assert!(event().to_frame().len() > 250, "an event has its size"))
}

fn event_decode() -> Box<dyn FnMut()> {
    let frame = event().to_frame();
    Box::new(move || assert!(Envelope::from_frame(&frame).is_ok_and(|event| event.n == Some(1)), "it reads back"))
}

fn event_hub() -> Box<dyn FnMut()> {
    let hub = Hub::new();
    let mut subscribers: Vec<_> = (0..4).map(|_| hub.subscribe([Pattern::All])).collect();
    let (outbound, event, runtime) = (Outbound::new(hub), event(), runtime());
    Box::new(move || {
        outbound.ephemeral(event.clone());
        for subscriber in &mut subscribers {
            assert!(runtime.block_on(subscriber.recv()).is_some(), "each gets it");
        }
    })
}

/// Who wants an event, among 1,000 who want others.
fn prefixes() -> Box<dyn FnMut()> {
    let mut prefixes = Prefixes::default();
    for number in 0..1_000 {
        prefixes.insert(format!("topic.{number:03}\0").as_bytes(), number);
    }
    Box::new(move || assert!(prefixes.matching(b"topic.963\0{}").eq([&963]), "one matches"))
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(std::env::temp_dir().join(format!("pando-inner-{}", uuid::Uuid::new_v4().simple())));
        let made = std::fs::create_dir(&scratch.0);
        assert!(made.is_ok(), "{made:?}");
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays in the directory for temporary files does no harm.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// One write through the writer's thread: guard, statement, op id, journal, commit.
fn write(mut op_id: impl FnMut() -> OpId + 'static) -> Box<dyn FnMut()> {
    let (scratch, runtime) = (Scratch::new(), runtime());
    let options = WriterOptions { durability: Some(Durability::Os), ..WriterOptions::new("inst-bench", &scratch.0) };
    let opened = runtime.block_on(async { Writer::open(&scratch.0.join("inner.db"), options) });
    let writer = opened.unwrap_or_else(|error| panic!("{error}"));
    let mut submit = move |statement, ddl| {
        let work = Work::Exec { statements: vec![statement], ddl };
        let op_id = op_id();
        let answered = if let OpId::Counted { counter, .. } = op_id { counter } else { 0 };
        let request = WriteRequest::new(op_id, "inst-bench".to_owned(), Instant::now() + PATIENCE, work);
        let acked = request.and_then(|request| runtime.block_on(writer.submit(request.acked(answered))));
        assert!(acked.is_ok(), "{acked:?} in {}", scratch.0.display());
    };
    submit(Statement::new("CREATE TABLE entry (id INTEGER PRIMARY KEY, body TEXT NOT NULL)", ()), true);
    let insert = Statement::new("INSERT INTO entry (body) VALUES (?1)", ["x".repeat(500)]);
    Box::new(move || submit(insert.clone(), false))
}

/// Returns what counts the writes of a client, as [`pando_dbproxy::Db`] does.
fn counting() -> impl FnMut() -> OpId {
    let (client, mut counters) = (uuid::Uuid::now_v7(), 0..);
    move || OpId::Counted { client, counter: counters.next().unwrap_or_default() }
}

fn runtime() -> Runtime {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.unwrap_or_else(|error| panic!("{error}"))
}
