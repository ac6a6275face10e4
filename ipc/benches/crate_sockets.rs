//! Our binder beside the `zeromq` crate's own ROUTER and PUB: calls, latency and events, in turns, with the same bare peers.
//!
//! `cargo bench -p pando-ipc --bench crate_sockets [-- REPETITIONS]`. Each side serves in a process of its own, so that its processor time
//! can be told. The crate's ROUTER answers in one loop, and reads and writes JSON-RPC by the same code as ours does.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that cannot go on fails, and prints what it measured"
)]

use std::io::{BufRead, BufReader, Write};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pando_ipc::access::Capability::Read;
use pando_ipc::rpc::{Incoming, Response, parse_request};
use pando_ipc::{Bus, BusOptions, Limits, Methods, TcpDoor, Workdir};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Calls of one measurement.
const CALLS: [(usize, usize); 2] = [(1, 10_000), (64, 200_000)];
/// Subscribers, and events that each of them gets in one measurement.
const SUBSCRIBERS: usize = 16;
const EVENTS: usize = 40_000;
const EVENT_BYTES: usize = 300;
/// Events after which our publisher waits for its subscribers: a ring that overflows cuts off.
const EVENTS_AT_ONCE: usize = 2_000;
/// A request of 199 bytes.
const REQUEST_BYTES: usize = 199;
/// How long a subscription is given before it is probed again.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", "ours", _] => serve_ours().await,
        ["serve", "crate", door] => serve_crate(door).await,
        [] => compare(7).await,
        [repetitions] => compare(repetitions.parse().unwrap()).await,
        _ => panic!("usage: crate_sockets [REPETITIONS]"),
    }
}

/// Tells the measuring process where to connect, once for calls and once for events.
fn say(rpc: &str, publish: &str) {
    println!("{rpc} {publish}");
}

/// Waits for the word to publish; returns the events to send, none when the measuring process is done.
async fn told() -> Option<(usize, Vec<u8>)> {
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next());
    match line.await.unwrap()?.unwrap().as_str() {
        "probe" => Some((1, b"a.b\0".to_vec())),
        _ => Some((EVENTS, [b"a.b\0".as_slice(), &[b'x'; EVENT_BYTES - 4]].concat())),
    }
}

async fn serve_ours() {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    workdir.prepare().unwrap();
    let methods = Methods::new();
    methods.register_inline("echo", Read, |call| Ok(call.params));
    let options = BusOptions { workdir, epoch: 1, tcp: TcpDoor::OwnUser, limits: Limits::default() };
    let bus = Bus::start(options, methods).await.unwrap();
    let endpoints = bus.endpoints();
    say(&endpoints.rpc.join(","), &endpoints.publish.join(","));
    while let Some((count, event)) = told().await {
        for number in 1..=count {
            bus.publish_frame(&event);
            if number % EVENTS_AT_ONCE == 0 {
                assert!(bus.flush(PATIENCE).await);
            }
        }
    }
    bus.shutdown(PATIENCE).await;
}

async fn serve_crate(door: &str) {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = |name: &str| match door {
        "unix" => format!("ipc://{}", dir.path().join(name).display()),
        _ => "tcp://127.0.0.1:0".to_owned(),
    };
    let (mut router, mut publisher) = (RouterSocket::new(), PubSocket::new());
    let rpc = router.bind(&endpoint("rpc")).await.unwrap();
    let publish = publisher.bind(&endpoint("pub")).await.unwrap();
    say(&rpc.to_string(), &publish.to_string());
    let answer_all = async {
        loop {
            let mut frames = router.recv().await.unwrap().into_vec();
            let body = frames.pop().unwrap();
            let Ok(Incoming::Single(request)) = parse_request(&body) else { panic!("{body:?}") };
            let response = Response { id: request.id.unwrap(), outcome: Ok(request.params) };
            let mut message = ZmqMessage::from(frames.swap_remove(0));
            message.push_back(Vec::new().into());
            message.push_back(serde_json::to_vec(&response).unwrap().into());
            router.send(message).await.unwrap();
        }
    };
    let publish_all = async {
        while let Some((count, event)) = told().await {
            for _ in 0..count {
                publisher.send(event.clone().into()).await.unwrap();
            }
        }
    };
    let (answers, publishing) = (pin!(answer_all), pin!(publish_all));
    futures::future::select(answers, publishing).await;
}

/// One of the two sides, serving in a process of its own.
struct Server {
    child: Child,
    rpc: String,
    publish: String,
}

impl Server {
    fn start(side: &str, door: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["serve", side, door]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let scheme = if door == "unix" { "ipc://" } else { "tcp://" };
        let mut chosen = line.split_whitespace().map(|list| list.split(',').find(|it| it.starts_with(scheme)).unwrap());
        let (rpc, publish) = (chosen.next().unwrap().to_owned(), chosen.next().unwrap().to_owned());
        Self { child, rpc, publish }
    }

    /// Returns the processor time that it has used, in seconds.
    fn processor(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u32 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum();
        f64::from(ticks) / 100.0
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects and shakes hands by ZMTP 3.0.
async fn connect(endpoint: &str, socket_type: &str) -> Box<dyn Stream> {
    let mut stream: Box<dyn Stream> = if let Some(path) = endpoint.strip_prefix("ipc://") {
        Box::new(UnixStream::connect(path).await.unwrap())
    } else {
        let stream = TcpStream::connect(endpoint.strip_prefix("tcp://").unwrap()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Box::new(stream)
    };
    let mut hello = vec![0; 64];
    (hello[0], hello[9], hello[10]) = (0xff, 0x7f, 3);
    hello[12..16].copy_from_slice(b"NULL");
    let property = [b"\x05READY\x0bSocket-Type\0\0\0".as_slice(), &[u8::try_from(socket_type.len()).unwrap()]].concat();
    let ready = [property.as_slice(), socket_type.as_bytes()].concat();
    hello.extend_from_slice(&[4, u8::try_from(ready.len()).unwrap()]);
    hello.extend_from_slice(&ready);
    stream.write_all(&hello).await.unwrap();
    stream.read_exact(&mut [0; 64]).await.unwrap();
    let header = [stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap()];
    stream.read_exact(&mut vec![0; usize::from(header[1])]).await.unwrap();
    stream
}

/// Takes the whole messages out of the buffer; returns how many there were whose last frame has at least so many bytes.
fn take_messages(buffer: &mut Vec<u8>, least: usize) -> usize {
    let (mut at, mut done, mut messages) = (0, 0, 0);
    while let Some([flags, short]) = buffer.get(at..at + 2) {
        let (header, length) = if flags & 2 == 0 {
            (2, usize::from(*short))
        } else {
            let Some(long) = buffer.get(at + 1..at + 9) else { break };
            (9, usize::try_from(u64::from_be_bytes(long.try_into().unwrap())).unwrap())
        };
        at += header + length;
        if at > buffer.len() {
            break;
        }
        if flags & 5 == 0 {
            (done, messages) = (at, messages + usize::from(length >= least));
        }
    }
    buffer.drain(..done);
    messages
}

/// What one measurement said.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    per_second: f64,
    /// Processor time of the server for each, in microseconds.
    processor_us: f64,
    p50_us: f64,
    p99_us: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn measured(count: usize, took: Duration, processor: f64, mut latencies: Vec<Duration>) -> Measured {
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).map_or(0.0, |it| it.as_secs_f64() * 1e6);
    let (per_second, processor_us) = (count as f64 / took.as_secs_f64(), processor * 1e6 / count as f64);
    Measured { per_second, processor_us, p50_us: at(50), p99_us: at(99) }
}

/// Calls `echo` on one connection with so many calls in flight.
async fn call(side: &str, door: &str, in_flight: usize, calls: usize) -> Measured {
    let server = Server::start(side, door);
    let mut peer = connect(&server.rpc, "DEALER").await;
    let frame = r#"{"jsonrpc":"2.0","id":"req-1","method":"echo","params":{"a":""}}"#;
    let body = frame.replace("\"\"", &format!("\"{}\"", "x".repeat(REQUEST_BYTES - frame.len())));
    let request = [&[1, 0, 0, u8::try_from(body.len()).unwrap()], body.as_bytes()].concat();
    let (mut buffer, mut latencies) = (Vec::new(), Vec::with_capacity(calls));
    let (began, worked) = (Instant::now(), server.processor());
    peer.write_all(&request.repeat(in_flight)).await.unwrap();
    let (mut asked, mut answered, mut since) = (in_flight, 0, began);
    while answered < calls {
        peer.read_buf(&mut buffer).await.unwrap();
        let came = take_messages(&mut buffer, 0);
        answered += came;
        if in_flight == 1 && came == 1 {
            latencies.push(since.elapsed());
            since = Instant::now();
        }
        let more = came.min(calls - asked);
        asked += more;
        peer.write_all(&request.repeat(more)).await.unwrap();
    }
    measured(calls, began.elapsed(), server.processor() - worked, latencies)
}

/// Publishes to all subscribers, each of which reads in a task of its own.
async fn publish(side: &str, door: &str) -> Measured {
    let mut server = Server::start(side, door);
    let mut readers = JoinSet::new();
    let mut peers = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut peer = connect(&server.publish, "SUB").await;
        peer.write_all(b"\x00\x05\x01a.b\0").await.unwrap();
        // Nobody says when a subscription is live: an event that comes does.
        loop {
            server.tell("probe");
            if timeout(PROBE_PAUSE, peer.read_u8()).await.is_ok_and(|byte| byte.is_ok()) {
                break;
            }
        }
        // The rest of that event: its short length, and the topic.
        peer.read_exact(&mut [0; 5]).await.unwrap();
        peers.push(peer);
    }
    let (began, worked) = (Instant::now(), server.processor());
    server.tell("publish");
    for mut peer in peers {
        readers.spawn(async move {
            let (mut buffer, mut came) = (Vec::with_capacity(1 << 16), 0);
            while came < EVENTS {
                assert!(peer.read_buf(&mut buffer).await.unwrap() > 0, "{came} events came");
                came += take_messages(&mut buffer, EVENT_BYTES);
            }
        });
    }
    readers.join_all().await;
    measured(EVENTS * SUBSCRIBERS, began.elapsed(), server.processor() - worked, Vec::new())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints a line of the table.
fn report(case: &str, door: &str, rounds: &[[Measured; 2]]) {
    let side = |of: fn(&Measured) -> f64, at: usize| median(rounds.iter().map(|round| of(&round[at])).collect());
    let ratios: Vec<f64> = rounds.iter().map(|[ours, theirs]| ours.per_second / theirs.per_second).collect();
    let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(least, most), it| (least.min(*it), most.max(*it)));
    println!(
        "| {case} | {door} | {:.0}, {:.0} | {:.2} ({least:.2} to {most:.2}) | {:.1}, {:.1} | {:.0}, {:.0} | {:.0}, {:.0} |",
        side(|it| it.per_second, 1),
        side(|it| it.per_second, 0),
        median(ratios.clone()),
        side(|it| it.processor_us, 1),
        side(|it| it.processor_us, 0),
        side(|it| it.p50_us, 1),
        side(|it| it.p50_us, 0),
        side(|it| it.p99_us, 1),
        side(|it| it.p99_us, 0),
    );
}

async fn compare(repetitions: usize) {
    println!(
        "| case | door | per s: crate, ours | ratio (min to max) | server's CPU us each: crate, ours | p50 us: crate, ours | p99 us: crate, ours |"
    );
    println!("|---|---|---|---|---|---|---|");
    for door in ["unix", "tcp"] {
        for (in_flight, calls) in CALLS {
            let mut rounds = Vec::new();
            for _ in 0..repetitions {
                let ours = call("ours", door, in_flight, calls).await;
                rounds.push([ours, call("crate", door, in_flight, calls).await]);
            }
            report(&format!("calls, {in_flight} in flight"), door, &rounds);
        }
        let mut rounds = Vec::new();
        for _ in 0..repetitions {
            let ours = publish("ours", door).await;
            rounds.push([ours, publish("crate", door).await]);
        }
        report(&format!("events, {SUBSCRIBERS} subscribers"), door, &rounds);
    }
}
