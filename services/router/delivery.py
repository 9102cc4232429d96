"""Hand a request's events to its client, one at a time, and not for ever.

What a client does not read fills the buffers on the way, and then writing waits. That keeps a
sequence and its slot, so it ends after a while, with a reason of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from services.common.errors import AbortedError, Reason
from services.common.model import StartProgress, StartReport
from services.router.ports import TokenChunk


class Sink(Protocol):
    """Where the events of one request go. Waiting in it slows the generation down."""

    async def progress(self, progress: StartProgress) -> None:
        """Tell how far the model's start has come; only before the first chunk."""

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:
        """Pass the next tokens of an answer on.

        `start` says with the first ones of each answer how the request got there.
        """


class Delivery:
    """A sink that several answers may write to at a time."""

    def __init__(self, sink: Sink, *, unread_s_max: float) -> None:
        self._sink = sink
        self._unread_s_max = unread_s_max
        self._turn = asyncio.Lock()
        self._has_begun = False

    async def progress(self, progress: StartProgress) -> None:
        """Tell how far the start has come, unless an answer has begun.

        Raises AbortedError (SLOW_CONSUMER), as `chunk` does.
        """
        async with self._turn, self._in_time():
            if not self._has_begun:
                await self._sink.progress(progress)

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:
        """Pass the next tokens of an answer on."""
        async with self._turn, self._in_time():
            self._has_begun = True
            await self._sink.chunk(choice, chunk, start)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._unread_s_max)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise AbortedError(
                f"the client did not read for {self._unread_s_max:g} s",
                reason=Reason.SLOW_CONSUMER,
            ) from error
