"""Read a request's body within limits of size, time and memory, and parse it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from pydantic_core import from_json

from services.common.errors import InvalidArgumentError, Reason, ResourceExhaustedError
from services.router.http.endpoint import Call
from services.router.http.errors import (
    REQUEST_TIMEOUT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA,
    ClientLeftError,
    Failure,
    RefusedError,
)

_JSON: Final = "application/json"
_BODIES_IN_FULL: Final = 64  # as many of the largest size may be in memory at a time
_PASSED_OVER: Final = (
    16  # sizes of a body too large that are read so that its sender gets an answer
)
_RETRY_AFTER_S: Final = 1.0


class Bodies:
    """Reads the bodies of all requests and bounds what they take together."""

    def __init__(self, *, bytes_max: int, read_s_max: float) -> None:
        self._bytes_max = bytes_max
        self._read_s_max = read_s_max
        self._held_bytes = 0

    async def json(self, call: Call) -> Any:
        """Return the parsed body.

        Raises RefusedError (408, 413, 415), InvalidArgumentError, ResourceExhaustedError
        (QUEUE_FULL) or ClientLeftError.
        """
        _check_media_type(call.headers.get(b"content-type", b""))
        declared = call.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._bytes_max * _PASSED_OVER:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._read_s_max):
                content = await self._read(call)
        except TimeoutError as error:
            raise RefusedError(
                Failure(
                    status=REQUEST_TIMEOUT,
                    message=f"the body did not arrive within {self._read_s_max:g} s",
                    code="request_timeout",
                )
            ) from error
        try:
            return from_json(content, cache_strings=False)
        except ValueError as error:  # its messages name a place, never the content
            raise InvalidArgumentError(f"the body is not valid JSON: {error}") from error

    async def _read(self, call: Call) -> bytes:
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await call.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > self._bytes_max * _PASSED_OVER:
                    raise self._too_large()
                if size <= self._bytes_max:
                    parts.append(part)
                    held += len(part)
                    self._hold(len(part))
                if not message.get("more_body", False):
                    call.reply.closes_connection = False
                    if size > self._bytes_max:
                        raise self._too_large()
                    return b"".join(parts)
        finally:
            self._held_bytes -= held

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        if self._held_bytes > self._bytes_max * _BODIES_IN_FULL:
            raise ResourceExhaustedError(
                "too many large requests arrive at the moment",
                reason=Reason.QUEUE_FULL,
                retry_after_s=_RETRY_AFTER_S,
            )

    def _too_large(self) -> RefusedError:
        return RefusedError(
            Failure(
                status=TOO_LARGE,
                message=f"the body must have at most {self._bytes_max} bytes",
                code="body_too_large",
            )
        )


def _check_media_type(given: bytes) -> None:
    """Insist on JSON: a web page of another origin cannot send that without being allowed to."""
    if given.split(b";")[0].strip().lower() != _JSON.encode():
        raise RefusedError(
            Failure(
                status=UNSUPPORTED_MEDIA,
                message=f"the content-type header must be {_JSON}",
                code="unsupported_media_type",
            )
        )
