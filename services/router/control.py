"""The router's face for operators: each call goes on to the leading scheduler, byte for byte.

Nothing is parsed, so a router serves operators of newer and older schedulers alike. On the wire a
unary answer is a stream of one message, so one handler forwards both kinds.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import grpc

from services.common.channel import ChannelPool
from services.common.deadline import Deadline
from services.common.errors import BriskError, Reason, UnavailableError
from services.common.leader import LeaderLocator
from services.common.status import DETAILS_KEY, from_rpc_error
from services.router.farewell import Farewell

_TRIES_MAX: Final = 2  # the second asks a leader that was looked up anew
_RETRY_AFTER_S: Final = 1.0

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class ControlForwarder(grpc.GenericRpcHandler):
    """Serves `methods` (paths such as "/brisk.control.v1.ControlService/Deploy")."""

    def __init__(
        self,
        *,
        methods: Collection[str],
        locator: LeaderLocator,
        pool: ChannelPool,
        farewell: Farewell,
        request_s_default: float,
    ) -> None:
        # A known set: names of methods become labels of metrics.
        self._methods = frozenset(methods)
        self._locator = locator
        self._pool = pool
        self._farewell = farewell
        self._request_s_default = request_s_default

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Return the forwarding handler, or None for a method that is not ours."""
        method = str(handler_call_details.method)
        if method not in self._methods:
            return None
        forward: Any = partial(self._forward, method)
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(forward)
        return handler

    async def _forward(self, method: str, request: bytes, context: Context) -> None:
        """Forward one call. Cancelling it cancels the leader's at once."""
        deadline = Deadline.from_context(context, self._request_s_default)
        async with self._farewell.stream(deadline):
            await self._relay(method, request, context, deadline)

    async def _relay(
        self, method: str, request: bytes, context: Context, deadline: Deadline
    ) -> None:
        """Ask the leader; one that says it does not lead has done nothing, so ask the next."""
        for _ in range(_TRIES_MAX):
            leader = await self._locator.locate()
            has_answered = False
            failure: grpc.aio.AioRpcError | None = None
            with self._pool.use(leader.address) as channel:
                call = _call(channel, method, request, deadline)
                try:
                    async for response in call:
                        has_answered = True
                        await context.write(response)
                except grpc.aio.AioRpcError as error:
                    failure = error
                finally:
                    call.cancel()
            if failure is None:
                return
            ours = from_rpc_error(failure)
            is_unreachable = isinstance(ours, UnavailableError) and not _is_from_peer(failure)
            if ours.reason != Reason.NOT_LEADER and not is_unreachable:
                await _pass_on(failure, ours, context)
            self._locator.invalidate(leader)
            if is_unreachable or has_answered:
                break
        raise UnavailableError(
            "no scheduler leads at the moment",
            reason=Reason.NO_LEADER,
            retry_after_s=_RETRY_AFTER_S,
        )


def _call(
    channel: grpc.aio.Channel, method: str, request: bytes, deadline: Deadline
) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    send: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
    return send(request, timeout=deadline.remaining_s())


def _is_from_peer(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the peer itself answered, rather than gRPC in its place."""
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())


async def _pass_on(failure: grpc.aio.AioRpcError, ours: BriskError, context: Context) -> NoReturn:
    """End our call as the leader ended its own, details included."""
    if not _is_from_peer(failure):
        raise ours from failure  # gRPC's own words name addresses
    details = tuple((k, v) for k, v in failure.trailing_metadata() or () if k == DETAILS_KEY)
    await context.abort(failure.code(), failure.details() or "", trailing_metadata=details)
