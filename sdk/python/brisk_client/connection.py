"""One client's connection: its channel, deadlines, safe retries, and grpc's errors as ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import grpc

from brisk_client import channel
from brisk_client.errors import (
    BriskError,
    StreamBrokenError,
    TimeLimit,
    UnavailableError,
    from_rpc_error,
)
from brisk_client.requests import timeout_s as parse_timeout_s
from brisk_client.retry import RetryBudget, RetryPolicy, pause_s

T = TypeVar("T")
RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")

# One attempt; gets the seconds left of the call's deadline. Raises grpc.RpcError on failure.
Attempt = Callable[[float], Awaitable[T]]

_POLICY = RetryPolicy()
_TIMEOUT_S_MIN = 0.001  # grpc takes 0 for "already over" but wants it positive


class Connection:
    """The connection and the rules for all calls of one client; they share one retry budget."""

    def __init__(
        self, endpoint: str, *, timeout_s: float | None = None, policy: RetryPolicy = _POLICY
    ) -> None:
        self.endpoint = channel.parse_endpoint(endpoint)
        self._timeout_s = None if timeout_s is None else parse_timeout_s(timeout_s)
        self._policy = policy
        self._budget = RetryBudget()
        self._random = random.Random()  # noqa: S311  (jitter needs no secrecy)
        self._channel: grpc.aio.Channel | None = None

    def open(self) -> grpc.aio.Channel:
        """Return the channel; must run in the event loop that will use it."""
        if self._channel is None:
            self._channel = channel.open_channel(self.endpoint)
        return self._channel

    async def close(self) -> None:
        """Close the channel; calls under way end. Idempotent."""
        if self._channel is not None:
            opened, self._channel = self._channel, None
            await opened.close()

    def deadline_s(self, given: float | None, default: float) -> float:
        """Return the seconds that a call may take: its own, the client's or the default."""
        if given is not None:
            return parse_timeout_s(given)
        return default if self._timeout_s is None else self._timeout_s

    def error(self, exc: grpc.RpcError, *, timeout_s: float, ends_s: float) -> BriskError:
        """Return our error for a call that had `timeout_s`, until `ends_s` of the loop's clock."""
        is_over = asyncio.get_running_loop().time() >= ends_s
        limit = TimeLimit(seconds=timeout_s, is_over=is_over)
        return from_rpc_error(exc, endpoint=self.endpoint, limit=limit)

    async def run(self, attempt: Attempt[T], *, timeout_s: float, retry: bool = True) -> T:
        """Return what `attempt` returns, trying again where the rules allow.

        Raises BriskError. Cancelling cancels the attempt under way.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        made = 0
        while True:
            made += 1
            try:
                result = await attempt(max(deadline_s - loop.time(), _TIMEOUT_S_MIN))
            except grpc.RpcError as exc:
                error = self.error(exc, timeout_s=timeout_s, ends_s=deadline_s)
                if isinstance(error, UnavailableError):
                    self._budget.failed()
                pause = pause_s(
                    self._policy,
                    error,
                    attempt=made,
                    remaining_s=deadline_s - loop.time(),
                    noise=self._random.uniform(-1, 1),
                )
                if pause is None or not retry or not self._budget.allows:
                    raise error from exc
            else:
                self._budget.succeeded()
                return result
            await asyncio.sleep(pause)

    async def unary(
        self,
        method: Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[RequestT, ReplyT]],
        request: RequestT,
        *,
        timeout_s: float,
        retry: bool = True,
    ) -> ReplyT:
        """Return the reply of a call that answers once. Raises BriskError."""
        metadata = channel.metadata(channel.new_request_id())

        async def attempt(remaining_s: float) -> ReplyT:
            call = method(self.open())
            return await call(request, timeout=remaining_s, metadata=metadata)

        return await self.run(attempt, timeout_s=timeout_s, retry=retry)

    async def last(
        self,
        method: Callable[[grpc.aio.Channel], grpc.aio.UnaryStreamMultiCallable[RequestT, ReplyT]],
        request: RequestT,
        on_message: Callable[[ReplyT], None],
        *,
        timeout_s: float,
    ) -> ReplyT:
        """Return the last message of a call that streams; `on_message` sees the ones before it.

        Raises BriskError; cancelling cancels the call.
        """
        metadata = channel.metadata(channel.new_request_id())
        ends_s = asyncio.get_running_loop().time() + timeout_s

        async def attempt(
            remaining_s: float,
        ) -> tuple[grpc.aio.UnaryStreamCall[RequestT, ReplyT], ReplyT]:
            call = method(self.open())(request, timeout=remaining_s, metadata=metadata)
            first = await call.read()
            if first is grpc.aio.EOF:
                raise StreamBrokenError("the server answered nothing")
            return call, cast("ReplyT", first)

        call, message = await self.run(attempt, timeout_s=timeout_s)
        try:
            while (following := await call.read()) is not grpc.aio.EOF:
                on_message(message)
                message = cast("ReplyT", following)
        except grpc.RpcError as exc:
            raise self.error(exc, timeout_s=timeout_s, ends_s=ends_s) from exc
        finally:
            call.cancel()
        return message
