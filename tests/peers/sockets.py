"""Every ZeroMQ socket that may connect, at every door: sockets.py WORKDIR

Reads the doors from the lock file. At each of them REQ, DEALER and ROUTER call, SUB and XSUB follow, with heartbeats on (libzmq
speaks ZMTP 3.1 and sends PING), and a peer of bare bytes speaks ZMTP 3.0. Says {"door", "done"} for each, and ends with exit
code 1 when a promise is broken.
"""

import json
import os
import socket
import sys
import time
import uuid

import zmq

from wire import check, eventually, find_primary, say

DEADLINE = 20.0
HEARTBEAT_MS = 50


def body(number, method="instance.ping", **params):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def connect(context, kind, endpoint, **options):
    peer = context.socket(kind)
    peer.setsockopt(zmq.LINGER, 0)
    peer.setsockopt(zmq.RCVTIMEO, int(DEADLINE * 1000))
    peer.setsockopt(zmq.SNDTIMEO, int(DEADLINE * 1000))
    peer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    peer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10 * HEARTBEAT_MS)
    # A connection that is lost stays lost, so that nobody takes a reconnect for an answer to a PING.
    peer.setsockopt(zmq.RECONNECT_IVL, -1)
    for option, value in options.items():
        peer.setsockopt(getattr(zmq, option), value)
    peer.connect(endpoint)
    return peer


def stay_idle(context, rpc, count):
    """Waits until so many connections of this process have had three PINGs answered while they did nothing else."""
    watcher = connect(context, zmq.DEALER, rpc, IDENTITY=b"watcher")
    first = {}

    def answered():
        watcher.send_multipart([b"", body(1, "instance.doors")])
        peers = json.loads(watcher.recv_multipart()[-1])["result"]["peers"]
        own = [peer for peer in peers if peer["pid"] == os.getpid() and peer["identity"] != "watcher"]
        grown = [peer["bytes_out"] - first.setdefault(peer["peer"], peer["bytes_out"]) for peer in own]
        return sum(more >= 3 * len(b"\x04\x05\x04PONG") for more in grown) >= count or None

    eventually(f"PINGs of {count} connections are answered", answered, DEADLINE)
    watcher.close()


def check_answer(text, number):
    answer = json.loads(text)
    check(answer["id"] == number and answer["result"]["status"] == "ok", f"a call is answered: {text}")


def req(context, endpoint):
    """REQ: one call at a time, the delimiter is the socket's own."""
    peer = connect(context, zmq.REQ, endpoint)
    for number in range(10):
        peer.send(body(number))
        check_answer(peer.recv(), number)
        if number == 0:
            stay_idle(context, endpoint, 1)
    peer.close()


def dealer(context, endpoint):
    """DEALER: many calls at once; two with the same identity each get their own answers."""
    peers = [connect(context, zmq.DEALER, endpoint, IDENTITY=b"twin") for _ in range(2)]
    stay_idle(context, endpoint, 2)
    for turn, peer in enumerate(peers):
        for number in range(100):
            peer.send_multipart([b"", body(1000 * turn + number)])
    for turn, peer in enumerate(peers):
        numbers = set()
        for _ in range(100):
            delimiter, text = peer.recv_multipart()
            check(delimiter == b"", "an answer has its delimiter")
            numbers.add(json.loads(text)["id"])
        check(numbers == {1000 * turn + number for number in range(100)}, f"each gets its own answers: {numbers}")
        peer.close()


def router(context, endpoint):
    """ROUTER: it names us itself, as we have no identity of our own."""
    peer = connect(context, zmq.ROUTER, endpoint, CONNECT_ROUTING_ID=b"primary", ROUTER_MANDATORY=1)

    def ask():
        try:
            peer.send_multipart([b"primary", b"", body(1)])
            return True
        except zmq.ZMQError as error:
            check(error.errno == zmq.EHOSTUNREACH, f"a ROUTER connects: {error}")
            return None

    eventually("a ROUTER connects", ask, DEADLINE)
    name, delimiter, text = peer.recv_multipart()
    check((name, delimiter) == (b"primary", b""), "the answer comes from whom was asked")
    check_answer(text, 1)
    peer.close()


def follow(context, publish, rpc, kind):
    """SUB and XSUB: what was subscribed to arrives, what was cancelled does not, and a PING is answered."""
    peer = connect(context, kind, publish)
    caller = connect(context, zmq.DEALER, rpc)
    topic, other = f"probe.{uuid.uuid4().hex}", f"probe.{uuid.uuid4().hex}"

    def ask(how, prefix):
        if kind == zmq.SUB:
            peer.setsockopt(zmq.SUBSCRIBE if how else zmq.UNSUBSCRIBE, prefix)
        else:
            peer.send((b"\x01" if how else b"\x00") + prefix)

    def tell(name):
        caller.send_multipart([b"", body(7, "events.publish", topic=name, durable=False)])
        check(json.loads(caller.recv_multipart()[-1])["result"] == {}, "a probe is published")

    def until(name, wanted):
        deadline = time.monotonic() + DEADLINE
        while True:
            check(time.monotonic() < deadline, f"{name} arrives")
            tell(name)
            if peer.poll(20):
                frame = peer.recv()
                check(wanted(frame), f"only what was subscribed to arrives: {frame}")
                if frame.startswith(name.encode() + b"\0"):
                    return

    ask(True, topic.encode())
    until(topic, lambda frame: frame.startswith(topic.encode()))
    stay_idle(context, rpc, 2)
    ask(True, other.encode())
    ask(False, topic.encode())
    until(other, lambda frame: frame.startswith((topic.encode(), other.encode())))
    tell(topic)
    tell(other)
    frames = [peer.recv()]
    while not frames[-1].startswith(other.encode()):
        frames.append(peer.recv())
    late = [frame for frame in frames if frame.startswith(topic.encode())]
    check(not late, f"what was cancelled does not arrive: {late}")
    peer.close()
    caller.close()


class Bare:
    """A peer of ZMTP 3.0 made of bytes: subscriptions are messages, and there is no PING."""

    def __init__(self, endpoint, kind):
        if endpoint.startswith("ipc://"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(endpoint[6:])
        else:
            host, _, port = endpoint[6:].rpartition(":")
            self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(DEADLINE)
        self.socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        self.socket.sendall(b"\x04" + bytes([len(ready)]) + ready)
        check(self.read(64)[:10] == b"\xff" + bytes(8) + b"\x7f", "a greeting comes")
        flags, ready = self.frame()
        check(flags == 4 and ready.startswith(b"\x05READY"), "READY comes")

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            check(more, "the connection stays open")
            data += more
        return data

    def frame(self):
        flags = self.read(1)[0]
        length = int.from_bytes(self.read(8 if flags & 2 else 1), "big")
        return flags, self.read(length)

    def send(self, data):
        self.socket.sendall(b"\x00" + bytes([len(data)]) + data)


def bare(context, publish, rpc):
    """ZMTP 3.0: no command comes unasked, for as long as others exchange PINGs."""
    caller, follower = Bare(rpc, b"DEALER"), Bare(publish, b"SUB")
    topic = f"probe.{uuid.uuid4().hex}".encode()
    follower.send(b"\x01" + topic)
    other = connect(context, zmq.DEALER, rpc)
    stay_idle(context, rpc, 1)
    other.close()
    deadline = time.monotonic() + DEADLINE
    follower.socket.settimeout(0.02)
    while True:
        check(time.monotonic() < deadline, "the probe arrives")
        caller.send(body(1, "events.publish", topic=topic.decode(), durable=False))
        check(caller.frame() == (1, b""), "the delimiter comes first")
        flags, text = caller.frame()
        check(flags & ~2 == 0 and json.loads(text)["result"] == {}, f"the answer follows: {text}")
        try:
            flags, frame = follower.frame()
        except TimeoutError:
            continue
        check(flags & ~2 == 0 and frame.startswith(topic + b"\0"), f"no command comes unasked: {flags} {frame}")
        return


def main(workdir):
    endpoints = find_primary(workdir)["endpoints"]
    context = zmq.Context()
    for publish, rpc in zip(endpoints["pub"], endpoints["rpc"]):
        done = []
        for name, run in [
            ("REQ", lambda: req(context, rpc)),
            ("DEALER", lambda: dealer(context, rpc)),
            ("ROUTER", lambda: router(context, rpc)),
            ("SUB", lambda: follow(context, publish, rpc, zmq.SUB)),
            ("XSUB", lambda: follow(context, publish, rpc, zmq.XSUB)),
            ("ZMTP 3.0", lambda: bare(context, publish, rpc)),
        ]:
            run()
            done.append(name)
        say(door=rpc.partition(":")[0], done=done)


if __name__ == "__main__":
    main(*sys.argv[1:])
