//! Brokers that keep what they are given: NATS with `JetStream` and Redis with streams, each where it is installed.
//!
//! Publishers are threads with a connection each that speak the broker's own text protocol, with nothing of a client library in between.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::case::{Contender, Context, Metrics};
use crate::fleet::Scratch;
use crate::load::{self, Course, Outcome, Pace};

/// Bytes of one event, as in Pando's.
const EVENT_BYTES: usize = 300;
/// How long a broker may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where Debian puts servers, beside what is on the path.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// A broker's process, killed when it is dropped.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns the program where it is installed, or was unpacked below the bench's directory.
fn find(program: &str, context: &Context) -> Option<PathBuf> {
    let unpacked = PLACES.map(|place| context.dir.join("peers").join(place.trim_start_matches('/')));
    let places = PLACES.iter().map(PathBuf::from).chain(unpacked);
    places.map(|place| place.join(program)).find(|path| path.is_file())
}

/// How a publisher of one broker talks.
trait Talk: Send + Copy + 'static {
    /// Returns the program and its arguments for a server on `port` that keeps its data in `dir`.
    fn command(self, program: &Path, dir: &Path, port: u16) -> Command;
    /// Prepares a connection.
    fn greet(self, stream: &mut BufReader<TcpStream>, publisher: u32) -> Result<(), Failure>;
    /// Appends the request to publish one event.
    fn publish(self, publisher: u32, out: &mut Vec<u8>);
    /// Reads one acknowledgement; false when it is a refusal.
    fn acknowledged(self, stream: &mut BufReader<TcpStream>) -> Result<bool, Failure>;
}

fn line(stream: &mut BufReader<TcpStream>) -> Result<String, Failure> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err("the broker closed the connection".into());
    }
    Ok(line.trim_end().to_owned())
}

/// NATS with `JetStream`, file storage, its default sync every two minutes.
#[derive(Clone, Copy)]
struct JetStream;

impl Talk for JetStream {
    fn command(self, program: &Path, dir: &Path, port: u16) -> Command {
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(dir);
        command
    }

    fn greet(self, stream: &mut BufReader<TcpStream>, publisher: u32) -> Result<(), Failure> {
        line(stream)?;
        let stream_config = br#"{"name":"BENCH","subjects":["bench.>"],"storage":"file"}"#;
        let mut hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"name\":\"bench\"}}\r\nSUB inbox.{publisher} 1\r\n\
             PUB $JS.API.STREAM.CREATE.BENCH inbox.{publisher} {}\r\n",
            stream_config.len()
        )
        .into_bytes();
        hello.extend_from_slice(stream_config);
        hello.extend_from_slice(b"\r\n");
        stream.get_mut().write_all(&hello)?;
        // Made by the first, and there already for the others.
        self.acknowledged(stream).map(drop)
    }

    fn publish(self, publisher: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("PUB bench.event inbox.{publisher} {EVENT_BYTES}\r\n").as_bytes());
        out.extend_from_slice(&[b'x'; EVENT_BYTES]);
        out.extend_from_slice(b"\r\n");
    }

    fn acknowledged(self, stream: &mut BufReader<TcpStream>) -> Result<bool, Failure> {
        loop {
            let head = line(stream)?;
            if head == "PING" {
                stream.get_mut().write_all(b"PONG\r\n")?;
            } else if head.starts_with("MSG") {
                let length: usize = head.rsplit(' ').next().unwrap_or_default().parse()?;
                let mut body = vec![0; length + 2];
                stream.read_exact(&mut body)?;
                return Ok(!body.windows(7).any(|part| part == b"\"error\""));
            } else if head.starts_with("-ERR") {
                return Err(head.into());
            }
        }
    }
}

/// Redis with an append-only file that is synced every second, its default.
#[derive(Clone, Copy)]
struct Redis;

impl Talk for Redis {
    fn command(self, program: &Path, dir: &Path, port: u16) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes", "--save", "", "--dir"])
            .arg(dir);
        command
    }

    fn greet(self, stream: &mut BufReader<TcpStream>, _publisher: u32) -> Result<(), Failure> {
        stream.get_mut().write_all(b"*1\r\n$4\r\nPING\r\n")?;
        line(stream).map(drop)
    }

    fn publish(self, _publisher: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nt\r\n");
        out.extend_from_slice(format!("${EVENT_BYTES}\r\n").as_bytes());
        out.extend_from_slice(&[b'x'; EVENT_BYTES]);
        out.extend_from_slice(b"\r\n");
    }

    fn acknowledged(self, stream: &mut BufReader<TcpStream>) -> Result<bool, Failure> {
        let head = line(stream)?;
        if head.starts_with('$') {
            line(stream)?;
        }
        Ok(head.starts_with('$'))
    }
}

/// Starts a broker and waits until it answers.
fn start(talk: impl Talk, program: &Path, dir: &Path) -> Result<(Broker, u16), Failure> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let mut command = talk.command(program, dir, port);
    let broker = Broker(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err(format!("{} does not answer", program.display()).into());
        }
        thread::yield_now();
    }
    Ok((broker, port))
}

fn publish(talk: impl Talk, port: u16, publisher: u32, in_flight: u32, pace: Pace) -> Result<Outcome, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    talk.greet(&mut stream, publisher)?;
    let mut course = Course::begin(pace);
    let (mut began, mut out) = (VecDeque::new(), Vec::new());
    for _ in 0..in_flight {
        began.extend(course.next());
        talk.publish(publisher, &mut out);
    }
    stream.get_mut().write_all(&out)?;
    loop {
        out.clear();
        // All that has come already is answered by one write.
        loop {
            let is_ok = talk.acknowledged(&mut stream)?;
            let due = began.pop_front().ok_or("an acknowledgement that nobody waits for")?;
            course.ended(due, is_ok);
            let Some(next) = course.next() else { return Ok(course.outcome()) };
            began.push_back(next);
            talk.publish(publisher, &mut out);
            if stream.buffer().is_empty() {
                break;
            }
        }
        stream.get_mut().write_all(&out)?;
    }
}

fn run(talk: impl Talk, program: &str, publishers: u32, in_flight: u32, context: &Context) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let program = find(program, context).ok_or("the broker is gone")?;
    let (_broker, port) = start(talk, &program, scratch.path())?;
    let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 };
    let threads: Vec<_> = (0..publishers)
        .map(|publisher| thread::spawn(move || publish(talk, port, publisher, in_flight, pace)))
        .collect();
    let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a publisher panicked")?);
    Ok(load::sum(&joined.collect::<Result<Vec<_>, Failure>>()?))
}

fn contender(
    name: &'static str,
    talk: impl Talk,
    program: &'static str,
    (publishers, in_flight): (u32, u32),
    context: &Context,
) -> Contender {
    let missing = find(program, context).is_none().then(|| format!("no {program} is installed"));
    Contender::new(name, move |context| run(talk, program, publishers, in_flight, context)).unless(missing.as_deref())
}

/// Returns NATS with `JetStream` as a contender for durable events.
pub(crate) fn jet_stream(publishers: u32, in_flight: u32, context: &Context) -> Contender {
    contender("NATS JetStream", JetStream, "nats-server", (publishers, in_flight), context)
}

/// Returns Redis with a stream as a contender for durable events.
pub(crate) fn redis(publishers: u32, in_flight: u32, context: &Context) -> Contender {
    contender("Redis stream", Redis, "redis-server", (publishers, in_flight), context)
}
