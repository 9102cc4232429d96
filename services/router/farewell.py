"""How long each stream may take: until its deadline, or less once the router leaves.

gRPC cuts off without a word whatever outlives the drain; here each stream is told before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.common.deadline import Deadline
from services.common.errors import BriskError, DeadlineError, Reason, UnavailableError

_RETRY_AFTER_S: Final = 1.0  # by then callers have found another router


class Farewell:
    """Knows the streams under way and ends them when it is time."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._is_leaving = False

    @property
    def is_leaving(self) -> bool:
        """Whether nobody new is let in."""
        return self._is_leaving

    @asynccontextmanager
    async def stream(self, deadline: Deadline) -> AsyncIterator[None]:
        """Run the block within `deadline`, or within what is left when the router leaves.

        Raises DeadlineError, or UnavailableError (SHUTTING_DOWN): at once if it is leaving already.
        """
        if self._is_leaving:
            raise _leaving()
        limit = asyncio.timeout(deadline.remaining_s())
        try:
            async with limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._time_is_up(deadline) from error

    def begin(self, within_s: float) -> None:
        """Let nobody new in, and end whoever is still here after `within_s`."""
        self._is_leaving = True
        end_s = asyncio.get_running_loop().time() + within_s
        for limit in self._limits:
            limit.reschedule(min(end_s, limit.when() or end_s))

    def _time_is_up(self, deadline: Deadline) -> BriskError:
        if self._is_leaving and not deadline.expired:
            return _leaving()
        return DeadlineError("the request's deadline has passed")


def _leaving() -> UnavailableError:
    return UnavailableError(
        "this router is shutting down", reason=Reason.SHUTTING_DOWN, retry_after_s=_RETRY_AFTER_S
    )
