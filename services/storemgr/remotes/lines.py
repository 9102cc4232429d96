"""Connections to web servers: dialled to checked addresses, watched, and kept for the next read.

A thread that reads cannot be interrupted, but its socket can be shut down. One watcher does that
for all lines of an import: when the import is stopped, and when a line has brought nothing for too
long, be it silent or one byte at a time.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Final, Self

from services.common.clock import monotonic_s
from services.storemgr.remotes.locations import HttpLocation

CheckAddress = Callable[[HttpLocation, str], None]  # raises if we must not connect there

_CONNECT_S_MAX: Final = 10.0
_WATCH_S: Final = 0.1
_RECEIVE_BYTES: Final = 4 << 20  # of the kernel's buffer: fewer wake-ups at a high rate


class Line:
    """One connection. Used by one thread at a time; `cut` may come from another."""

    def __init__(self, place: HttpLocation, check: CheckAddress, stall_s: float) -> None:
        self.place = place
        self.quiet_since_s = monotonic_s()
        self._check = check
        self._stall_s = stall_s
        self._socket: socket.socket | None = None
        self.is_cut = False
        self._context = _tls() if place.scheme == "https" else None
        # We connect, and wrap what is connected: it only has to speak.
        self.connection = http.client.HTTPConnection(place.host, place.port, timeout=stall_s)
        self.connection.default_port = {"http": 80, "https": 443}[place.scheme]  # not in Host

    def open(self) -> None:
        """Connect unless it is connected. Raises OSError and what the check raises."""
        if self.connection.sock is not None:
            return
        dialled = self._dial()
        try:
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialled.settimeout(self._stall_s)
            self._socket = dialled
            if self._context is not None:
                dialled = self._context.wrap_socket(dialled, server_hostname=self.place.host)
                self._socket = dialled
        except BaseException:
            dialled.close()
            raise
        self.connection.sock = dialled

    def alive(self, pause_s: float = 0.0) -> None:
        """Note that something came, and that nothing is expected for `pause_s`."""
        self.quiet_since_s = monotonic_s() + pause_s

    def cut(self) -> None:
        """Make whatever waits on the line fail now."""
        self.is_cut = True
        held = self._socket
        if held is not None:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        if self._socket is not None:
            self._socket.close()

    def _dial(self) -> socket.socket:
        """Connect to the first address of the host that answers; each is checked before."""
        place = self.place
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        last: OSError | None = None
        for family, kind, protocol, _, address in found:
            self._check(place, str(address[0]))
            dialled = socket.socket(family, kind, protocol)
            try:
                dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
                dialled.settimeout(min(_CONNECT_S_MAX, self._stall_s))
                self._socket = dialled  # so that it can be cut while it connects
                dialled.connect(address)
            except OSError as error:
                dialled.close()
                last = error
            else:
                return dialled
        raise last or OSError("the host has no address")


class Lines:
    """All connections of one import, idle ones kept by host. For use as a context."""

    def __init__(
        self, *, check: CheckAddress, stall_s: float, is_stopped: Callable[[], bool]
    ) -> None:
        self._check = check
        self._stall_s = stall_s
        self._is_stopped = is_stopped
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], list[Line]] = {}
        self._busy: set[Line] = set()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="storemgr-lines", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._watcher.join()
        with self._lock:
            kept = [line for lines in self._idle.values() for line in lines]
            self._idle.clear()
        for line in kept:
            line.close()

    def take(self, place: HttpLocation) -> Line:
        """Return a line to the place's host, perhaps one that was used before."""
        with self._lock:
            idle = self._idle.get(_host(place))
            line = idle.pop() if idle else Line(place, self._check, self._stall_s)
            line.alive()
            self._busy.add(line)
        return line

    def give_back(self, line: Line, *, is_reusable: bool) -> None:
        """Keep the line for the next one, or hang up."""
        with self._lock:
            self._busy.discard(line)
            keep = is_reusable and not line.is_cut and not self._closed.is_set()
            if keep:
                self._idle.setdefault(_host(line.place), []).append(line)
        if not keep:
            line.close()

    def _watch(self) -> None:
        while not self._closed.wait(_WATCH_S):
            now_s, stopped = monotonic_s(), self._is_stopped()
            with self._lock:
                late = [
                    line
                    for line in self._busy
                    if stopped or now_s - line.quiet_since_s > self._stall_s
                ]
            for line in late:
                line.cut()


@cache
def _tls() -> ssl.SSLContext:
    """Return what checks servers' certificates; the system's authorities take a while to read."""
    return ssl.create_default_context()


def _host(place: HttpLocation) -> tuple[str, str, int]:
    return place.scheme, place.host, place.port
