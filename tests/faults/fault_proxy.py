"""A proxy before an S3 store that misbehaves: a share of the requests, drawn with a seed, meets one fault.

unavailable    503 before the store hears of it          reset    the connection is cut before
lost answer    the store did it, the connection is cut   error    the store did it, the answer is 500
cut            half of the answer, then the end          flip     one bit of an object read is another
stall          silence for some seconds, then the end    strip    If-None-Match never reaches the store
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = ("unavailable", "reset", "lost answer", "error", "cut", "stall")
STALL_S = 4.0
_ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>injected</Message></Error>'


class FaultProxy:
    """``with FaultProxy(port_of_the_store) as proxy: proxy.set("reset", 0.1, seed=1)``."""

    def __init__(self, store: int) -> None:
        self.store, self.kind, self.share, self.away = store, "", 0.0, False
        self.denied = ""  # the method of every request that meets 403
        self.injected: Counter[str] = Counter()
        self._chance, self._lock = random.Random(0), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def set(self, kind: str, share: float, seed: int = 0) -> None:
        """From now on this share of the requests meets this fault."""
        self.kind, self.share, self._chance = kind, share, random.Random(seed)
        self.injected.clear()

    def draw(self) -> str:
        """Give the fault of the next request, or nothing."""
        if self.away:
            return "reset"
        with self._lock:
            kind = self.kind if self._chance.random() < self.share else ""
            self.injected[kind] += 1
        return kind

    def place(self, size: int) -> int:
        """Draw a bit of a body."""
        with self._lock:
            return self._chance.randrange(size * 8)


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _cut_off(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _refuse(self, status: int, code: bytes) -> None:
        body = _ERROR % code
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        body, kind = self._body(), self.proxy.draw()
        if self.command == self.proxy.denied:
            self._refuse(403, b"AccessDenied")
            return
        if kind == "unavailable":
            self._refuse(503, b"SlowDown")
            return
        if kind in ("reset", "stall"):
            time.sleep(STALL_S if kind == "stall" else 0)
            self._cut_off()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.store, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() == "transfer-encoding" or (kind == "strip" and name.lower() == "if-none-match"):
                continue
            if name.lower() != "content-length":
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = bytearray(answer.read())
        if kind == "lost answer":
            self._cut_off()
            return
        if kind == "error":
            self._refuse(500, b"InternalError")
            return
        if kind == "flip" and self.command == "GET" and data and "list-type" not in self.path:
            bit = self.proxy.place(len(data))
            data[bit // 8] ^= 1 << bit % 8
        self._answer(answer, bytes(data), half=kind == "cut" and len(data) > 1)

    def _answer(self, answer: http.client.HTTPResponse, data: bytes, half: bool) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self._cut_off()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the names the library calls
