"""A plain ZeroMQ subscriber: sub.py WORKDIR PREFIX COUNT

Subscribes to PREFIX over TCP, proves that the subscription is live, says {"live": true}, then prints each frame as
{"topic", "envelope", "text"} and ends after COUNT of them. Ends with exit code 1 when a message is not one frame, or not of
the documented form.
"""

import json
import re
import sys
import time
import uuid

import zmq

from wire import check, find_primary, say, tcp

DEADLINE = 20.0
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z$")
DOCUMENTED = ["instanceId", "projectId", "sessionId", "topic", "timestamp", "payload"]


def receive(sub, until):
    """Returns the frame of the next message, or None when the time is over."""
    if not sub.poll(max(0, (until - time.monotonic()) * 1000)):
        return None
    frames = sub.recv_multipart()
    check(len(frames) == 1, f"an event is one frame, not {len(frames)}")
    return frames[0]


def prove(sub, dealer, deadline):
    """Publishes probes until one comes back: from then on nothing that matches is missed."""
    topic = f"probe.{uuid.uuid4().hex}"
    sub.setsockopt(zmq.SUBSCRIBE, topic.encode() + b"\0")
    probe = {"jsonrpc": "2.0", "method": "events.publish", "params": {"topic": topic, "durable": False}}
    while True:
        check(time.monotonic() < deadline, "no probe came back: the subscription never became live")
        dealer.send_multipart([b"", json.dumps(probe).encode()])
        again = time.monotonic() + 0.02
        while (frame := receive(sub, again)) is not None:
            if frame.startswith(topic.encode() + b"\0"):
                return topic


def read(frame):
    """Reads a frame and checks its form."""
    topic, nul, text = frame.partition(b"\0")
    check(nul == b"\0", "a NUL stands behind the topic")
    envelope = json.loads(text)
    check(envelope["topic"] == topic.decode(), "the topic of the frame is the topic of the envelope")
    documented = [key for key in DOCUMENTED if key in envelope]
    check(list(envelope)[: len(documented)] == documented, f"keys come in the documented order: {list(envelope)}")
    check(set(DOCUMENTED) - set(documented) <= {"sessionId"}, f"documented keys are there: {list(envelope)}")
    check(TIMESTAMP.match(envelope["timestamp"]), f"{envelope['timestamp']} is RFC 3339 in UTC without trailing zeros")
    return topic.decode(), envelope, text.decode()


def main(workdir, prefix, count):
    deadline = time.monotonic() + DEADLINE
    info = find_primary(workdir)
    context = zmq.Context()
    sub, dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    for socket in (sub, dealer):
        socket.setsockopt(zmq.LINGER, 0)
    sub.setsockopt(zmq.SUBSCRIBE, prefix.encode())
    sub.connect(tcp(info["pub_port"]))
    dealer.connect(tcp(info["rpc_port"]))
    probe = prove(sub, dealer, deadline)
    say(live=True)
    seen = 0
    while seen < int(count):
        frame = receive(sub, deadline)
        check(frame is not None, f"{seen} of {count} frames came within {DEADLINE} s")
        topic, envelope, text = read(frame)
        if topic == probe:
            continue
        check(topic.startswith(prefix), f"{topic} begins with {prefix}")
        say(topic=topic, envelope=envelope, text=text)
        seen += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
