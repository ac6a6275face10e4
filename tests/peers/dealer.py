"""A plain ZeroMQ caller: dealer.py WORKDIR [CHECK..]

Sends pipelined calls with every kind of id, a batch, notifications, broken JSON and unknown methods over one DEALER socket,
matches the answers by id and checks them. Says {"checks": [..]} and ends with exit code 0, or names the broken promise and ends
with 1. It asks for `instance.ping` only, so any primary of the documented wire will do.
"""

import json
import sys
import time

import zmq

from wire import check, find_primary, say, tcp

DEADLINE = 20.0


class Caller:
    def __init__(self, port):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(tcp(port))
        self.deadline = time.monotonic() + DEADLINE

    def send(self, body):
        self.send_frames(b"", body if isinstance(body, bytes) else json.dumps(body).encode())

    def send_frames(self, *frames):
        self.socket.send_multipart(list(frames))

    def answer(self):
        """Returns the next answer, as text and read."""
        left = max(0, (self.deadline - time.monotonic()) * 1000)
        check(self.socket.poll(left), "an answer comes in time")
        frames = self.socket.recv_multipart()
        check(len(frames) == 2 and frames[0] == b"", f"an answer is a delimiter and a body: {frames}")
        return frames[1].decode(), json.loads(frames[1])


def request(**members):
    return {"jsonrpc": "2.0", **members}


def is_pong(answer):
    return answer["jsonrpc"] == "2.0" and answer["result"]["status"] == "ok" and answer["result"]["instance_id"]


def pipelined(caller):
    """Ids of every kind come back unchanged, in whatever order."""
    ids = ["req-1", "", "é \" \\", 0, 7, -3, 2**53, 1.5, None]
    for number in ids:
        caller.send(request(id=number, method="instance.ping", params={}))
    answers = [caller.answer()[1] for _ in ids]
    check(all(is_pong(answer) for answer in answers), f"all calls succeed: {answers}")
    came = [answer["id"] for answer in answers]
    for number in ids:
        same = [other for other in came if other == number and type(other) is type(number)]
        check(len(same) == 1, f"id {number!r} comes back once and unchanged: {came}")


def literal_ids(caller):
    """An id is echoed byte for byte, however it is written."""
    for literal in ["1.0", "-0", "1e2", "18446744073709551616", '"\\u00e9"']:
        caller.send(b'{"jsonrpc":"2.0","id":%s,"method":"instance.ping"}' % literal.encode())
        text, _ = caller.answer()
        check(f'"id":{literal},' in text, f"id {literal} is echoed as it was written: {text}")


def absent_params(caller):
    """`params` may be null or left out."""
    caller.send(request(id="null", method="instance.ping", params=None))
    caller.send(request(id="out", method="instance.ping"))
    check(all(is_pong(caller.answer()[1]) for _ in range(2)), "a call without params is a call")


def notification(caller):
    """No id, no answer, not even an error; the answer of a later call is the next thing that comes."""
    caller.send(request(method="instance.ping", params={}))
    caller.send(request(method="no.such.method", params={}))
    caller.send(request(id="marker", method="instance.ping", params={}))
    _, answer = caller.answer()
    check(answer["id"] == "marker", f"a notification has no answer: {answer}")


def batch(caller):
    """A batch has one answer: an array without the notifications."""
    caller.send(
        [
            request(id="b-1", method="instance.ping"),
            request(method="instance.ping"),
            request(id=2, method="no.such.method"),
            5,
            request(id=None, method="instance.ping"),
        ]
    )
    _, answers = caller.answer()
    check(isinstance(answers, list) and len(answers) == 4, f"a batch is answered by one array: {answers}")
    check(any(answer["id"] == "b-1" and is_pong(answer) for answer in answers), "its calls are answered")
    codes = sorted(answer["error"]["code"] for answer in answers if "error" in answer)
    check(codes == [-32601, -32600], f"its errors stand in their places: {codes}")
    caller.send([request(method="instance.ping")])
    caller.send(request(id="marker", method="instance.ping"))
    check(caller.answer()[1]["id"] == "marker", "a batch of notifications has no answer")
    caller.send([])
    _, answer = caller.answer()
    check(answer["error"]["code"] == -32600 and answer["id"] is None, f"an empty batch is no request: {answer}")


def broken(caller):
    """What is no request is refused with the standard code, and the connection lives on."""
    for body, code, number in [
        (b"{", -32700, None),
        (b"", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"instance.ping"', -32700, None),
        (b'{"id":1,"method":"instance.ping"}', -32600, 1),
        (b'{"jsonrpc":"2.0","id":"a"}', -32600, "a"),
        (b'{"jsonrpc":"2.0","id":{},"method":"instance.ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":4,"method":"instance.ping","params":5}', -32600, 4),
    ]:
        caller.send(body)
        text, answer = caller.answer()
        check("result" not in answer and answer["error"]["code"] == code, f"{body} is refused with {code}: {text}")
        check(answer["id"] == number, f"{body} is answered with id {number!r}: {text}")
        check(isinstance(answer["error"]["message"], str), f"a refusal says why: {text}")


def unknown_method(caller):
    """Older clients look for the text of the message."""
    caller.send(request(id="u", method="no.such.method", params={}))
    text, answer = caller.answer()
    check(answer["error"]["code"] == -32601 and answer["id"] == "u", f"an unknown method is -32601: {text}")
    check("ipc: method not found" in answer["error"]["message"], f"the message is the documented one: {text}")


def framing(caller):
    """The delimiter may be missing, and frames may stand before the body: the last one is the body."""
    ping = json.dumps(request(id="f", method="instance.ping")).encode()
    for frames in [(ping,), (b"", ping), (b"trace-7", b"", ping)]:
        caller.send_frames(*frames)
        check(is_pong(caller.answer()[1]), f"{len(frames)} frames are a request")


CHECKS = [pipelined, literal_ids, absent_params, notification, batch, broken, unknown_method, framing]


def main(workdir, *names):
    caller = Caller(find_primary(workdir)["rpc_port"])
    wanted = [run for run in CHECKS if not names or run.__name__ in names]
    for run in wanted:
        run(caller)
    say(checks=[run.__name__ for run in wanted])


if __name__ == "__main__":
    main(*sys.argv[1:])
