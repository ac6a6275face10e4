//! The bus against the `zeromq` crate's sockets and against raw bytes, over both doors.

mod crowd;
mod doors;
mod hostile;
mod publish;
mod router;
mod stopped;

use std::pin::pin;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use super::doors::Role;
use super::*;
use crate::access::Capability::{Read, Write};
use crate::hello::{HELLO, Hello};
use crate::workdir::Workdir;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn crash() -> impl Future<Output = Result<Value, Fault>> {
    std::future::poll_fn(|_| panic!("on purpose"))
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it took too long")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A bus in a directory of its own, with methods that the tests call.
struct Fixture {
    bus: Bus,
    workdir: Workdir,
    /// Each permit lets one call of `wait` or `hold_now` answer.
    gate: Arc<Semaphore>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(dir.path()).unwrap();
        workdir.prepare().unwrap();
        let (methods, gate) = (Methods::new(), Arc::new(Semaphore::new(0)));
        methods.register_inline(HELLO, Read, |call| {
            let hello: Hello = call.params.read().map_err(Fault::internal)?;
            Ok(json!(call.caller.introduce(hello)))
        });
        methods.register_inline("write_now", Write, |_| Ok(json!("written")));
        methods.register("write_later", Write, |_| async { Ok(json!("written")) });
        methods.register_inline("now", Read, |call| Ok(call.params));
        methods.register("later", Read, |call: Call| async move { Ok(call.params) });
        methods.register_inline("crash_now", Read, |_| -> Result<Value, Fault> { panic!("on purpose") });
        methods.register("crash_later", Read, |_| crash());
        methods.register("who", Read, |call: Call| async move {
            Ok(json!({"door": call.caller.door, "pid": call.caller.pid, "uid": call.caller.uid, "peer": call.caller.peer}))
        });
        let waiting = Arc::clone(&gate);
        methods.register("wait", Read, move |call: Call| {
            let gate = Arc::clone(&waiting);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(call.params)
            }
        });
        let held = Arc::clone(&gate);
        methods.register_inline("hold_now", Read, move |call| {
            let deadline = Instant::now() + PATIENCE;
            while held.try_acquire().map(SemaphorePermit::forget).is_err() {
                assert!(Instant::now() < deadline, "nobody let it go");
                std::hint::spin_loop();
            }
            Ok(call.params)
        });
        methods.register_inline("spin_now", Read, |call| {
            let until = Instant::now() + Duration::from_micros(call.params.read::<[u64; 1]>().unwrap()[0]);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(call.params)
        });
        methods.register_inline("large_now", Read, |call| {
            Ok(json!("x".repeat(call.params.read::<[usize; 1]>().unwrap()[0])))
        });
        methods.register("large", Read, |call: Call| async move {
            Ok(json!("x".repeat(call.params.read::<[usize; 1]>().unwrap()[0])))
        });
        let options = BusOptions { workdir: workdir.clone(), epoch: 7, tcp: TcpDoor::OwnUser, limits };
        let bus = Bus::start(options, methods).await.unwrap();
        Self { bus, workdir, gate, _dir: dir }
    }

    fn rpc(&self) -> Vec<String> {
        self.bus.endpoints().rpc
    }

    fn refusals(&self, name: &str) -> u64 {
        self.bus.stats().refusals.get(name).copied().unwrap_or(0)
    }

    async fn tcp(&self, role: Role) -> TcpStream {
        let ports = self.bus.ports().unwrap();
        let port = if role == Role::Pub { ports.publish } else { ports.rpc };
        TcpStream::connect(("127.0.0.1", port)).await.unwrap()
    }

    async fn unix(&self, role: Role) -> UnixStream {
        let endpoints = self.bus.endpoints();
        let endpoint = if role == Role::Pub { &endpoints.publish[0] } else { &endpoints.rpc[0] };
        UnixStream::connect(endpoint.strip_prefix("ipc://").unwrap()).await.unwrap()
    }

    async fn subscriber(&self, door: usize, prefix: &str) -> SubSocket {
        let before = self.bus.inner.shared.audience(prefix.as_bytes());
        let mut sub = SubSocket::new();
        within(sub.connect(&self.bus.endpoints().publish[door])).await.unwrap();
        sub.subscribe(prefix).await.unwrap();
        eventually("subscribed", || self.bus.inner.shared.audience(prefix.as_bytes()) > before).await;
        sub
    }

    /// Shows that the bus still answers everybody.
    async fn check_alive(&self) {
        for endpoint in self.rpc() {
            let mut peer = Dealer::connect(&endpoint).await;
            assert_eq!(peer.call("later", json!(["alive"])).await["result"], json!(["alive"]));
        }
    }
}

/// A DEALER of the `zeromq` crate.
struct Dealer(DealerSocket);

impl Dealer {
    async fn connect(endpoint: &str) -> Self {
        let mut socket = DealerSocket::new();
        within(socket.connect(endpoint)).await.unwrap();
        Self(socket)
    }

    async fn send(&mut self, frames: &[&str]) {
        let mut message = ZmqMessage::from(frames[0].to_owned());
        for frame in &frames[1..] {
            message.push_back(frame.as_bytes().to_vec().into());
        }
        within(self.0.send(message)).await.unwrap();
    }

    /// Receives `["", body]` and returns the body.
    async fn recv(&mut self) -> String {
        let frames = within(self.0.recv()).await.unwrap().into_vec();
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert!(frames[0].is_empty());
        String::from_utf8(frames[1].to_vec()).unwrap()
    }

    async fn ask(&mut self, body: &str) -> Value {
        self.send(&["", body]).await;
        serde_json::from_str(&self.recv().await).unwrap()
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.ask(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()).await
    }
}

/// A peer that writes its own bytes.
struct Raw<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    async fn greet(stream: S, minor: u8, socket_type: &str) -> Self {
        let length = u32::try_from(socket_type.len()).unwrap().to_be_bytes();
        let ready = [b"\x05READY\x0bSocket-Type".as_slice(), &length, socket_type.as_bytes()].concat();
        Self::greet_with(stream, minor, &ready).await
    }

    async fn greet_with(stream: S, minor: u8, ready: &[u8]) -> Self {
        let mut peer = Self(stream);
        let mut greeting = [0; 64];
        (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, minor);
        greeting[12..16].copy_from_slice(b"NULL");
        peer.write(&greeting).await;
        peer.frame(4, ready).await;
        within(peer.0.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(greeting[..16], *b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL");
        let (flags, ready) = peer.read_frame().await;
        assert_eq!((flags, &ready[..6]), (4, b"\x05READY".as_slice()));
        peer
    }

    async fn write(&mut self, bytes: &[u8]) {
        within(self.0.write_all(bytes)).await.unwrap();
    }

    async fn frame(&mut self, flags: u8, body: &[u8]) {
        let length = u8::try_from(body.len()).unwrap();
        self.write(&[&[flags, length], body].concat()).await;
    }

    async fn read_frame(&mut self) -> (u8, Vec<u8>) {
        let flags = within(self.0.read_u8()).await.unwrap();
        let length = if flags & 2 == 0 {
            u64::from(within(self.0.read_u8()).await.unwrap())
        } else {
            within(self.0.read_u64()).await.unwrap()
        };
        let mut body = vec![0; usize::try_from(length).unwrap()];
        within(self.0.read_exact(&mut body)).await.unwrap();
        (flags, body)
    }

    /// Waits until the bus has closed the connection; a reset counts.
    async fn closed(mut self) {
        let mut rest = Vec::new();
        let mut reading = pin!(self.0.read_to_end(&mut rest));
        match within(reading.as_mut()).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}
