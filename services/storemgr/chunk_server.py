"""Serve the store's files to other store managers: HTTP/1.1 with ranges, sent by the kernel.

Bytes go from the page cache to the socket without passing through Python, several times as fast as
in gRPC messages (docs/adr/0019-peers.md). What a file's bytes should be is in its model's
brisk.json, which is served too: whoever reads verifies. A published file never changes, so nothing
is locked; one that is deleted meanwhile is gone for the next request.
"""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from services.common.config import reachable_address, split_advertise, split_listen
from services.common.errors import BriskError, ConfigError
from services.common.log import get_logger
from services.common.model import ModelRef
from services.common.names import parse_model_name
from services.storemgr.file_names import is_file_name
from services.storemgr.folder import opened
from services.storemgr.manifest import is_revision
from services.storemgr.refusal import MalformedError

log = get_logger(__name__)

CONNECTIONS_MAX: Final = 128
_LINE_BYTES_MAX: Final = 2048
_LINES_MAX: Final = 64
_IDLE_S: Final = 30
_SEND_BYTES: Final = 1 << 30
_NOT_THERE: Final = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)  # when it is opened
_REQUEST: Final = re.compile(rb"(GET|HEAD) (/[!-~]{0,1500}) HTTP/1\.1\r?\n")
_RANGE: Final = re.compile(rb"bytes=(\d{1,18})-(\d{1,18})\s*", re.IGNORECASE)
_PATH: Final = re.compile(r"/v1/([^/]+)/([^/]+)/([^/]+)")
_REASONS: Final = {
    200: "OK", 206: "Partial Content", 400: "Bad Request", 404: "Not Found",
    412: "Precondition Failed", 416: "Range Not Satisfiable",
}  # fmt: skip


def chunk_path(ref: ModelRef) -> str:
    """Return the path under which a model's files are served."""
    return f"/v1/{quote(ref.name, safe='')}/{ref.revision}/"


def serve_chunks(
    listen: str, folder_of: Callable[[ModelRef], Path], *, setting: str, advertise: str | None
) -> ChunkServer:
    """Return a server on `listen`; of `advertise` only the host counts, the port is gRPC's.

    Raises ConfigError naming `setting` if the port is taken.
    """
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS_MAX)
    except OSError as error:
        raise ConfigError(setting, f"cannot listen on {listen}: {error.strerror}") from error
    if advertise is not None:
        host, _ = split_advertise(advertise)
    address = reachable_address(host, listener.getsockname()[1])
    return ChunkServer(listener, address, folder_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked for."""

    is_head: bool
    path: str
    part: tuple[int, int] | None  # first and last byte
    version: str | None  # that it must have


class ChunkServer:
    """Serves until it is closed; each connection has a thread of its own."""

    def __init__(
        self, listener: socket.socket, address: str, folder_of: Callable[[ModelRef], Path]
    ) -> None:
        """Serve the models in the folders that `folder_of` names, on a socket that listens."""
        self.address = address  # where others reach it, "host:port"
        self._listener = listener
        self._folder_of = folder_of
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._is_closed = False
        self._acceptor = threading.Thread(target=self._accept, name="storemgr-chunks", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Hang up on all and return when no new ones come."""
        self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                continue
            with self._lock:
                is_full = len(self._connections) >= CONNECTIONS_MAX
                if not is_full:
                    self._connections.add(connection)
            if is_full:
                connection.close()  # its peer tries again, or asks another one
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="storemgr-chunk", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            wait = struct.pack("ll", _IDLE_S, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb", buffering=8192) as lines:
                while (request := _read_request(lines)) is not None:
                    self._answer(connection, request)
        except (OSError, ValueError):
            pass  # its peer is gone, silent, or speaks something else
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, request: _Request) -> None:
        found = self._find(request.path)
        if found is None:
            _send_head(connection, 404, 0)
            return
        path, version = found
        if request.version is not None and request.version != version:
            _send_head(connection, 412, 0)
            return
        try:
            with opened(path) as descriptor:
                self._send(connection, request, descriptor, version)
        except MalformedError:
            _send_head(connection, 404, 0)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            _send_head(connection, 404, 0)

    def _send(
        self, connection: socket.socket, request: _Request, descriptor: int, version: str
    ) -> None:
        size = os.fstat(descriptor).st_size
        first, last = request.part or (0, size - 1)
        more = f"ETag: {version}\r\n"
        if request.part is not None:
            if first > last or last >= size:
                _send_head(connection, 416, 0, f"Content-Range: bytes */{size}\r\n")
                return
            more += f"Content-Range: bytes {first}-{last}/{size}\r\n"
        length = last - first + 1
        _send_head(connection, 200 if request.part is None else 206, length, more)
        while length and not request.is_head:
            sent = os.sendfile(connection.fileno(), descriptor, first, min(length, _SEND_BYTES))
            if not sent:
                raise ValueError("the file ended early")
            first, length = first + sent, length - sent

    def _find(self, path: str) -> tuple[Path, str] | None:
        """Return a published file and its version, or None."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        name, revision, file = (unquote(part) for part in match.groups())
        if not is_revision(revision) or not is_file_name(file):
            return None
        try:
            ref = ModelRef(name=parse_model_name(name), revision=revision)
        except BriskError:
            return None
        return self._folder_of(ref) / file, f'"{revision}"'


def _read_request(lines: io.IOBase) -> _Request | None:
    """Return the next request; None at the end. Raises ValueError if it is none that we know."""
    first = lines.readline(_LINE_BYTES_MAX)
    if not first:
        return None
    match = _REQUEST.fullmatch(first)
    if match is None:
        raise ValueError("no request")
    part, version = None, None
    for _ in range(_LINES_MAX):
        line = lines.readline(_LINE_BYTES_MAX)
        if line in (b"\r\n", b"\n"):
            return _Request(
                is_head=match[1] == b"HEAD", path=match[2].decode(), part=part, version=version
            )
        name, colon, value = line.partition(b":")
        if not colon or not line.endswith(b"\n"):
            raise ValueError("no header")
        match name.lower():
            case b"range":
                asked = _RANGE.fullmatch(value.strip())
                if asked is None:
                    raise ValueError("no range that we know")
                part = int(asked[1]), int(asked[2])
            case b"if-match":
                version = value.strip().decode("ascii")
            case b"content-length" | b"transfer-encoding":
                raise ValueError("a request with a body")
    raise ValueError("too many headers")


def _send_head(connection: socket.socket, status: int, length: int, more: str = "") -> None:
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {length}\r\n{more}\r\n"
    connection.sendall(head.encode("ascii"))
