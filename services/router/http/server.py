"""The HTTP server: uvicorn's protocol inside our own lifecycle, with limits that it lacks.

Not `uvicorn.Server`: that one takes the process' signals, ends it when a port is taken and polls
ten times a second. What we add: a limit of time and size for a request's head, of connections, and
of requests sent ahead on one connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.common.config import reachable_address, split_advertise, split_listen
from services.common.errors import ConfigError, Reason
from services.common.log import get_logger
from services.router.http.endpoint import ABORT_KEY
from services.router.http.errors import (
    BAD_REQUEST,
    HEAD_TOO_LARGE,
    REQUEST_TIMEOUT,
    UNAVAILABLE,
    Failure,
)
from services.router.http.reply import encode
from services.router.metrics import HTTP_CONNECTIONS

log = get_logger(__name__)

_HEAD_BYTES_MAX: Final = 64 * 1024
_AHEAD_MAX: Final = 8  # requests that wait behind a running one on the same connection
_KEEP_ALIVE_S: Final = 75  # longer than clients and proxies keep idle connections
_BACKLOG: Final = 1024
_ABORTED_S_MAX: Final = 2.0
_RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one server takes on, besides what the requests' own admission allows."""

    connections_max: int
    head_s_max: float  # from connecting, or from a request's first byte, to the end of its head


class HttpServer:
    """A server that is bound to its port but not started; `lifecycle.serve` starts it."""

    def __init__(
        self, listening: socket.socket, address: str, app: ASGIApp, limits: HttpLimits
    ) -> None:
        self.address = address
        self.limits = limits
        self.state = ServerState()
        self._listening = listening
        self._config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._config.load()
        self._server: asyncio.Server | None = None
        self._is_empty = asyncio.Event()
        HTTP_CONNECTIONS.set_function(lambda: len(self.state.connections))

    @property
    def is_full(self) -> bool:
        """Whether no more connections are let in."""
        return len(self.state.connections) >= self.limits.connections_max

    async def start_serving(self) -> None:
        """Open for requests."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self, self._config), sock=self._listening, backlog=_BACKLOG
        )
        log.info("serving HTTP", address=self.address)

    async def announce_leaving(self) -> None:
        """Go on answering; who may still come in is decided where requests are let in."""

    async def drain(self, drain_s: float) -> None:
        """Close the port and idle connections, let answers finish, cut what outlives `drain_s`."""
        self._listening.close()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.state.connections):
            connection.shutdown()
        if not await self._emptied(drain_s):
            log.warning("connections cut", count=len(self.state.connections))
            for connection in tuple(self.state.connections):
                connection.transport.abort()
            await self._emptied(_ABORTED_S_MAX)
        if self.state.tasks:
            await asyncio.wait(self.state.tasks, timeout=_ABORTED_S_MAX)

    def connection_closed(self) -> None:
        """Take note that a connection is gone."""
        if not self.state.connections:
            self._is_empty.set()

    async def _emptied(self, within_s: float) -> bool:
        self._is_empty.clear()
        if not self.state.connections:
            return True
        try:
            async with asyncio.timeout(within_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True


def create_http_server(
    listen: str, app: ASGIApp, *, limits: HttpLimits, setting: str, advertise: str | None = None
) -> HttpServer:
    """Return a server bound to `listen`; of `advertise` only the host counts, the port is gRPC's.

    Needs a running event loop. Raises ConfigError naming `setting` if the port is taken or the host
    unknown.
    """
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            setting, f"cannot listen on {listen}: the port is taken or the host is not ours"
        ) from error
    bound_host, bound_port = listening.getsockname()[:2]
    if not ipaddress.ip_address(bound_host).is_loopback:
        log.warning(
            "HTTP endpoint open to other machines without authentication",
            address=listen,
            setting=setting,
        )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # warns of each malformed request
    if advertise is not None:
        host, _ = split_advertise(advertise)
    return HttpServer(listening, reachable_address(host, bound_port), app, limits)


class _Connection(HttpToolsProtocol):
    """One connection. The limits that uvicorn lacks, and refusals in OpenAI's shape."""

    def __init__(self, server: HttpServer, config: uvicorn.Config) -> None:
        super().__init__(config=config, server_state=server.state, app_state={})
        self._house = server
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._running: RequestResponseCycle | None = None  # `cycle` may be one sent ahead

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, or refuse it at once if there are too many."""
        is_full = self._house.is_full
        super().connection_made(transport)
        if is_full:
            self._refuse(
                Failure(
                    status=UNAVAILABLE,
                    message=f"at most {self._house.limits.connections_max} connections at a time",
                    code=Reason.QUEUE_FULL.lower(),
                    retry_after_s=_RETRY_AFTER_S,
                )
            )
        else:
            self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that belongs to the connection."""
        self._head_ends()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the last request only
            self._running.disconnected = True
            self._running.message_event.set()
        self._house.connection_closed()

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a head that is too large."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_timer is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES_MAX:
            self._refuse(
                Failure(
                    status=HEAD_TOO_LARGE,
                    message=f"the request's head must have at most {_HEAD_BYTES_MAX} bytes",
                    code="head_too_large",
                )
            )

    def on_message_begin(self) -> None:
        """Start the clock of a request's head."""
        super().on_message_begin()
        if len(self.pipeline) >= _AHEAD_MAX:
            raise ConnectionError("too many requests sent ahead")  # ends the connection
        extensions: Any = {ABORT_KEY: self.transport.abort}
        self.scope["extensions"] = extensions
        if self._head_timer is None:
            self._head_begins()

    def on_headers_complete(self) -> None:
        """Stop the clock and run the request."""
        self._head_ends()
        super().on_headers_complete()
        self.flow.resume_reading()  # paused if sent ahead; but who does not read sees nobody leave

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(Failure(status=BAD_REQUEST, message=msg, code="malformed_http"))

    def _head_begins(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._house.limits.head_s_max, self._head_is_late)

    def _head_ends(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._head_bytes:  # connected ahead and had nothing to say
            self.transport.close()
            return
        limit_s = self._house.limits.head_s_max
        self._refuse(
            Failure(
                status=REQUEST_TIMEOUT,
                message=f"the request's head did not arrive within {limit_s:g} s",
                code="request_timeout",
            )
        )

    def _refuse(self, failure: Failure) -> None:
        """Answer without a request and close; never into the middle of a running answer."""
        self._head_ends()
        if self.transport.is_closing():
            return
        if self._running is None or self._running.response_complete:
            self.transport.write(_raw(failure))
            self.transport.close()
        else:
            self.transport.abort()


def _raw(failure: Failure) -> bytes:
    """Return a whole response as bytes."""
    content = encode(failure.body)
    headers: Mapping[str, str] = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        **dict(failure.all_headers()),
    }
    status = HTTPStatus(failure.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join((*lines, "", "")).encode() + content
