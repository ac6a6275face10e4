"""What every peer here shares: how to find the primary, and how to say what was seen.

The peers are written from docs/wire.md alone, with pyzmq: they stand for other people's programs.
"""

import json
import os
import sys
import time


def say(**facts):
    """Prints one JSON line, at once."""
    print(json.dumps(facts), flush=True)


def check(holds, what):
    """Ends the peer with exit code 1 when a promise of the wire is broken."""
    if not holds:
        print(f"broken promise: {what}", file=sys.stderr, flush=True)
        sys.exit(1)


def lock_path(workdir):
    return os.path.join(workdir, ".pando", "ipc.lock")


def eventually(what, look, within=10.0):
    """Looks until there is something to see, and fails when the time is over: the only place here that sleeps."""
    deadline = time.monotonic() + within
    while (seen := look()) is None:
        check(time.monotonic() < deadline, f"within {within} s: {what}")
        time.sleep(0.01)
    return seen


def find_primary(workdir, within=5.0):
    """Reads the lock file until it is whole: a primary that has just won has not written it yet."""

    def look():
        try:
            with open(lock_path(workdir), encoding="utf-8") as file:
                info = json.load(file)
            return info if info["pub_port"] and info["rpc_port"] else None
        except (OSError, ValueError, KeyError):
            return None

    return eventually(f"{lock_path(workdir)} names a primary", look, within)


def tcp(port):
    return f"tcp://127.0.0.1:{port}"


def timestamp():
    """Returns now as RFC 3339 with `T`, `Z` and nanoseconds without trailing zeros."""
    ns = time.time_ns()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 1_000_000_000))
    fraction = f"{ns % 1_000_000_000:09d}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"
