"""A web server that serves a folder by ranges and misbehaves as told.

Faults are set by file name; each is told of every GET of the file and says how to answer it. What
it did is counted, so that a test can prove that its fault happened.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """A GET of a part of a file."""

    name: str
    first: int
    size: int
    number: int  # of the GETs of this file, from 1 on


class Fault(Protocol):
    """What is done to an answer; False leaves it alone."""

    def __call__(self, answer: Answer, get: Get) -> bool:
        """Answer `get` in its own way, or return False."""


class SourceServer:
    """Serves `folder` at `url`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, Fault] = {}
        self.happened: Counter[str] = Counter()
        self.gets: list[Get] = []
        self.headers: list[dict[str, str]] = []
        self.etags: dict[str, str] = {}  # instead of that of the content
        self.denies = False  # everything, as S3 does
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        """Return its port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Return the folder's URL."""
        return f"http://127.0.0.1:{self.port}/models/tiny"

    @contextmanager
    def running(self) -> Iterator[SourceServer]:
        """Serve for the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def note(self, name: str, first: int, size: int, headers: dict[str, str]) -> Get:
        """Count a GET."""
        with self._lock:
            number = 1 + sum(get.name == name for get in self.gets)
            get = Get(name=name, first=first, size=size, number=number)
            self.gets.append(get)
            self.headers.append(headers)
        return get

    def did(self, what: str) -> None:
        """Count a fault."""
        with self._lock:
            self.happened[what] += 1

    def bytes_sent(self, name: str) -> int:
        """Return how many bytes of a file were asked for."""
        return sum(get.size for get in self.gets if get.name == name)

    def etag(self, name: str) -> str:
        """Return what tells the version of a file."""
        status = (self.folder / name).stat()
        return self.etags.get(name) or f'"{status.st_size:x}-{status.st_mtime_ns:x}"'


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer to a GET, as it would be without a fault."""

    handler: BaseHTTPRequestHandler
    server: SourceServer
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, *, upto: int | None = None) -> None:
        """Send it; of the body `upto` bytes."""
        handler = self.handler
        handler.send_response(self.status)
        for name, value in ({"Content-Length": str(len(self.body))} | self.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body[:upto])
        handler.wfile.flush()

    def reset(self) -> None:
        """Break the connection the hard way."""
        linger = struct.pack("ii", 1, 0)
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.handler.close_connection = True
        os.close(self.handler.connection.detach())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up on purpose."""


def _handler(server: SourceServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

        def do_HEAD(self) -> None:
            self._serve(is_head=True)

        def do_GET(self) -> None:
            self._serve(is_head=False)

        def _serve(self, *, is_head: bool) -> None:
            if server.denies:
                self._deny()
                return
            name = unquote(urlsplit(self.path).path).rpartition("/")[2]
            path = server.folder / name
            if not name or not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            headers = {"ETag": server.etag(name), "Accept-Ranges": "bytes"}
            if is_head:
                self.send_response(200)
                for key, value in (headers | {"Content-Length": str(path.stat().st_size)}).items():
                    self.send_header(key, value)
                self.end_headers()
                return
            self._get(name, path, headers)

        def _deny(self) -> None:
            server.did("denied")
            body = b"<Error><Code>AccessDenied</Code><Message>No</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _get(self, name: str, path: Path, headers: dict[str, str]) -> None:
            total = path.stat().st_size
            answer = Answer(handler=self, server=server, status=200, body=b"", headers=headers)
            first, size = 0, total
            asked = self.headers.get("Range")
            if asked is not None:
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, size = int(begin), int(end) - int(begin) + 1
                answer.status = 206
                answer.headers["Content-Range"] = f"bytes {first}-{first + size - 1}/{total}"
            with path.open("rb") as file:
                file.seek(first)
                answer.body = file.read(size)
            get = server.note(name, first, size, dict(self.headers.items()))
            fault = server.faults.get(name)
            if fault is not None and fault(answer, get):
                return
            wanted = self.headers.get("If-Match")
            if wanted is not None and wanted != answer.headers["ETag"]:
                answer.status, answer.body = 412, b""
                server.did("precondition failed")
            answer.send()

    return Handler


# --- What can go wrong. Each counts itself. ---


def first_times(times: int, fault: Fault) -> Fault:
    """Have `fault` for so many GETs of the file, then none."""
    return lambda answer, get: get.number <= times and fault(answer, get)


def from_offset(offset: int, fault: Fault) -> Fault:
    """Have `fault` for parts at or behind `offset`."""
    return lambda answer, get: get.first >= offset and fault(answer, get)


def status(code: int, **headers: str) -> Fault:
    """Answer with an error."""

    def fault(answer: Answer, get: Get) -> bool:
        answer.server.did(f"answered {code}")
        answer.status, answer.body = code, b"no"
        answer.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer.send()
        return True

    return fault


def stalls(answer: Answer, get: Get) -> bool:
    """Send half, then nothing, and keep the line."""
    answer.server.did("stalled")
    answer.send(upto=len(answer.body) // 2)
    answer.server.closing.wait(60)
    answer.handler.close_connection = True
    return True


def drips(answer: Answer, get: Get) -> bool:
    """Send a byte at a time, slowly, for ever."""
    answer.server.did("dripped")
    answer.send(upto=1)
    for at in range(1, len(answer.body)):
        if answer.server.closing.wait(0.05):
            break
        try:
            answer.handler.wfile.write(answer.body[at : at + 1])
        except OSError:
            answer.server.did("was hung up on")
            break
    answer.handler.close_connection = True
    return True


def resets(answer: Answer, get: Get) -> bool:
    """Break the connection half-way."""
    answer.server.did("reset")
    answer.send(upto=len(answer.body) // 2)
    answer.reset()
    return True


def ends_early(answer: Answer, get: Get) -> bool:
    """Promise all, send half, and end in peace."""
    answer.server.did("ended early")
    answer.headers["Connection"] = "close"
    answer.send(upto=len(answer.body) // 2)
    answer.handler.close_connection = True
    return True


def flips_a_bit(answer: Answer, get: Get) -> bool:
    """Send other bytes than there are."""
    answer.server.did("flipped a bit")
    middle = len(answer.body) // 2
    changed = bytes([answer.body[middle] ^ 1])
    answer.body = answer.body[:middle] + changed + answer.body[middle + 1 :]
    answer.send()
    return True


def another_part(answer: Answer, get: Get) -> bool:
    """Send the same number of bytes from elsewhere, and say so."""
    answer.server.did("sent another part")
    total = answer.headers["Content-Range"].rpartition("/")[2]
    answer.headers["Content-Range"] = f"bytes {get.first + 1}-{get.first + get.size}/{total}"
    answer.send()
    return True


def without_ranges(answer: Answer, get: Get) -> bool:
    """Send the whole file whatever was asked for."""
    answer.server.did("ignored the range")
    answer.status = 200
    answer.body = (answer.server.folder / get.name).read_bytes()
    del answer.headers["Content-Range"]
    answer.send()
    return True


def redirects(to: str) -> Fault:
    """Send the client elsewhere."""

    def fault(answer: Answer, get: Get) -> bool:
        answer.server.did("redirected")
        answer.status, answer.body = 302, b""
        answer.headers = {"Location": to}
        answer.send()
        return True

    return fault
