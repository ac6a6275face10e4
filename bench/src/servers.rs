//! Servers that people would use instead, each where it is there: started for one run, asked by threads with a connection each.
//!
//! How to talk to one stands beside the subject that it is a peer of. It is the server's own protocol, with nothing of a client library in
//! between.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::case::{Contender, Context, Metrics};
use crate::fleet::Scratch;
use crate::load::{self, Course, Outcome, Pace};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one may say nothing while it is asked; it is asked again while it starts.
const SILENCE: Duration = Duration::from_secs(5);
/// Where packages put servers, on the system or below the bench's directory.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// The programs of all servers that the bench can talk to.
const PROGRAMS: [&str; 3] = ["nats-server", "redis-server", "rqlited"];

/// A client's connection.
pub(crate) type Connection = BufReader<TcpStream>;

/// How to talk to one kind of server.
pub(crate) trait Talk: Send + Copy + 'static {
    /// Its name in the table.
    const NAME: &'static str;
    /// Its program.
    const PROGRAM: &'static str;

    /// Returns the program with its arguments, to serve on `port` of 127.0.0.1 and keep its data in `dir`.
    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command, Failure>;
    /// Makes what all clients need, on the first connection; false when the server cannot do it yet.
    fn set_up(self, _server: &mut Connection) -> Result<bool, Failure> {
        Ok(true)
    }
    /// Prepares a client's connection.
    fn greet(self, _server: &mut Connection, _client: u32) -> Result<(), Failure> {
        Ok(())
    }
    /// Appends one request.
    fn request(self, client: u32, out: &mut Vec<u8>);
    /// Reads one answer; false when it is a refusal.
    fn answered(self, server: &mut Connection) -> Result<bool, Failure>;
}

/// Reads one line, without its end.
pub(crate) fn line(server: &mut Connection) -> Result<String, Failure> {
    let mut line = String::new();
    if server.read_line(&mut line)? == 0 {
        return Err("the server closed the connection".into());
    }
    Ok(line.trim_end().to_owned())
}

/// Returns a port that nobody uses yet.
pub(crate) fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A server's process, killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns where packages were unpacked that are not installed.
fn unpacked(context: &Context) -> PathBuf {
    context.dir.join("peers")
}

/// Returns the program where it is installed, or was unpacked below the bench's directory.
fn find(program: &str, context: &Context) -> Option<PathBuf> {
    let below = PLACES.map(|place| unpacked(context).join(place.trim_start_matches('/')));
    let places = PLACES.iter().map(PathBuf::from).chain(below);
    places.map(|place| place.join(program)).find(|path| path.is_file())
}

/// Lets an unpacked program find the libraries that were unpacked with it.
fn with_libraries(mut command: Command, context: &Context) -> Command {
    let libraries = unpacked(context).join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

/// Returns the names and versions of the servers that are here, as they say them.
pub(crate) fn versions(context: &Context) -> String {
    let said = PROGRAMS.iter().filter_map(|program| {
        let mut command = with_libraries(Command::new(find(program, context)?), context);
        let Output { stdout, stderr, .. } = command.arg("--version").output().ok()?;
        // rqlited says it to stderr; what follows is about how they were built.
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        Some(said.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
    });
    let said: Vec<_> = said.collect();
    if said.is_empty() { "none".to_owned() } else { said.join(", ") }
}

/// Starts a server and waits until it has set up what clients need.
fn start(talk: impl Talk, program: &Path, dir: &Path, context: &Context) -> Result<(Server, u16), Failure> {
    let port = free_port()?;
    let mut command = with_libraries(talk.command(program, dir, port)?, context);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Server(command.spawn()?);
    let deadline = Instant::now() + PATIENCE;
    while !connect(port).is_ok_and(|mut server| talk.set_up(&mut server).is_ok_and(|is_done| is_done)) {
        let why = match server.0.try_wait()? {
            Some(ended) => format!("ended with {ended}"),
            None if Instant::now() > deadline => format!("does not serve after {PATIENCE:?}"),
            None => {
                thread::yield_now();
                continue;
            }
        };
        return Err(format!("{} {why}; run {command:?} to see more", program.display()).into());
    }
    Ok((server, port))
}

fn connect(port: u16) -> Result<Connection, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(BufReader::new(stream))
}

fn ask(talk: impl Talk, port: u16, client: u32, in_flight: u32, pace: Pace) -> Result<Outcome, Failure> {
    let mut server = connect(port)?;
    talk.greet(&mut server, client)?;
    let mut course = Course::begin(pace);
    let (mut began, mut out) = (VecDeque::new(), Vec::new());
    for _ in 0..in_flight {
        began.extend(course.next());
        talk.request(client, &mut out);
    }
    server.get_mut().write_all(&out)?;
    loop {
        out.clear();
        // All that has come already is answered by one write.
        loop {
            let is_ok = talk.answered(&mut server)?;
            let due = began.pop_front().ok_or("an answer that nobody waits for")?;
            course.ended(due, is_ok);
            let Some(next) = course.next() else { return Ok(course.outcome()) };
            began.push_back(next);
            talk.request(client, &mut out);
            if server.buffer().is_empty() {
                break;
            }
        }
        server.get_mut().write_all(&out)?;
    }
}

fn run<T: Talk>(talk: T, clients: u32, in_flight: u32, context: &Context) -> Result<Metrics, Failure> {
    let scratch = Scratch::new(&context.dir)?;
    let program = find(T::PROGRAM, context).ok_or_else(|| format!("{} is gone", T::PROGRAM))?;
    let (_server, port) = start(talk, &program, scratch.path(), context)?;
    let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 };
    let threads: Vec<_> =
        (0..clients).map(|client| thread::spawn(move || ask(talk, port, client, in_flight, pace))).collect();
    let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a client panicked")?);
    let mut metrics = load::sum(&joined.collect::<Result<Vec<_>, Failure>>()?);
    // It is that of the clients, and not the server's.
    metrics.remove("cpu_us");
    Ok(metrics)
}

/// Returns a server as a contender: so many clients, with so many requests in flight each.
pub(crate) fn contender<T: Talk>(talk: T, clients: u32, in_flight: u32, context: &Context) -> Contender {
    let missing = find(T::PROGRAM, context)
        .is_none()
        .then(|| format!("no {}; a full scripts/bench fetches it where the package registries have it", T::PROGRAM));
    Contender::new(T::NAME, move |context| run(talk, clients, in_flight, context)).unless(missing.as_deref())
}
