"""What every process exports to Prometheus, and the watch over its event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Final, Never
from wsgiref.simple_server import WSGIServer

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services.common.clock import monotonic_s
from services.common.config import split_listen
from services.common.errors import ConfigError
from services.common.log import get_logger

log = get_logger(__name__)

LAG_LOGGED_ABOVE_S: Final = 0.1
_BEAT_S: Final = 0.05
_LOG_PAUSE_S: Final = 10.0
_STACK_FRAMES_MAX: Final = 20

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsServer:
    """The HTTP server that Prometheus asks; it has its own thread."""

    server: WSGIServer
    thread: threading.Thread
    address: str
    port: int

    def close(self) -> None:
        """Stop answering. Waits for the thread, which takes up to half a second."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def start_metrics(listen: str, *, setting: str = "METRICS_LISTEN") -> MetricsServer:
    """Serve `/metrics` on `listen`. Raises ConfigError naming `setting` if the port is taken."""
    host, port = split_listen(listen)
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigError(setting, f"cannot listen on {listen}: {error.strerror}") from error
    bound_port = server.server_port
    shown_host = f"[{host}]" if ":" in host else host
    return MetricsServer(
        server=server, thread=thread, address=f"{shown_host}:{bound_port}", port=bound_port
    )


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
