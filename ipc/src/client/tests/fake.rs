//! A primary made of the `zeromq` crate's ROUTER and PUB, which answers as told.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::client::Page;
use crate::envelope::{Envelope, Timestamp};
use crate::fault::Fault;
use crate::hello::{HEAD, HELLO, PING, PROTOCOL, PUBLISH, SINCE};
use crate::lock::{Endpoints, Lease, LockInfo, try_lock};
use crate::rpc::{Incoming, Json, Request, Response, parse_request};
use crate::topic::{HEARTBEAT, Pattern, Topic};
use crate::workdir::Workdir;

/// What outlives a primary.
pub(super) type Journal = Arc<Mutex<Vec<Envelope>>>;

/// How the fake behaves.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) instance_id: &'static str,
    pub(super) epoch: u64,
    pub(super) protocol: u32,
    /// An older server knows neither hello nor any method of events.
    pub(super) is_older: bool,
    pub(super) journal: Option<Journal>,
    /// So many probes come back as another event, on topic "early": the subscription takes its time.
    pub(super) deaf_probes: usize,
    /// It says hello, and then nothing to a ping.
    pub(super) is_deaf_to_pings: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            instance_id: "inst-A",
            epoch: 1,
            protocol: PROTOCOL,
            is_older: false,
            journal: Some(Journal::default()),
            deaf_probes: 0,
            is_deaf_to_pings: false,
        }
    }
}

impl Setup {
    pub(super) fn successor(&self) -> Self {
        Self { instance_id: "inst-B", epoch: self.epoch + 1, ..self.clone() }
    }
}

pub(super) struct Fake {
    pub(super) info: LockInfo,
    setup: Setup,
    lease: Option<Lease>,
    frames: mpsc::UnboundedSender<Bytes>,
    heard: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Returns what a primary with these endpoints writes into the lock file.
pub(super) fn info(setup: &Setup, rpc: Vec<String>, publish: Vec<String>) -> LockInfo {
    LockInfo {
        instance_id: setup.instance_id.into(),
        pid: std::process::id(),
        pub_port: 0,
        rpc_port: 0,
        started_at: Timestamp::now(),
        epoch: (!setup.is_older).then_some(setup.epoch),
        workdir: None,
        protocol: None,
        version: None,
        endpoints: Some(Endpoints { publish, rpc }),
        process: None,
        successor: None,
    }
}

impl Fake {
    /// Binds the sockets in this directory, without a lock.
    pub(super) async fn bind(dir: PathBuf, setup: Setup) -> Self {
        let endpoint = |name: &str| format!("ipc://{}", dir.join(format!("{}.{name}", setup.epoch)).display());
        let (mut router, mut publisher) = (RouterSocket::new(), PubSocket::new());
        router.bind(&endpoint("rpc")).await.unwrap();
        publisher.bind(&endpoint("pub")).await.unwrap();
        let (frames, queue) = mpsc::unbounded_channel();
        let (stop, tasks, heard) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
        let server = Server { setup: setup.clone(), held: vec![], heard: Arc::clone(&heard), frames: frames.clone() };
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.run_until_cancelled(server.serve(router, publisher, queue)).await;
        });
        let info = info(&setup, vec![endpoint("rpc")], vec![endpoint("pub")]);
        Self { info, setup, lease: None, frames, heard, stop, tasks }
    }

    /// Wins the lock, binds, advertises.
    pub(super) async fn start(workdir: &Workdir, setup: Setup) -> Self {
        let lease = try_lock(workdir).unwrap().expect("the lock is free");
        let mut fake = Self::bind(workdir.socket_dir().unwrap(), setup).await;
        lease.advertise(&fake.info).unwrap();
        fake.lease = Some(lease);
        fake
    }

    /// Dies: the sockets close, then the lock is free.
    pub(super) async fn kill(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.lease);
    }

    /// Dies, and a successor takes over.
    pub(super) async fn succeed(self, workdir: &Workdir) -> Self {
        let setup = self.setup.successor();
        self.kill().await;
        Self::start(workdir, setup).await
    }

    /// Returns the methods of the requests that came.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub(super) fn times_heard(&self, method: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|it| *it == method).count()
    }

    /// Publishes whatever this is.
    pub(super) fn publish_frame(&self, frame: impl Into<Bytes>) {
        self.frames.send(frame.into()).unwrap();
    }

    /// Publishes an unnumbered event.
    pub(super) fn publish(&self, topic: &'static str, payload: Value) {
        self.publish_frame(Envelope::new(self.setup.instance_id, Topic::known(topic), payload).to_frame());
    }

    /// Appends an event to the journal and publishes it.
    pub(super) fn commit(&self, topic: &'static str) {
        let event = self.commit_silently(topic);
        self.publish_frame(event.to_frame());
    }

    /// Appends an event to the journal; its frame gets lost.
    pub(super) fn commit_silently(&self, topic: &'static str) -> Envelope {
        let mut journal = self.setup.journal.as_ref().unwrap().lock().unwrap();
        append(&mut journal, topic, self.setup.epoch)
    }

    pub(super) fn heartbeat(&self) {
        let head = self.setup.journal.as_ref().map(|journal| journal.lock().unwrap().len());
        self.publish(HEARTBEAT, json!({"head": head}));
    }
}

pub(super) fn append(journal: &mut Vec<Envelope>, topic: &'static str, epoch: u64) -> Envelope {
    let mut event = Envelope::new("inst-X", Topic::known(topic), Value::Null);
    let prev = journal.iter().rev().find(|before| before.topic == event.topic).and_then(|before| before.seq);
    (event.epoch, event.seq, event.prev) = (Some(epoch), Some(journal.len() as u64 + 1), Some(prev.unwrap_or(0)));
    journal.push(event.clone());
    event
}

pub(super) fn page(journal: &[Envelope], after: u64, patterns: &[Pattern], limit: usize) -> Page {
    let wanted = |event: &&Envelope| {
        event.seq > Some(after) && patterns.iter().any(|pattern| pattern.matches(event.topic.as_str()))
    };
    let events: Vec<_> = journal.iter().filter(wanted).take(limit).cloned().collect();
    let head = journal.len() as u64;
    let last = events.last().and_then(|event| event.seq).unwrap_or(head);
    let upto = if events.len() < limit { head } else { last };
    Page { events, upto, head, database: uuid::Uuid::nil(), resync: None }
}

struct Server {
    setup: Setup,
    /// Requests answered on "release", the last one first.
    held: Vec<(Bytes, Request)>,
    heard: Arc<Mutex<Vec<String>>>,
    frames: mpsc::UnboundedSender<Bytes>,
}

impl Server {
    async fn serve(
        mut self,
        mut router: RouterSocket,
        mut publisher: PubSocket,
        mut queue: mpsc::UnboundedReceiver<Bytes>,
    ) {
        loop {
            let message = tokio::select! {
                message = router.recv() => message.unwrap().into_vec(),
                Some(frame) = queue.recv() => {
                    publisher.send(ZmqMessage::from(frame)).await.unwrap();
                    continue;
                }
            };
            let peer = message[0].clone();
            assert_eq!((message.len(), &message[1][..]), (3, &b""[..]), "documented frames");
            let Ok(Incoming::Single(request)) = parse_request(&message[2]) else { panic!("{message:?}") };
            self.heard.lock().unwrap().push(request.method.clone());
            if request.method == "freeze" {
                return std::future::pending().await;
            }
            for (peer, body) in self.answer(&peer, request) {
                let frames = vec![peer, Bytes::new(), body.into()];
                // A peer that left in the meantime is no business of a ROUTER.
                drop(router.send(ZmqMessage::try_from(frames).unwrap()).await);
            }
        }
    }

    fn answer(&mut self, peer: &Bytes, request: Request) -> Vec<(Bytes, String)> {
        let Some(id) = request.id.clone() else { return vec![] };
        let whole =
            |outcome: Result<Json, Fault>| serde_json::to_string(&Response { id: id.clone(), outcome }).unwrap();
        let one = |outcome: Result<Json, Fault>| vec![(peer.clone(), whole(outcome))];
        match request.method.as_str() {
            PING if self.setup.is_deaf_to_pings => vec![],
            PING => one(Ok(json!({"status": "ok", "instance_id": self.setup.instance_id, "uptime": 1}).into())),
            "echo" => one(Ok(request.params)),
            "refuse" => one(Err(Fault::invalid_params("x", "is missing"))),
            "twice" => [one(Ok(json!("first").into())), one(Ok(json!("second").into()))].concat(),
            "void" => vec![(peer.clone(), format!(r#"{{"jsonrpc":"2.0","id":{}}}"#, id.as_json()))],
            "quoted" => {
                vec![(peer.clone(), format!(r#"{{"jsonrpc":"2.0","id":"{}","result":1}}"#, id.as_json()))]
            }
            "hold" => {
                self.held.push((peer.clone(), request));
                vec![]
            }
            "never" => vec![],
            "release" => {
                let mut answers = one(Ok(Json::null()));
                for (peer, held) in self.held.drain(..).rev() {
                    let answer = Response { id: held.id.unwrap(), outcome: Ok(held.params) };
                    answers.push((peer, serde_json::to_string(&answer).unwrap()));
                }
                answers
            }
            "garble" => vec![
                (peer.clone(), "no json".into()),
                (peer.clone(), r#"{"jsonrpc":"2.0","id":"","error":{"code":-32700,"message":"x"}}"#.into()),
                (peer.clone(), whole(Ok(json!("after all").into()))),
            ],
            method if self.setup.is_older => one(Err(Fault::method_not_found(method))),
            HELLO => one(Ok(json!({
                "instance_id": self.setup.instance_id,
                "epoch": self.setup.epoch,
                "protocol": self.setup.protocol,
                "version": "9.9.9",
            })
            .into())),
            PUBLISH => {
                let mut topic: Topic = request.params.raw().member("topic").unwrap().read().unwrap();
                if self.setup.deaf_probes > 0 {
                    self.setup.deaf_probes -= 1;
                    topic = Topic::known("early");
                }
                self.frames.send(Envelope::new("inst-X", topic, Value::Null).to_frame()).unwrap();
                one(Ok(json!({}).into()))
            }
            HEAD | SINCE => match &self.setup.journal {
                None => one(Err(Fault::method_not_found(&request.method))),
                Some(journal) => one(Ok(self.read(&journal.lock().unwrap(), &request))),
            },
            method => one(Err(Fault::method_not_found(method))),
        }
    }

    fn read(&self, journal: &[Envelope], request: &Request) -> Json {
        #[derive(serde::Deserialize)]
        struct Since {
            topics: Vec<Pattern>,
            limit: usize,
            after: u64,
        }
        if request.method == HEAD {
            return json!({"seq": journal.len(), "epoch": self.setup.epoch}).into();
        }
        let Since { topics, limit, after } = request.params.read().unwrap();
        // Fewer than asked for: a server may have a limit of its own.
        Json::of(&page(journal, after, &topics, limit.min(3)))
    }
}
