//! Who calls: Pando's client, or plain sockets with as little work of their own as can be.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::Instant;

use pando::{Client, Workdir};
use pando_ipc::Kind;
use pando_ipc::client::Options;
use rustix::event::epoll;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Caller, REQUEST_BYTES};
use crate::load::{Course, Outcome, Pace};
use crate::plain::{Framing, Stream};
use crate::runtime::Threads;
use crate::station::ECHO;
use crate::{Failure, fleet};

/// Room for what arrives at once.
const INPUT_BYTES: usize = 64 * 1024;
/// Sockets that are looked at together.
const EVENTS: usize = 64;

/// Calls as an application does.
pub(super) fn pando(
    threads: Threads,
    workdir: &str,
    clients: u32,
    in_flight: u32,
    pace: Pace,
    ready: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = threads.runtime()?;
    let workdir = Workdir::open(workdir)?;
    let mut linked = Vec::new();
    for number in 0..clients {
        let options = Options::new(format!("caller-{}-{number}", std::process::id()), Kind::Client);
        linked.push(runtime.block_on(Client::connect(workdir.clone(), options))?);
    }
    ready("")?;
    let params = json!({"text": "x".repeat(REQUEST_BYTES - body(0, "").len())});
    let mut loops = JoinSet::new();
    for client in &linked {
        for _ in 0..in_flight {
            loops.spawn_on(repeat(client.clone(), params.clone(), Course::begin(pace)), runtime.handle());
        }
    }
    let outcomes = runtime.block_on(loops.join_all());
    let outcome = outcomes.into_iter().reduce(Outcome::and).ok_or("no loop ran")?;
    fleet::done(Some(&outcome))?;
    for client in linked {
        runtime.block_on(client.hang_up());
    }
    Ok(())
}

async fn repeat(client: Client, params: Value, mut course: Course) -> Outcome {
    while let Some(due) = course.next() {
        let answer = client.call(ECHO, params.clone()).await;
        course.ended(due, answer.is_ok_and(|answer| answer == params));
    }
    course.outcome()
}

fn body(number: u64, text: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":"{number:010}","method":"{ECHO}","params":{{"text":"{text}"}}}}"#)
}

/// One connection, and when each of its calls in flight began, oldest first: answers come in order.
struct Line {
    stream: Stream,
    began: VecDeque<Instant>,
    input: Vec<u8>,
    held: usize,
}

impl Line {
    /// Takes the answers that have come and makes as many new calls; false once the time is over.
    fn turn(&mut self, framing: Framing, course: &mut Course, request: &[u8]) -> Result<bool, Failure> {
        let read = self.stream.read(&mut self.input[self.held..])?;
        if read == 0 {
            return Err("the server closed a connection".into());
        }
        self.held += read;
        let (answers, bytes) = framing.count(&self.input[..self.held]);
        self.input.copy_within(bytes..self.held, 0);
        self.held -= bytes;
        for began in self.began.drain(..answers) {
            course.ended(began, true);
        }
        self.call(answers, course, framing, request)
    }

    fn call(&mut self, count: usize, course: &mut Course, framing: Framing, request: &[u8]) -> Result<bool, Failure> {
        let mut out = Vec::with_capacity(count * (request.len() + 4));
        for _ in 0..count {
            let Some(now) = course.next() else { return Ok(false) };
            self.began.push_back(now);
            framing.write(request, &mut out);
        }
        self.stream.write_all(&out)?;
        Ok(true)
    }
}

/// Calls over plain sockets, all from one thread.
pub(super) fn plain(
    caller: Caller,
    place: &str,
    clients: u32,
    in_flight: u32,
    pace: Pace,
    ready: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let framing = if caller == Caller::Zmtp { Framing::Zmtp } else { Framing::Length };
    let mut lines = Vec::new();
    for _ in 0..clients {
        let stream = Stream::connect(place, framing)?;
        lines.push(Line { stream, began: VecDeque::new(), input: vec![0; INPUT_BYTES], held: 0 });
    }
    let request = body(0, &"x".repeat(REQUEST_BYTES - body(0, "").len()));
    ready("")?;
    let mut course = Course::begin(pace);
    for line in &mut lines {
        line.call(usize::try_from(in_flight)?, &mut course, framing, request.as_bytes())?;
    }
    match &mut lines[..] {
        // Without a system call more that asks who has news.
        [line] => while line.turn(framing, &mut course, request.as_bytes())? {},
        lines => poll(lines, framing, &mut course, request.as_bytes())?,
    }
    fleet::done(Some(&course.outcome()))
}

fn poll(lines: &mut [Line], framing: Framing, course: &mut Course, request: &[u8]) -> Result<(), Failure> {
    let readable = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, line) in lines.iter().enumerate() {
        epoll::add(&readable, &line.stream, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        epoll::wait(&readable, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let at = usize::try_from(event.data.u64())?;
            if !lines[at].turn(framing, course, request)? {
                return Ok(());
            }
        }
    }
}
