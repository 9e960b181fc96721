"""A file server on 127.0.0.1 that misbehaves on demand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Answer:
    """How one request is answered; the default is as a good server would."""

    status: int | None = None
    cut: int | None = None  # close the connection after so many bytes of the body
    stall: bool = False  # at the cut, keep the connection open and say nothing
    body: bytes | None = None  # replaces the file first, with a new ETag
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Serves one file at every path, following a script of answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag = b"", '"v1"'
        self.ranges = self.length = self.honours_if_range = True
        self.content_type = "application/octet-stream"
        self.script: list[Answer] = []
        self.seen: list[dict[str, str]] = []
        self.sent = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pt"

    def will(self, *, times: int = 1, **answer: Any) -> None:
        """Add to the script: the next request not yet spoken for is answered so (see `Answer`)."""
        self.script += [Answer(**answer)] * times

    def replace(self, body: bytes) -> None:
        self.body = body
        self.etag = self.etag and f'"v{hashlib.md5(body).hexdigest()}"'

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(dict(self.headers))
        answer = server.script.pop(0) if server.script else Answer()
        if answer.body is not None:
            server.replace(answer.body)
        if answer.status is not None:
            self.send_response(answer.status)
            self._headers(answer.headers | {"Content-Length": "0"})
            return
        start = self._start()
        if start >= len(server.body) > 0:
            self.send_response(416)
            self._headers({"Content-Range": f"bytes */{len(server.body)}", "Content-Length": "0"})
            return
        self._send(server.body[start:], start, answer)

    def _start(self) -> int:
        asked = self.headers.get("Range")
        stale = self.server.honours_if_range and self.headers.get("If-Range") not in (None, self.server.etag)
        if asked is None or stale or not self.server.ranges:
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def _send(self, rest: bytes, start: int, answer: Answer) -> None:
        server = self.server
        headers = {"Content-Type": server.content_type}
        if server.length:
            headers["Content-Length"] = str(len(rest))
        if server.etag:
            headers["ETag"] = server.etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
        self.send_response(206 if start else 200)
        self._headers(headers | answer.headers)
        self.wfile.write(rest[: answer.cut])
        self.wfile.flush()
        server.sent += len(rest[: answer.cut])
        if answer.stall:
            server.closing.wait(10)

    def _headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
