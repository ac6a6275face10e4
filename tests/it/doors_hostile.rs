//! Whatever a peer sends costs it its connection, and nobody else anything.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pando_ipc::lock::Endpoints;
use serde_json::Value;

use crate::support::{PandoProcess, RawPeer, Sandbox, bytes_of, eventually, heavy, pando};

/// How long the primary may take to close a connection, or to settle.
const PATIENCE: Duration = Duration::from_secs(20);
/// What all attacks together may cost the primary in memory.
const GROWTH_KIB: u64 = 32 * 1024;
/// Latency of a well-behaved caller that is never held against an attack: two turns of other programs on its core.
const NOISE: Duration = Duration::from_millis(25);

/// Rounds of an attack that takes a moment: its latencies are few.
const SHORT_ROUNDS: usize = 5;

/// How far a peer has come when it turns hostile.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// It has said nothing.
    Greeting,
    /// It has greeted.
    Handshake,
    /// Its handshake is done.
    Open,
}
use Stage::{Greeting, Handshake, Open};

/// What hostile peers say, in the notation of `tests/golden/*.bytes`. Each is refused at both doors, by ROUTER and by PUB.
const HOSTILE: [(Stage, &str, &str); 60] = [
    (Greeting, "HTTP", "'GET / HTTP/1.1' 0d0a 'Host: 127.0.0.1' 0d0a 0d0a"),
    (
        Greeting,
        "a form of a web page",
        "'POST / HTTP/1.1' 0d0a 'Content-Length: 40' 0d0a 0d0a '{\"jsonrpc\":\"2.0\",\"method\":\"db.exec\"}'",
    ),
    (Greeting, "a WebSocket", "'GET /chat HTTP/1.1' 0d0a 'Upgrade: websocket' 0d0a 0d0a"),
    (Greeting, "HTTP/2", "'PRI * HTTP/2.0' 0d0a 0d0a 'SM' 0d0a 0d0a"),
    (Greeting, "a TLS hello", "160301 0200 01 0001fc 0303 00*32"),
    (Greeting, "SSH", "'SSH-2.0-OpenSSH_9.9' 0d0a"),
    (Greeting, "a Redis command", "'*1' 0d0a '$4' 0d0a 'PING' 0d0a"),
    (Greeting, "bare JSON", "'{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"instance.ping\"}' 0a"),
    (Greeting, "a line feed", "0a"),
    (Greeting, "zeros", "00*64"),
    (Greeting, "ones", "ff*64"),
    (Greeting, "ZMTP 1.0", "01 00"),
    (Greeting, "ZMTP 2.0 of version 1", "ff 00*8 7f 01 05 00*2"),
    (Greeting, "ZMTP of version 0", "ff 00*8 7f 00"),
    (Greeting, "a signature with a wrong end", "ff 00*8 7e 03 00"),
    (Greeting, "PLAIN", "ff 00*8 7f 03 00 'PLAIN' 00*47"),
    (Greeting, "CURVE", "ff 00*8 7f 03 01 'CURVE' 00*47"),
    (Greeting, "GSSAPI", "ff 00*8 7f 03 00 'GSSAPI' 00*46"),
    (Greeting, "no mechanism", "ff 00*8 7f 03 00 00*52"),
    (Greeting, "a mechanism in small letters", "ff 00*8 7f 03 00 'null' 00*48"),
    (Greeting, "a mechanism that begins with NULL", "ff 00*8 7f 03 00 'NULLX' 00*47"),
    (Greeting, "a mechanism of no text", "ff 00*8 7f 03 00 ff*20 00*32"),
    (Handshake, "a message before READY", "00 01 'x'"),
    (Handshake, "an empty message before READY", "00 00"),
    (Handshake, "2^31 bytes before READY", "02 0000000080000000"),
    (Handshake, "2^63-1 bytes before READY", "02 7fffffffffffffff"),
    (Handshake, "a command of 2^62 bytes", "06 4000000000000000"),
    (Handshake, "a command of 2^64-1 bytes", "06 ffffffffffffffff"),
    (Handshake, "a command of 4 KiB and a byte", "06 0000000000001001"),
    (Handshake, "flags that are reserved", "08 00"),
    (Handshake, "all flags", "ff 00"),
    (Handshake, "a command with more", "05 00"),
    (Handshake, "an empty command", "04 00"),
    (Handshake, "a name beyond its command", "04 02 10 'A'"),
    (Handshake, "a property without value", "04 12 05 'READY' 0b 'Socket-Type'"),
    (Handshake, "a value beyond its command", "04 16 05 'READY' 0b 'Socket-Type' ffffffff"),
    (Handshake, "a value of 2^31 bytes", "04 17 05 'READY' 0b 'Socket-Type' 80000000 'S'"),
    (Handshake, "READY without socket type", "04 06 05 'READY'"),
    (Handshake, "a socket type of no bytes", "04 16 05 'READY' 0b 'Socket-Type' 00000000"),
    (Handshake, "PUSH", "04 1a 05 'READY' 0b 'Socket-Type' 00000004 'PUSH'"),
    (Handshake, "PAIR", "04 1a 05 'READY' 0b 'Socket-Type' 00000004 'PAIR'"),
    (Handshake, "PUB", "04 19 05 'READY' 0b 'Socket-Type' 00000003 'PUB'"),
    (Handshake, "a socket type with a NUL", "04 1c 05 'READY' 0b 'Socket-Type' 00000006 'SUB' 00*3"),
    (Handshake, "PING before READY", "04 07 04 'PING' 0000"),
    (Handshake, "SUBSCRIBE before READY", "04 0b 09 'SUBSCRIBE' 'a'"),
    (Handshake, "ERROR", "04 07 05 'ERROR' 00"),
    (Handshake, "a command of no name", "04 01 00"),
    (Open, "2^31 bytes", "02 0000000080000000"),
    (Open, "2^40 bytes, and more", "03 0000010000000000"),
    (Open, "2^62 bytes", "02 4000000000000000"),
    (Open, "2^63-1 bytes", "02 7fffffffffffffff"),
    (Open, "2^64-1 bytes", "02 ffffffffffffffff"),
    (Open, "a command of 2^63-1 bytes", "06 7fffffffffffffff"),
    (Open, "33 empty parts", "0100*32 0000"),
    (Open, "parts without end", "0101ff*100000"),
    (Open, "flags that are reserved, when open", "40 01 'x'"),
    (Open, "a command with more, when open", "05 02 01 'A'"),
    (Open, "a PING without time to live", "04 05 04 'PING'"),
    (Open, "a PING with a context of 17 bytes", "04 18 04 'PING' 0000 00*17"),
    (Open, "an ERROR that says more than it has", "04 07 05 'ERROR' ff"),
];

/// A connection through either door.
trait Wire: Read + Write + Send {
    /// Lets writes fail that take longer.
    fn set_write_timeout(&self, timeout: Duration);
}

impl Wire for TcpStream {
    fn set_write_timeout(&self, timeout: Duration) {
        Self::set_write_timeout(self, Some(timeout)).unwrap();
    }
}

impl Wire for UnixStream {
    fn set_write_timeout(&self, timeout: Duration) {
        Self::set_write_timeout(self, Some(timeout)).unwrap();
    }
}

fn dial(endpoint: &str) -> Box<dyn Wire> {
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        return Box::new(stream);
    }
    let port: u16 = endpoint.rsplit_once(':').unwrap().1.parse().unwrap();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Box::new(stream)
}

/// Returns the bytes that bring a peer to its stage.
fn prelude(stage: Stage, socket_type: &str) -> Vec<u8> {
    let greeting = "ff 00*8 7f 03 00 'NULL' 00*48";
    let (length, of_type) = (22 + socket_type.len(), socket_type.len());
    bytes_of(&match stage {
        Greeting => String::new(),
        Handshake => greeting.to_owned(),
        Open => format!("{greeting} 04 {length:02x} 05 'READY' 0b 'Socket-Type' {of_type:08x} '{socket_type}'"),
    })
}

/// Says something and waits until the other side has closed the connection.
fn say_and_be_closed(endpoint: &str, what: &str, bytes: &[u8]) {
    let mut peer = dial(endpoint);
    // It may be closed before all is said.
    match peer.write_all(bytes) {
        Err(error) if ![ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {
            panic!("{what}: {error}")
        }
        _ => {}
    }
    let mut rest = Vec::new();
    if let Err(error) = peer.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what} at {endpoint}");
    }
    assert!(rest.len() <= 64 + 40, "{what} is told {} bytes: greeting and READY are all", rest.len());
}

fn refusals(sandbox: &Sandbox) -> Value {
    let info: Value = pando(sandbox, &["ipc", "doors", "--json"]).json();
    info["refusals"].clone()
}

/// A well-behaved caller that calls all the time, and knows how long each answer took.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Caller {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let call = move || {
            let mut peer = RawPeer::handshake(port, "DEALER");
            let mut took = Vec::new();
            while !stopped.load(Relaxed) {
                let asked = Instant::now();
                peer.request(br#"{"jsonrpc":"2.0","id":1,"method":"events.head"}"#);
                let answer = peer.message();
                assert!(answer[1].starts_with(br#"{"jsonrpc":"2.0","id":1,"result":"#), "{answer:?}");
                took.push(asked.elapsed());
            }
            took
        };
        Self { stop, thread: thread::Builder::new().name("caller".into()).spawn(call).unwrap() }
    }

    /// Stops; returns how long its answers took.
    fn latencies(self) -> Latencies {
        self.stop.store(true, Relaxed);
        Latencies(self.thread.join().unwrap())
    }
}

/// How long a caller's answers took.
#[derive(Debug, Default)]
struct Latencies(Vec<Duration>);

impl Latencies {
    fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns the 99th percentile.
    fn p99(&mut self) -> Duration {
        assert!(self.0.len() > 100, "{} calls", self.0.len());
        self.0.sort_unstable();
        self.0[self.0.len() * 99 / 100]
    }
}

fn status_kib(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// Returns the processor time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits until the process uses less than a fifth of a processor over a tenth of a second.
fn calms_down(pid: u32) {
    eventually("a primary that is calm again", PATIENCE, || {
        let (before, since) = (cpu_ticks(pid), Instant::now());
        eventually("a tenth of a second", PATIENCE, || (since.elapsed() >= Duration::from_millis(100)).then_some(()));
        (cpu_ticks(pid) - before <= 2).then_some(())
    });
}

/// A primary that is attacked, or that stands beside it.
struct Victim {
    sandbox: Sandbox,
    _instance: PandoProcess,
    pid: u32,
    rpc: u16,
    endpoints: Endpoints,
}

impl Victim {
    fn start(start: impl FnOnce(&Sandbox) -> PandoProcess) -> Self {
        let sandbox = Sandbox::new();
        let mut instance = start(&sandbox);
        let role = instance.becomes("primary");
        let endpoints = sandbox.lock_info().endpoints.unwrap();
        Self { sandbox, _instance: instance, pid: role.pid, rpc: role.ports.unwrap().rpc, endpoints }
    }
}

/// Attacks a primary while a well-behaved caller works; checks what the attack cost it and the primary. Each attack is told
/// how often the same primary was attacked before.
fn check_attack(rounds: usize, attack: impl Fn(&Victim, usize)) {
    check_attack_on(|sandbox| PandoProcess::start(sandbox, &[]), rounds, attack);
}

/// The attackers load the machine themselves. So another primary is attacked in turns with the one that the caller works
/// with: what it meets then is the machine, what it meets beyond that is the primary.
fn check_attack_on(start: impl Fn(&Sandbox) -> PandoProcess, rounds: usize, attack: impl Fn(&Victim, usize)) {
    let _turn = heavy();
    let (victim, other) = (Victim::start(&start), Victim::start(&start));
    let (mut beside, mut attacked) = (Latencies::default(), Latencies::default());
    let mut grown = 0;
    for round in 0..rounds {
        let caller = Caller::start(victim.rpc);
        attack(&other, round);
        beside.add(caller.latencies());
        let (caller, resident) = (Caller::start(victim.rpc), resident_kib(victim.pid));
        attack(&victim, round);
        attacked.add(caller.latencies());
        grown += resident_kib(victim.pid).saturating_sub(resident);
    }
    let (limit, p99) = ((2 * beside.p99()).max(NOISE), attacked.p99());
    assert!(p99 <= limit, "p99 {:?} beside a primary that is attacked, {p99:?} of one that is", beside.p99());
    calms_down(victim.pid);
    assert!(grown < GROWTH_KIB, "the attacks left {grown} KiB");
}

#[test]
fn every_hostile_sequence_costs_one_connection_and_one_count() {
    check_attack(SHORT_ROUNDS, |Victim { sandbox, endpoints, .. }, before| {
        let mut said = 0;
        for (stage, what, notation) in HOSTILE {
            for (door, socket_type) in [(&endpoints.rpc, "DEALER"), (&endpoints.publish, "SUB")] {
                let bytes = [prelude(stage, socket_type), bytes_of(notation)].concat();
                for endpoint in door {
                    say_and_be_closed(endpoint, what, &bytes);
                    said += 1;
                }
            }
        }
        assert_eq!(said, 4 * HOSTILE.len());
        assert_eq!(refusals(sandbox), serde_json::json!({"protocol": said * (before + 1)}));
    });
}

#[test]
fn hostile_sequences_of_one_role_are_refused_too() {
    check_attack(SHORT_ROUNDS, |Victim { sandbox, endpoints, .. }, before| {
        let subscriptions = |count: u32, size: usize| {
            let one = |number: u32| {
                [&[0, u8::try_from(size + 5).unwrap(), 1], &number.to_be_bytes()[..], &vec![b'x'; size]].concat()
            };
            (0..count).flat_map(one).collect::<Vec<u8>>()
        };
        let half = [bytes_of("03 0000000000200000"), vec![b'x'; 2 << 20]].concat();
        let in_two_parts = [half, bytes_of("02 0000000000200001")].concat();
        let mut said = 0;
        for (door, socket_type, what, bytes) in [
            (&endpoints.publish, "SUB", "10^5 subscriptions", subscriptions(100_000, 0)),
            (&endpoints.publish, "XSUB", "subscriptions of more than 64 KiB", subscriptions(400, 200)),
            (&endpoints.publish, "SUB", "a subscription of more than 4 KiB", bytes_of("02 0000000000001001 01")),
            (&endpoints.publish, "DEALER", "a DEALER at PUB", Vec::new()),
            (&endpoints.rpc, "SUB", "a SUB at ROUTER", Vec::new()),
            (&endpoints.rpc, "DEALER", "a message of 4 MiB and a byte", bytes_of("02 0000000000400001")),
            (&endpoints.rpc, "DEALER", "the same in two parts", in_two_parts),
        ] {
            for endpoint in door {
                say_and_be_closed(endpoint, what, &[prelude(Open, socket_type), bytes.clone()].concat());
                said += 1;
            }
        }
        assert_eq!(refusals(sandbox), serde_json::json!({"protocol": said * (before + 1)}));
    });
}

#[test]
fn who_stops_amid_a_handshake_or_drips_a_message_is_closed_in_time() {
    check_attack(1, |Victim { sandbox, endpoints, .. }, _| {
        let (open, half) = (prelude(Open, "DEALER"), prelude(Handshake, "DEALER"));
        // A whole greeting, parts of it, a part of READY, nothing at all.
        let truncated: [&[u8]; 5] = [&half, &half[..10], &half[..63], &open[..open.len() - 1], &[]];
        let mut silent: Vec<Box<dyn Wire>> = Vec::new();
        for endpoint in &endpoints.rpc {
            for bytes in truncated {
                let mut peer = dial(endpoint);
                peer.write_all(bytes).unwrap();
                silent.push(peer);
            }
        }
        // A byte every tenth of a second, and every byte promises another.
        let mut drip = dial(&endpoints.rpc[0]);
        drip.write_all(&[open.clone(), bytes_of("02 0000000000100000")].concat()).unwrap();
        let since = Instant::now();
        eventually("the end of who drips", PATIENCE, || {
            let next = since.elapsed() + Duration::from_millis(100);
            eventually("the next byte", PATIENCE, || (since.elapsed() >= next).then_some(()));
            drip.write_all(b"x").is_err().then_some(())
        });
        for mut peer in silent {
            let mut rest = Vec::new();
            drop(peer.read_to_end(&mut rest));
            assert!(rest.len() <= 64 + 40);
        }
        assert_eq!(refusals(sandbox), serde_json::json!({"handshake": 2 * truncated.len(), "slow_sender": 1}));
    });
}

#[test]
fn idle_connections_beyond_the_descriptors_keep_nobody_out() {
    check_attack_on(
        |sandbox| PandoProcess::start_with_descriptors(sandbox, 256),
        1,
        |Victim { sandbox, endpoints, .. }, _| {
            let all: Vec<_> = endpoints.rpc.iter().chain(&endpoints.publish).collect();
            let idle: Vec<_> = (0..300).map(|number| dial(all[number % all.len()])).collect();
            // It calls, and writes to the database, while all of them are there.
            let write = "INSERT INTO projects (id, name, path, status, initialized, created_at, updated_at) VALUES ('p', 'p', '.', 'open', 0, 0, 0)";
            let written = pando(sandbox, &["--timeout", "20s", "db", "exec", write]);
            assert_eq!(written.code, Some(0), "{written}");
            assert_eq!(sandbox.count("SELECT count(*) FROM projects"), 1);
            drop(idle);
            let reasons = refusals(sandbox);
            assert!(reasons.as_object().unwrap().keys().all(|reason| reason == "handshake"), "{reasons}");
        },
    );
}

/// Peers that read no answers.
const DEAF: usize = 8;
/// Requests that each of them sends, if the primary takes them: as many replies would then wait for it.
const PENDING: usize = 100_000;
/// Times that they come, call until nobody reads them any more, and die.
const ROUNDS: usize = 20;

#[test]
fn callers_that_read_no_answers_delay_nobody_dead_or_alive() {
    check_attack(ROUNDS, |Victim { sandbox, endpoints, .. }, _| {
        let request = br#"{"jsonrpc":"2.0","id":1,"method":"instance.ping"}"#;
        let thousand = [&[0, u8::try_from(request.len()).unwrap()], request.as_slice()].concat().repeat(1_000);
        let deaf: Vec<_> = (0..DEAF)
            .map(|number| {
                let mut peer = dial(&endpoints.rpc[number % endpoints.rpc.len()]);
                peer.write_all(&prelude(Open, "DEALER")).unwrap();
                // At rest when the primary reads no more and the kernel holds no more.
                peer.set_write_timeout(Duration::from_millis(200));
                peer
            })
            .collect();
        thread::scope(|threads| {
            let deafs = deaf.into_iter().map(|mut peer| {
                let thousand = &thousand;
                threads.spawn(move || {
                    let sent = (0..PENDING / 1_000).take_while(|_| peer.write_all(thousand).is_ok()).count();
                    (peer, sent)
                })
            });
            // All are there until the last of them is at rest; then they die at once.
            let deafs: Vec<_> = deafs.collect::<Vec<_>>().into_iter().map(|deaf| deaf.join().unwrap()).collect();
            assert!(deafs.iter().all(|(_, sent)| *sent > 0), "each was listened to at first");
        });
        let reasons = refusals(sandbox);
        assert!(
            reasons.as_object().unwrap().keys().all(|reason| ["busy", "slow_caller"].contains(&reason.as_str())),
            "{reasons}"
        );
    });
}
