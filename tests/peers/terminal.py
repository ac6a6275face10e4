"""Runs a command in a terminal, answers its question, and prints what it said and how it ended.

usage: terminal.py WORKDIR ANSWER PROGRAM ARGS..
"""

import json
import os
import pty
import sys

workdir, answer, *command = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    os.chdir(workdir)
    os.execv(command[0], command)
said = b""
asked = False
while True:
    try:
        some = os.read(terminal, 4096)
    except OSError:
        break  # Linux says EIO when the last one has closed the terminal.
    if not some:
        break
    said += some
    if not asked and said.endswith(b"[y/N] "):
        asked = True
        os.write(terminal, answer.encode() + b"\n")
_, status = os.waitpid(child, 0)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said.decode()}), flush=True)
