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
        self._asking = asyncio.Lock()  # held across the await: one question at a time is enough

    async def locate(self) -> LeaderIdentity:
        """Return who leads. Raises UnavailableError (NO_LEADER) with a time to come back."""
        if self._known is None:
            async with self._asking:
                if self._known is None:
                    self._known = await self._read()
        return self._known

    def invalidate(self, wrong: LeaderIdentity | None = None) -> None:
        """Forget the leader, or only if it is still `wrong`: another call may know better."""
        if wrong is None or wrong == self._known:
            self._known = None

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
