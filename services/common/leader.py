"""Find the leading scheduler: its address is in the lease that it holds."""

from __future__ import annotations

import asyncio
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.errors import Reason, UnavailableError
from services.common.keys import LEADER_LEASE
from services.common.lease import LeaderIdentity
from services.common.log import get_logger

log = get_logger(__name__)

_RETRY_AFTER_S: Final = 1.0


class LeaderLocator:
    """Remembers the leader until told that it is wrong, so that Redis is asked rarely."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: LeaderIdentity | None = None
        self._reading: asyncio.Task[LeaderIdentity] | None = None

    async def locate(self) -> LeaderIdentity:
        """Return who leads. Raises UnavailableError (NO_LEADER) with a time to come back.

        All who ask at a time share one question and its answer; cancelling leaves the others be.
        """
        if self._known is not None:
            return self._known
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._note_answer)
        return await asyncio.shield(self._reading)

    def invalidate(self, wrong: LeaderIdentity | None = None) -> None:
        """Forget the leader, or only if it is still `wrong`: another call may know better."""
        if wrong is None or wrong == self._known:
            self._known = None

    def _note_answer(self, reading: asyncio.Task[LeaderIdentity]) -> None:
        self._reading = None
        if not reading.cancelled() and reading.exception() is None:
            self._known = reading.result()

    async def _read(self) -> LeaderIdentity:
        try:
            value = await self._redis.get(LEADER_LEASE)
            if value is not None:
                return LeaderIdentity.from_json(str(value))
        except (RedisError, ValueError) as error:
            log.warning("leader lookup failed", error=type(error).__name__)
        raise UnavailableError(
            "no scheduler leads at the moment",
            reason=Reason.NO_LEADER,
            retry_after_s=_RETRY_AFTER_S,
        )
