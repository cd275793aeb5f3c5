"""A small HTTP server on a Unix socket or a port, which fails in the ways in which servers do.

Usage: model_server.py (--socket PATH | --port N) [BEHAVIOUR...]
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

where, address, *behaviours = sys.argv[1:]
hanging = threading.Event()


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        what, _, value = unquote(self.path[1:]).partition("/")
        if hanging.is_set() or what == "hang":
            hanging.set()
            time.sleep(1e6)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "flood":
            print("noise " * int(value), flush=True)
        if what == "health" and "file" in behaviours and not Path(behaviours[-1]).exists():
            self.answer(503, "loading")
        elif what == "health" and os.environ.get("TOKEN"):
            right = self.headers["Authorization"] == f"Bearer {os.environ['TOKEN']}"
            self.answer(200 if right else 401, "")
        elif what == "sick":
            behaviours[:] = ["file", "/nowhere"]
            self.answer(200, "")
        elif what == "environment":
            self.answer(200, dict(os.environ))
        elif what == "echo":
            self.answer(200, value)
        elif what == "cpus":
            self.answer(200, sorted(os.sched_getaffinity(0)))
        else:
            self.answer(200, os.getpid())

    def answer(self, status: int, reply: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def address_string(self) -> str:
        return "somebody"

    def log_request(self, *args: object) -> None:
        pass


if "stubborn" in behaviours:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if "child" in behaviours:  # in a session of its own
    subprocess.Popen(["sleep", "1000000"], start_new_session=True)
if "noisy" in behaviours:
    print("noise\n" * 10**6, flush=True)
if "mute" in behaviours:  # it runs, and listens nowhere
    print("loading for ever", flush=True)
    time.sleep(1e6)

server: socketserver.BaseServer
if where == "--socket":
    server = UnixServer(address, Handler)
else:
    server = ThreadingHTTPServer(("127.0.0.1", int(address)), Handler)
print("listening", flush=True)
server.serve_forever()
