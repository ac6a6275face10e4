//! Calls: an echo of 200 bytes through Pando's bus, dispatch and JSON-RPC, beside libzmq and a plain socket.
//!
//! The plain socket carries the same JSON behind a length, and nobody reads it: the physical limit. libzmq's ROUTER sends back what its
//! DEALER sent, and nobody reads it either. Where a case says so both sides are loaded by the same program.

mod call;
mod serve;

use std::path::PathBuf;

use pando::Workdir;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::fleet::{self, Fleet, Scratch};
use crate::load::{self, Pace};
use crate::runtime::Threads;

/// Bytes of one request.
const REQUEST_BYTES: usize = 200;

/// The part of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Answers.
    Serve { server: Server, workdir: PathBuf, tcp: bool, pace: Pace },
    /// Calls what is at this place, with so many clients, each with so many calls in flight.
    Call { caller: Caller, place: String, clients: u32, in_flight: u32, pace: Pace },
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Server {
    /// Pando's bus.
    Pando,
    /// A plain socket.
    Raw,
    /// libzmq's ROUTER, in a process of its own make.
    Libzmq,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Caller {
    /// Pando's client, in an application with this runtime.
    Pando(Threads),
    /// A plain socket.
    Raw,
    /// A plain socket that speaks just enough ZMTP to load a ROUTER with little work of its own.
    Zmtp,
    /// libzmq's DEALER, in a process of its own make.
    Libzmq,
}

/// Does one process's part.
pub(crate) fn work(job: Job, ready: impl FnOnce(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    match job {
        Job::Serve { server: Server::Pando, workdir, pace, .. } => serve::station(&workdir, pace, ready),
        Job::Serve { workdir, tcp, pace, .. } => serve::raw(&workdir, tcp, pace, ready),
        Job::Call { caller: Caller::Pando(threads), place, clients, in_flight, pace } => {
            call::pando(threads, &place, clients, in_flight, pace, ready)
        }
        Job::Call { caller, place, clients, in_flight, pace } => {
            call::plain(caller, &place, clients, in_flight, pace, ready)
        }
    }
}

/// How a case calls.
#[derive(Debug, Clone, Copy)]
struct Load {
    clients: u32,
    in_flight: u32,
    tcp: bool,
}

impl Load {
    /// Returns over how many processes the clients are spread, and how many each has.
    fn spread(self) -> (u32, u32) {
        let processes = match self.clients {
            few @ 0..=8 => few,
            9..=64 => 8,
            _ => 2,
        };
        (processes, self.clients / processes)
    }

    fn run(self, server: Server, caller: Caller, context: &Context) -> Result<Metrics, Failure> {
        let scratch = Scratch::new(&context.dir)?;
        let workdir = Workdir::open(scratch.path())?;
        workdir.prepare()?;
        let pace = Pace { warm_up: context.warm_up, time: context.time, per_second: None, seed: 1 };
        let mut fleet = Fleet::default();
        let place = if server == Server::Libzmq {
            let endpoint = if self.tcp {
                "tcp://127.0.0.1:*".to_owned()
            } else {
                format!("ipc://{}", workdir.pando_dir().join("z").display())
            };
            fleet.start_libzmq(context, pace, &["router", &endpoint])?
        } else {
            let job = Job::Serve { server, workdir: workdir.path().to_owned(), tcp: self.tcp, pace };
            let places = fleet.start(&fleet::Job::Rpc(job), None)?;
            let scheme = if self.tcp { "tcp://" } else { "ipc://" };
            places.split(' ').find(|place| place.starts_with(scheme)).ok_or("the server has no such door")?.to_owned()
        };
        let is_own = matches!(caller, Caller::Pando(_));
        let place = if is_own { workdir.path().display().to_string() } else { place };
        let (processes, clients) = self.spread();
        for _ in 0..processes {
            if caller == Caller::Libzmq {
                let arguments = ["dealer", &place, &clients.to_string(), &self.in_flight.to_string()];
                fleet.start_libzmq(context, pace, &arguments)?;
            } else {
                let job = Job::Call { caller, place: place.clone(), clients, in_flight: self.in_flight, pace };
                fleet.start(&fleet::Job::Rpc(job), None)?;
            }
        }
        Ok(load::sum(&fleet.go()?))
    }
}

/// Returns a contender: who answers whom.
fn contender(name: &'static str, load: Load, server: Server, caller: Caller, context: &Context) -> Contender {
    let needs_libzmq = server == Server::Libzmq || caller == Caller::Libzmq;
    let missing = (needs_libzmq && context.libzmq.is_none()).then_some(crate::NO_LIBZMQ);
    Contender::new(name, move |context| load.run(server, caller, context)).unless(missing)
}

/// Returns every case of this subject.
pub(crate) fn cases(context: &Context) -> Vec<Case> {
    use Rule::{AtLeast, RatioAtLeast, RatioAtMost};
    let most = if context.quick { 16 } else { 200 };
    let case = |name, about: &str, (clients, in_flight, tcp), (server, caller), targets| {
        let load = Load { clients, in_flight, tcp };
        let libzmq = if caller == Caller::Zmtp { Caller::Zmtp } else { Caller::Libzmq };
        let own = contender("pando", load, server, caller, context);
        let skip = own.skip.clone();
        let plural = if clients == 1 { "" } else { "s" };
        Case {
            name,
            about: format!("{clients} client{plural} with {in_flight} in flight, {about}"),
            peers: vec![
                contender("libzmq", load, Server::Libzmq, libzmq, context),
                contender("plain socket", load, Server::Raw, Caller::Raw, context),
            ],
            own,
            targets,
            skip,
        }
    };
    let client = (Server::Pando, Caller::Pando(Threads::Cores));
    let thread = (Server::Pando, Caller::Pando(Threads::One));
    let outside = (Server::Pando, Caller::Libzmq);
    let loaded = (Server::Pando, Caller::Zmtp);
    let p50 = |ratio| Target::new("p50_ms", RatioAtMost(ratio));
    let rate = |ratio| Target::new("per_s", RatioAtLeast(ratio));
    let native = "native door, Pando's client; libzmq over ipc";
    let one = "native door, Pando's client in a runtime of one thread; libzmq over ipc";
    let tcp = "TCP door, called by libzmq's DEALER on both sides";
    let same = "native door; the same program calls Pando and libzmq";
    vec![
        case("native-1", native, (1, 1, false), client, vec![p50(1.3).to("plain socket"), p50(0.25).to("libzmq")]),
        case("native-8", native, (1, 8, false), client, vec![]),
        case("native-64", native, (1, 64, false), client, vec![rate(1.4).to("libzmq")]),
        case("native-64-thread", one, (1, 64, false), thread, vec![rate(1.4).to("libzmq")]),
        case("native-8-clients", native, (8, 1, false), client, vec![]),
        case("native-64-clients", native, (64, 1, false), client, vec![]),
        case("door-1", same, (1, 1, false), loaded, vec![]),
        case("door-64", same, (1, 64, false), loaded, vec![]),
        case("door-200x16", same, (most, 16, false), loaded, vec![Target::new("per_s", AtLeast(0.8e6))]),
        case("tcp-1", tcp, (1, 1, true), outside, vec![rate(1.2).to("libzmq")]),
        case("tcp-8", tcp, (1, 8, true), outside, vec![rate(1.2).to("libzmq")]),
        case("tcp-64", tcp, (1, 64, true), outside, vec![rate(1.2).to("libzmq")]),
        case("tcp-8-clients", tcp, (8, 1, true), outside, vec![rate(1.2).to("libzmq")]),
        case("tcp-64-clients", tcp, (64, 1, true), outside, vec![rate(1.2).to("libzmq")]),
    ]
}
