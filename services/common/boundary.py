"""The boundary around every call: request id in, typed error out, counted and timed.

Inside it handlers raise `BriskError`; anything else unexpected is logged here once, with its
traceback, and the caller learns only that it was our fault. Cancellation passes untouched.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from services.common.clock import monotonic_s
from services.common.errors import (
    BriskError,
    DataLossError,
    InternalError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from services.common.log import bind_request_id, get_logger
from services.common.metrics import RPC_SECONDS, RPCS, RPCS_RUNNING
from services.common.names import RequestId, new_request_id, parse_request_id
from services.common.status import from_rpc_error, to_status

log = get_logger(__name__)

REQUEST_ID_KEY: Final = "x-request-id"
_SHUTTING_DOWN_RETRY_S: Final = 0.5

# Quoted: gRPC's classes are generic to the type checker only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior: TypeAlias = Callable[[Any, Any], Any]
Parse: TypeAlias = Callable[[Any], Any]


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps unary and streaming handlers alike."""

    def __init__(self, draining: asyncio.Event, endless_methods: frozenset[str]) -> None:
        self._draining = draining
        self._endless_methods = endless_methods

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler inside the boundary."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method; gRPC answers
            return handler
        method = str(handler_call_details.method)
        make: Any  # the four makers take handlers of both kinds; their types know one
        behavior: Any
        if handler.request_streaming and handler.response_streaming:
            make, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.response_streaming:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        elif handler.request_streaming:
            make, behavior = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        else:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrap = self._streaming if handler.response_streaming else self._unary
        # A single request is parsed in here: gRPC would log a traceback for bytes that are none
        # and tell the caller nothing.
        deserialize: Parse | None = handler.request_deserializer
        parse: Parse = _as_it_is
        if deserialize is not None and not handler.request_streaming:
            parse, deserialize = _strictly(deserialize), None
        wrapped: Handler = make(
            wrap(method, behavior, parse), deserialize, handler.response_serializer
        )
        return wrapped

    def _unary(self, method: str, behavior: Behavior, parse: Parse) -> Behavior:
        async def call(request: Any, context: Context) -> Any:
            async with _answering(method, context):
                return await behavior(parse(request), context)

        return call

    def _streaming(self, method: str, behavior: Behavior, parse: Parse) -> Behavior:
        # A coroutine that writes, not a generator that yields: gRPC does not close a generator
        # that is suspended when its call is cancelled, so `finally` would run late.
        async def call(request: Any, context: Context) -> None:
            async with _answering(method, context):
                stream = _stream(behavior, parse(request), context)
                await (self._until_draining(stream) if method in self._endless_methods else stream)

        return call

    async def _until_draining(self, streaming: Awaitable[None]) -> None:
        stream = asyncio.ensure_future(streaming)
        leaving = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((stream, leaving), return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                return stream.result()
        finally:
            leaving.cancel()
            stream.cancel()
            await asyncio.gather(stream, leaving, return_exceptions=True)
        raise UnavailableError(
            "shutting down", reason=Reason.SHUTTING_DOWN, retry_after_s=_SHUTTING_DOWN_RETRY_S
        )


def _as_it_is(request: Any) -> Any:
    return request


def _strictly(deserialize: Parse) -> Parse:
    def parse(request: Any) -> Any:
        try:
            return deserialize(request)
        except DecodeError as error:
            raise InvalidArgumentError("the request is no message of this method") from error

    return parse


async def _stream(behavior: Behavior, request: Any, context: Context) -> None:
    responses = behavior(request, context)
    if inspect.isawaitable(responses):  # a handler that writes by itself
        await responses
        return
    async with aclosing(responses) as stream:
        async for response in stream:
            await context.write(response)


@asynccontextmanager
async def _answering(method: str, context: Context) -> AsyncIterator[None]:
    structlog.contextvars.clear_contextvars()
    bind_request_id(_request_id(context))
    started_at_s = monotonic_s()
    code = "OK"
    RPCS_RUNNING.labels(method).inc()
    try:
        yield
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    except grpc.aio.AbortError:  # the handler ended the call by gRPC's own means
        code = context.code().name
        raise
    except BriskError as error:
        code = error.code
        await _abort(method, context, error)
    except grpc.aio.AioRpcError as error:  # a peer's refusal that the handler let rise
        ours = from_rpc_error(error)
        code = ours.code
        log.info("peer refused", method=method, code=code, reason=ours.reason)
        await _abort(method, context, ours)
    except grpc.aio.InternalError:  # of a write or an abort: nobody is there to read it
        code = "CANCELLED"
        log.debug("caller left before its answer", method=method)
        raise asyncio.CancelledError from None
    except Exception:  # the RPC boundary: whatever it is, the caller must not see it
        code = "INTERNAL"
        log.exception("call failed unexpectedly", method=method)
        await context.abort_with_status(rpc_status.to_status(to_status(_internal())))
    finally:
        RPCS_RUNNING.labels(method).dec()
        RPCS.labels(method, code).inc()
        RPC_SECONDS.labels(method).observe(monotonic_s() - started_at_s)


async def _abort(method: str, context: Context, error: BriskError) -> None:
    # Someone must act on these; where a peer has said so, its own log has the traceback.
    if isinstance(error, InternalError | DataLossError) and not error.is_peers:
        log.error("call failed", method=method, reason=error.reason, exc_info=error)
    else:
        log.debug("call refused", method=method, code=error.code, reason=error.reason)
    try:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except grpc.aio.InternalError:  # the caller has left and hears no status
        raise asyncio.CancelledError from None


def _internal() -> InternalError:
    return InternalError("internal error; the service's log has the details")


def _request_id(context: Context) -> RequestId:
    """Return the caller's request id, or a new one if it sent none that is well-formed."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            try:
                return parse_request_id(value)
            except InvalidArgumentError:
                break
    return new_request_id()
