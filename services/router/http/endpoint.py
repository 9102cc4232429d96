"""The boundary around every HTTP request: request id in and out, typed error out, counted, timed.

The same as `services.common.boundary` is for gRPC. Handlers raise BriskError or RefusedError;
anything else unexpected is logged here once and the client learns only that it was our fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import structlog
from starlette.types import Receive, Scope, Send

from services.common.boundary import REQUEST_ID_KEY
from services.common.clock import monotonic_s
from services.common.errors import BriskError, DataLossError, InternalError, InvalidArgumentError
from services.common.log import bind_request_id, get_logger
from services.common.names import RequestId, new_request_id, parse_request_id, shorten
from services.router.http.errors import (
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    ClientLeftError,
    Failure,
    RefusedError,
    failure_of,
    internal_failure,
)
from services.router.http.reply import Reply
from services.router.metrics import HTTP_REQUEST_SECONDS, HTTP_REQUESTS, HTTP_REQUESTS_RUNNING

log = get_logger(__name__)

ABORT_KEY: Final = "brisk.abort"  # in the scope's extensions: how to cut the connection
OTHER: Final = "other"  # the metrics' label of all paths that are none
_CLIENT_LEFT: Final = 499  # as nginx counts those who hung up; never sent
_GET: Final = "GET"
_HEAD: Final = "HEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as handlers see it."""

    request_id: RequestId
    headers: Mapping[bytes, bytes]
    parameters: Mapping[str, Any]  # from the path
    receive: Receive
    reply: Reply


Handler: TypeAlias = Callable[[Call], Awaitable[None]]


class Endpoint:
    """One path, as an ASGI application. `path` labels its metrics."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = dict(handlers)
        if _GET in self._handlers:  # the server leaves the body out
            self._handlers[_HEAD] = self._handlers[_GET]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        structlog.contextvars.clear_contextvars()
        bind_request_id(request_id)
        reply = Reply(send, scope.get("extensions", {}).get(ABORT_KEY, _nothing), request_id)
        reply.closes_connection = _has_body(headers)  # until it has been read
        call = Call(
            request_id=request_id,
            headers=headers,
            parameters=scope.get("path_params", {}),
            receive=receive,
            reply=reply,
        )
        started_at_s = monotonic_s()
        status = 0
        HTTP_REQUESTS_RUNNING.labels(self._path).inc()
        try:
            status = await self._answer(call, str(scope["method"]))
        finally:
            HTTP_REQUESTS_RUNNING.labels(self._path).dec()
            HTTP_REQUESTS.labels(self._path, str(status or _CLIENT_LEFT)).inc()
            HTTP_REQUEST_SECONDS.labels(self._path).observe(monotonic_s() - started_at_s)

    async def _answer(self, call: Call, method: str) -> int:
        """Run the handler and return the status, that of an error within a stream included."""
        try:
            handler = self._handlers.get(method)
            if handler is None:
                raise self._not_allowed()  # noqa: TRY301 - the boundary is right here
            await handler(call)
        except ClientLeftError:
            return _CLIENT_LEFT
        except RefusedError as error:
            failure = error.failure
        except BriskError as error:
            failure = failure_of(error)
            _log(self._path, error)
        except Exception:  # the boundary: whatever it is, the client must not see it
            log.exception("request failed unexpectedly", path=self._path)
            failure = internal_failure()
        else:
            return call.reply.status
        await call.reply.fail(failure)
        return failure.status

    def _not_allowed(self) -> RefusedError:
        allowed = ", ".join(sorted(self._handlers))
        return RefusedError(
            Failure(
                status=METHOD_NOT_ALLOWED,
                message=f"{self._path} answers {allowed} only",
                code="method_not_allowed",
                headers=(("allow", allowed),),
            )
        )


async def no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for a path that is none."""

    async def refuse(_call: Call) -> None:
        path = shorten(str(scope["path"]))
        raise RefusedError(
            Failure(status=NOT_FOUND, message=f"no such path. Given: {path}", code="unknown_url")
        )

    await Endpoint(OTHER, {str(scope["method"]): refuse})(scope, receive, send)


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Run the block until the client leaves, which cancels it. Raises ClientLeftError then.

    The body must have been read.
    """
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        limit.reschedule(loop.time())

    watcher = None
    try:
        async with limit:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ClientLeftError from error


def _nothing() -> None:
    """Cut nothing: a server that gave us no way to."""


def _log(path: str, error: BriskError) -> None:
    if isinstance(error, InternalError | DataLossError):  # someone must act
        log.error("request failed", path=path, reason=error.reason, exc_info=error)
    else:
        log.debug("request refused", path=path, reason=error.reason)


def _request_id(headers: Mapping[bytes, bytes]) -> RequestId:
    """Return the client's request id, or a new one if it sent none that is well-formed."""
    given = headers.get(REQUEST_ID_KEY.encode())
    if given is not None:
        try:
            return parse_request_id(given.decode("latin-1"))
        except InvalidArgumentError:
            pass
    return new_request_id()


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
