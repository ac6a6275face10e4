use std::io::{BufReader, Read, Write as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::crowd::{PART, resident_kib};
use super::*;
use crate::bus::limits::EVENT_RING_BYTES;

/// Events in a second, for how many seconds, and the bytes of one.
const RATE: u32 = 20_000;
const SECONDS: u32 = 30;
const EVENT_BYTES: usize = 300;
/// Events between two looks at the memory.
const BETWEEN_LOOKS: u32 = RATE / 10;
/// What the subscriber that reads may be behind.
const BEHIND_BYTES: usize = 1 << 20;
/// What the process may grow by beside the ring of the stopped subscriber: what the other one is behind, and the allocator's.
const SLACK_KIB: u64 = 3 * 1024;
/// Names the socket to a subscriber in a process of its own.
const ENDPOINT: &str = "PANDO_TEST_ENDPOINT";

/// Subscribes to everything in a process of its own, and has had all events when the one comes that is called the end.
#[test]
fn subscribes() {
    let Ok(path) = std::env::var(ENDPOINT) else { return };
    let mut stream = StdUnixStream::connect(path).unwrap();
    let mut hello = vec![0; 64];
    (hello[0], hello[9], hello[10]) = (0xff, 0x7f, 3);
    hello[12..16].copy_from_slice(b"NULL");
    hello.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB\0\x01\x01");
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 64]).unwrap();
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut came = 0;
    loop {
        let mut header = [0; 2];
        reader.read_exact(&mut header).unwrap();
        let length = if header[0] & 2 == 0 {
            usize::from(header[1])
        } else {
            let mut rest = [0; 8];
            rest[0] = header[1];
            reader.read_exact(&mut rest[1..]).unwrap();
            usize::try_from(u64::from_be_bytes(rest)).unwrap()
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        if header[0] & 4 == 0 {
            if body.starts_with(b"end\0") {
                break;
            }
            came += 1;
        }
    }
    assert_eq!(came, RATE * SECONDS);
}

/// A subscriber in a process of its own, which ends with its owner.
struct Subscriber(Child);

impl Subscriber {
    async fn start(fixture: &Fixture) -> Self {
        let before = fixture.bus.inner.shared.audience(b"e");
        let path = fixture.bus.endpoints().publish[0].strip_prefix("ipc://").unwrap().to_owned();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "bus::tests::stopped::subscribes", "--nocapture"]).env(ENDPOINT, path);
        let child = Self(command.stdout(Stdio::null()).spawn().unwrap());
        eventually("subscribed", || fixture.bus.inner.shared.audience(b"e") > before).await;
        child
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs in a process of its own, so that its memory is that of the bus alone.
#[tokio::test(flavor = "multi_thread")]
async fn publishes_to_one_that_is_stopped() {
    if std::env::var_os(PART).is_none() {
        return;
    }
    let fixture = Fixture::start().await;
    let mut reading = Subscriber::start(&fixture).await;
    let stopped = Subscriber::start(&fixture).await;
    stopped.signal(Signal::STOP);
    let event = [b"e\0".as_slice(), &[b'x'; EVENT_BYTES - 2]].concat();
    let mut pace = tokio::time::interval(Duration::from_secs(1) * BETWEEN_LOOKS / RATE);
    let resident = resident_kib();
    let mut most = resident;
    for number in 0..RATE * SECONDS {
        if number % BETWEEN_LOOKS == 0 {
            most = most.max(resident_kib());
            pace.tick().await;
            // The other one is never far behind, so that only the stopped one can overflow.
            eventually("the other one follows", || {
                let stats = fixture.bus.stats();
                stats.queued_bytes < BEHIND_BYTES + (stats.subscribers - 1) * EVENT_RING_BYTES
            })
            .await;
        }
        fixture.bus.publish_frame(&event);
    }
    fixture.bus.publish_frame(b"end\0");
    let grown_kib = most - resident;
    let ring_kib = EVENT_RING_BYTES as u64 / 1024;
    assert_eq!(fixture.refusals("slow_subscriber"), 1, "the stopped one is cut off, the other one is not");
    let ended = tokio::task::spawn_blocking(move || reading.0.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "the other one has had everything");
    assert!(
        grown_kib < ring_kib + SLACK_KIB,
        "a stopped subscriber costs {grown_kib} KiB, and its ring has {ring_kib}"
    );
}

#[test]
fn a_stopped_process_costs_no_more_than_its_ring_at_twenty_thousand_events_a_second() {
    crowd::run_part("stopped::publishes_to_one_that_is_stopped");
}
