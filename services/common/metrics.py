"""What every process exports to Prometheus, and the watch over its event loop."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, Never
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

from services.common.clock import monotonic_s
from services.common.config import reachable_address, split_advertise, split_listen
from services.common.errors import ConfigError
from services.common.log import get_logger

log = get_logger(__name__)

LAG_LOGGED_ABOVE_S: Final = 0.1
_BEAT_S: Final = 0.05
_LOG_PAUSE_S: Final = 10.0
_STACK_FRAMES_MAX: Final = 20
_CLIENTS_MAX: Final = 8
_CLIENT_SILENCE_S_MAX: Final = 5.0
_ACCEPT_POLL_S: Final = 0.05

RPCS: Final = Counter("brisk_rpcs", "Calls answered.", ["method", "code"])
RPC_SECONDS: Final = Histogram(
    "brisk_rpc_seconds",
    "Time from a call's arrival to its status.",
    ["method"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
)
RPCS_RUNNING: Final = Gauge("brisk_rpcs_running", "Calls being answered.", ["method"])
LOOP_LAG_SECONDS: Final = Gauge(
    "brisk_event_loop_lag_seconds", "How late the event loop woke the last time."
)
LOOP_BLOCKED: Final = Counter(
    "brisk_event_loop_blocked", f"Times the event loop stood still for {LAG_LOGGED_ABOVE_S:g} s."
)


class _Handler(WSGIRequestHandler):
    """One request, on a connection that must not dawdle."""

    timeout = _CLIENT_SILENCE_S_MAX

    def log_message(self, *_: object) -> None:
        """Say nothing: one line per scrape would drown the log."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    """Answers a few clients at a time and hangs up on the others."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(_CLIENTS_MAX)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, as the standard library would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread if there is one to spare."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in the client's own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
        """Note a client that broke off; the standard library would print a traceback."""
        log.info("metrics request failed", error=type(sys.exception()).__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsServer:
    """The HTTP server that Prometheus asks; it has its own thread."""

    server: WSGIServer
    thread: threading.Thread
    address: str
    port: int

    def close(self) -> None:
        """Stop answering. Waits for the thread, which takes a few milliseconds."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def start_metrics(
    listen: str, *, setting: str = "METRICS_LISTEN", advertise: str | None = None
) -> MetricsServer:
    """Serve `/metrics` on `listen`; of `advertise` only the host counts, the port is gRPC's.

    Raises ConfigError naming `setting` if the port is taken.
    """
    host, port = split_listen(listen)
    try:
        server = _HttpServer((host, port), _Handler)
    except OSError as error:
        raise ConfigError(setting, f"cannot listen on {listen}: {error.strerror}") from error
    server.set_app(make_wsgi_app())
    thread = threading.Thread(
        target=server.serve_forever, args=(_ACCEPT_POLL_S,), name="metrics", daemon=True
    )
    thread.start()
    if advertise is not None:
        host, _ = split_advertise(advertise)
    address = reachable_address(host, server.server_port)
    return MetricsServer(server=server, thread=thread, address=address, port=server.server_port)


async def watch_loop_lag() -> Never:
    """Measure how late the event loop wakes; log what it was doing when it stood still.

    The stack has to be taken while the loop is stuck, so a thread does it. Cancelling ends both.
    """
    watchdog = _Watchdog(threading.get_ident())
    watchdog.start()
    try:
        while True:
            slept_at_s = watchdog.beat()
            await asyncio.sleep(_BEAT_S)
            LOOP_LAG_SECONDS.set(max(0.0, monotonic_s() - slept_at_s - _BEAT_S))
    finally:
        watchdog.stop()


class _Watchdog(threading.Thread):
    """Logs the stack of `thread_id` when it misses its beats, at most every 10 s."""

    def __init__(self, thread_id: int) -> None:
        super().__init__(name="loop-watchdog", daemon=True)
        self._thread_id = thread_id
        self._beat_at_s = monotonic_s()
        self._stopping = threading.Event()

    def beat(self) -> float:
        self._beat_at_s = monotonic_s()
        return self._beat_at_s

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        reported_beat_at_s, logged_at_s = 0.0, -_LOG_PAUSE_S
        while not self._stopping.wait(_BEAT_S):
            beat_at_s, now_s = self._beat_at_s, monotonic_s()
            stuck_s = now_s - beat_at_s - _BEAT_S
            if stuck_s < LAG_LOGGED_ABOVE_S or beat_at_s == reported_beat_at_s:
                continue
            reported_beat_at_s = beat_at_s
            LOOP_BLOCKED.inc()
            if now_s - logged_at_s >= _LOG_PAUSE_S:
                logged_at_s = now_s
                log.warning("event loop blocked", blocked_s=stuck_s, stack=self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - the documented way
        if frame is None:
            return "thread is gone"
        return "".join(traceback.format_stack(frame, limit=_STACK_FRAMES_MAX))
