"""The answer to one HTTP request: a JSON object at once, or a stream of events.

Whatever has been sent is remembered, so that an error late in a stream becomes an event of it and
one before it a status of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from email.utils import format_datetime
from typing import Any, Final

from starlette.types import Message, Send

from services.common.clock import wall_clock
from services.common.names import RequestId
from services.router.http.errors import Failure

_OK: Final = 200
# The last words must not wait for a client that does not read; who does not take them is cut off.
_LAST_WORDS_S_MAX: Final = 2.0
_EVENT_HEADERS: Final = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # a proxy in between must not hold tokens back
)


class Reply:
    """Written once, by one request. `abort` cuts the connection."""

    def __init__(self, send: Send, abort: Callable[[], None], request_id: RequestId) -> None:
        self._send = send
        self._abort = abort
        self._request_id = request_id
        self._status = 0
        self._is_complete = False
        # A body that nobody reads stands between this request and the next.
        self.closes_connection = False

    @property
    def status(self) -> int:
        """The status sent, or 0 while there is none."""
        return self._status

    async def json(
        self,
        body: Mapping[str, object],
        *,
        status: int = _OK,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer with an object."""
        self._status = status
        content = encode(body)
        sizes = (("content-type", "application/json"), ("content-length", str(len(content))))
        await self._last(self._start(status, sizes + headers), _part(content, is_last=True))

    async def begin_events(self) -> None:
        """Begin a stream of events; from now on errors are events too. Safe to repeat."""
        if not self._status:
            await self._send(self._start(_OK, _EVENT_HEADERS))
            self._status = _OK

    async def event(self, body: Mapping[str, object]) -> None:
        """Send an event, beginning the stream with the first one."""
        await self.begin_events()
        await self._send(_part(b"data: " + encode(body) + b"\n\n"))

    async def comment(self, text: str) -> None:
        """Send a line that clients pass over."""
        await self.begin_events()
        await self._send(_part(f": {' '.join(text.split())}\n\n".encode()))

    async def end_events(self) -> None:
        """End the stream as OpenAI's does."""
        await self._last(_part(b"data: [DONE]\n\n", is_last=True))

    async def fail(self, failure: Failure) -> None:
        """Tell the client what went wrong, in whatever form is still possible."""
        if not self._status:
            await self.json(failure.body, status=failure.status, headers=failure.all_headers())
        elif not self._is_complete:
            await self._last(_part(b"data: " + encode(failure.body) + b"\n\n", is_last=True))

    def _start(self, status: int, headers: tuple[tuple[str, str], ...]) -> Message:
        headers += (
            ("date", format_datetime(wall_clock(), usegmt=True)),
            ("x-request-id", self._request_id),
        )
        if self.closes_connection:
            headers += (("connection", "close"),)
        return {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }

    async def _last(self, *messages: Message) -> None:
        self._is_complete = True
        try:
            async with asyncio.timeout(_LAST_WORDS_S_MAX):
                for message in messages:
                    await self._send(message)
        except TimeoutError:
            self._abort()
            await asyncio.sleep(0)  # the server learns of it before it misses the rest


def encode(body: Mapping[str, Any]) -> bytes:
    """Return the object as compact JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _part(content: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": not is_last}
