"""A primary of the documented formats: primary.py WORKDIR [--hello]

Holds the lock, writes the five documented keys of the lock file, binds PUB and ROUTER on free ports, answers `instance.ping`,
`echo` and `void`, publishes a heartbeat every 100 ms and an event `greeting.echo` for each echo. With --hello it answers
`instance.hello` too; without, it knows no such method, as older servers. Void successes carry no result, and a parse error has
id "", as older servers have them. Says {"ready": true, ..} and ends when its stdin ends.
"""

import fcntl
import json
import os
import sys
import time

import zmq

from wire import lock_path, say, timestamp

INSTANCE = "inst-python"
EPOCH = 3
BEAT = 0.1


def lock(workdir):
    """Races for the lock; the file is never unlinked."""
    os.makedirs(os.path.join(workdir, ".pando"), mode=0o700, exist_ok=True)
    file = os.open(lock_path(workdir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def advertise(file, pub_port, rpc_port):
    info = {
        "instance_id": INSTANCE,
        "pid": os.getpid(),
        "pub_port": pub_port,
        "rpc_port": rpc_port,
        "started_at": timestamp(),
    }
    text = (json.dumps(info, indent=2) + "\n").encode()
    os.pwrite(file, text, 0)
    os.truncate(file, len(text))


def publish(pub, topic, payload):
    envelope = {
        "instanceId": INSTANCE,
        "projectId": "",
        "topic": topic,
        "timestamp": timestamp(),
        "payload": payload,
    }
    pub.send(topic.encode() + b"\0" + json.dumps(envelope).encode())


def dispatch(method, params, workdir, knows_hello, pub):
    """Returns the members of the answer besides `jsonrpc` and `id`."""
    if method == "instance.ping":
        return {"result": {"status": "ok", "instance_id": INSTANCE, "uptime": 1}}
    if method == "instance.hello" and knows_hello:
        return {
            "result": {
                "instance_id": INSTANCE,
                "epoch": EPOCH,
                "version": "9.9.9-python",
                "protocol": 1,
                "workdir": os.path.realpath(workdir),
                "database": "00000000-0000-0000-0000-000000000000",
            }
        }
    if method == "echo":
        publish(pub, "greeting.echo", params)
        return {"result": params}
    if method == "void":
        return {}
    return {"error": {"code": -32601, "message": "ipc: method not found", "data": {"method": method}}}


def answer(body, workdir, knows_hello, pub):
    try:
        request = json.loads(body)
    except ValueError as error:
        return {"jsonrpc": "2.0", "id": "", "error": {"code": -32700, "message": f"ipc: parse error: {error}"}}
    outcome = dispatch(request["method"], request.get("params"), workdir, knows_hello, pub)
    if "id" not in request:
        return None
    return {"jsonrpc": "2.0", "id": request["id"], **outcome}


def main(workdir, *flags):
    file = lock(workdir)
    context = zmq.Context()
    pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    for socket in (pub, router):
        socket.setsockopt(zmq.LINGER, 0)
    pub_port = pub.bind_to_random_port("tcp://127.0.0.1")
    rpc_port = router.bind_to_random_port("tcp://127.0.0.1")
    advertise(file, pub_port, rpc_port)
    say(ready=True, pid=os.getpid(), pub_port=pub_port, rpc_port=rpc_port)

    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    next_beat = time.monotonic()
    while True:
        ready = dict(poller.poll(max(0, (next_beat - time.monotonic()) * 1000)))
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return
        if router in ready:
            identity, *_, body = router.recv_multipart()
            reply = answer(body, workdir, "--hello" in flags, pub)
            if reply is not None:
                router.send_multipart([identity, b"", json.dumps(reply).encode()])
        if time.monotonic() >= next_beat:
            publish(pub, "instance.heartbeat", {"instance_id": INSTANCE, "role": "primary"})
            next_beat = time.monotonic() + BEAT


if __name__ == "__main__":
    main(*sys.argv[1:])
