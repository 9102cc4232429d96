"""Leadership: one holder at a time, with an epoch that only rises, and writes fenced by it.

The lease lives 6 s in Redis, is renewed every second and given up by its holder 4 s after the last
renewal that succeeded, which is before anyone else may take it. Clocks and pauses can still fool
that, so every write and every order carries the epoch, and receivers refuse older ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from services.common.clock import monotonic_s
from services.common.errors import FailedPreconditionError, InternalError, Reason, UnavailableError
from services.common.keys import LEADER_EPOCH, LEADER_LEASE
from services.common.log import get_logger

log = get_logger(__name__)

TTL_S: Final = 6.0
RENEW_S: Final = 1.0
GIVE_UP_S: Final = 4.0
_AFTER_EXPIRY_S: Final = 0.02  # a standby's next try, so that it need not try twice
FIELDS_MAX: Final = 100_000
_SCAN_COUNT: Final = 500
_SCHEMA: Final = 1


def load_script(redis: Redis, name: str) -> AsyncScript:
    """Return the script `lua/<name>.lua`, sent to the server on first use."""
    source = Path(__file__).with_name("lua").joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return redis.register_script(source)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderIdentity:
    """Who holds the lease; the lease's value. Ids are never used twice."""

    scheduler_id: str
    address: str

    def to_json(self) -> str:
        """Return the lease's value; the same for equal identities."""
        fields = {"address": self.address, "schema": _SCHEMA, "scheduler_id": self.scheduler_id}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LeaderIdentity:
        """Parse a lease's value. Raises ValueError if it is none that we know."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("schema") != _SCHEMA:
            raise ValueError("unknown schema of the leader lease")
        match fields:
            case {"scheduler_id": str(scheduler_id), "address": str(address)}:
                return cls(scheduler_id=scheduler_id, address=address)
            case _:
                raise ValueError("leader lease lacks scheduler_id or address")


class LeaderLease:
    """The lease as one candidate sees it. Not for several tasks at once; `run` is its owner."""

    def __init__(
        self,
        redis: Redis,
        identity: LeaderIdentity,
        *,
        ttl_s: float = TTL_S,
        renew_s: float = RENEW_S,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        if not renew_s < give_up_s < ttl_s:
            raise ValueError("need renew_s < give_up_s < ttl_s")
        self._holder = identity.to_json()
        self._ttl_ms = round(ttl_s * 1000)
        self._renew_s = renew_s
        self._give_up_s = give_up_s
        self._acquire = load_script(redis, "acquire")
        self._renew = load_script(redis, "renew")
        self._release = load_script(redis, "release")
        self._epoch: int | None = None
        self._renewed_at_s = 0.0
        self.free_in_s = 0.0  # at the last refusal: until another's lease ends, if not renewed

    @property
    def epoch(self) -> int | None:
        """The epoch held now, or None: not leader, or too long without a renewal."""
        return self._epoch if self.held_s_left() > 0.0 else None

    def held_s_left(self) -> float:
        """Return the seconds for which we may still act as leader without a renewal."""
        if self._epoch is None:
            return 0.0
        return max(0.0, self._renewed_at_s + self._give_up_s - monotonic_s())

    async def acquire(self) -> int | None:
        """Take the lease: return our epoch, or None while someone else holds it.

        Raises RedisError. If cancelled, the lease may be ours until it expires.
        """
        asked_at_s = monotonic_s()  # before the call: Redis counts from a later moment
        reply = await self._acquire(
            keys=[LEADER_LEASE, LEADER_EPOCH], args=[self._holder, self._ttl_ms]
        )
        told = int(reply)
        self._epoch = told if told > 0 else None
        self.free_in_s = max(0, -told) / 1000
        self._renewed_at_s = asked_at_s
        return self._epoch

    async def renew(self) -> bool:
        """Prolong the lease: False if it is lost for good. Raises RedisError: unknown, try again.

        Keeps the epoch.
        """
        if self._epoch is None:
            return False
        asked_at_s = monotonic_s()
        kept = await self._renew(
            keys=[LEADER_LEASE, LEADER_EPOCH], args=[self._holder, self._ttl_ms, self._epoch]
        )
        if not kept:
            self._epoch = None
            return False
        self._renewed_at_s = asked_at_s
        return True

    async def release(self) -> None:
        """Give the lease back so that the next leader need not wait. Raises RedisError."""
        self._epoch = None
        await self._release(keys=[LEADER_LEASE], args=[self._holder])

    async def run(self, lead: Callable[[int], Awaitable[None]]) -> Never:
        """Stand by, lead, stand by again, for ever.

        A standby asks for the lease every `renew_s`, and in the moment in which it may be free.

        Each time the lease is won, `lead(epoch)` runs until the lease is lost, and is cancelled
        then; an error that it raises is raised here. Cancelling ends `lead`, then gives the lease
        back. Redis errors are outlived.
        """
        while True:
            pause_s = self._renew_s
            try:
                epoch = await self.acquire()
            except RedisError as error:
                log.warning("leader lease unreachable", error=type(error).__name__)
                epoch = None
            else:  # a leader that lives renews long before, and then we only asked in vain
                pause_s = min(pause_s, self.free_in_s + _AFTER_EXPIRY_S)
            if epoch is None:
                await asyncio.sleep(pause_s)
                continue
            log.info("leading", epoch=epoch)
            try:
                await self._lead_while_held(lead(epoch))
            finally:
                self._epoch = None
                await self._release_quietly()
            log.warning("leadership lost", epoch=epoch)

    async def _lead_while_held(self, leading: Awaitable[None]) -> None:
        task = asyncio.ensure_future(leading)
        keeping = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait((task, keeping), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()  # raises what `lead` raised
                raise RuntimeError("lead() returned while the lease was held")
            keeping.result()
        finally:
            task.cancel()
            keeping.cancel()
            # `lead` may need a moment to stop; its epoch is what makes that harmless.
            await asyncio.gather(task, keeping, return_exceptions=True)
        if not task.cancelled():
            task.result()  # raises what its clean-up raised

    async def _keep(self) -> None:
        """Renew until the lease is lost; `renew` forgets it when Redis says so."""
        while (left_s := self.held_s_left()) > 0.0:
            await asyncio.sleep(min(self._renew_s, left_s))
            try:
                async with asyncio.timeout(self.held_s_left()):
                    await self.renew()
            except (RedisError, TimeoutError) as error:
                log.warning("leader lease not renewed", error=type(error).__name__)

    async def _release_quietly(self) -> None:
        """Give the lease back if Redis answers; else it expires on its own."""
        try:
            async with asyncio.timeout(self._renew_s):
                await self.release()
        except (RedisError, TimeoutError) as error:
            log.info("leader lease left to expire", error=type(error).__name__)


class FencedHash:
    """A Redis hash that only the newest leader can write."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._hset = load_script(redis, "fenced_hset")
        self._hdel = load_script(redis, "fenced_hdel")

    async def read(self) -> Mapping[str, str]:
        """Return all fields.

        Raises UnavailableError if Redis does not answer, InternalError above 100,000 fields.
        """
        fields: dict[str, str] = {}
        cursor = 0
        try:
            while True:
                page = await cast(
                    "Awaitable[tuple[int, dict[str, str]]]",
                    self._redis.hscan(self._key, cursor, count=_SCAN_COUNT),
                )
                cursor = int(page[0])
                fields.update(page[1])
                if len(fields) > FIELDS_MAX:
                    raise InternalError(f"more than {FIELDS_MAX} entries in the cluster state")
                if cursor == 0:
                    return fields
        except RedisError as error:
            raise _unavailable() from error

    async def put(self, epoch: int, field: str, value: str) -> None:
        """Set a field as the leader of `epoch`.

        Raises FailedPreconditionError (STALE_EPOCH) if there is a newer leader, UnavailableError
        if Redis does not answer; then, or if cancelled, the write may have happened.
        """
        await self._call(self._hset, epoch, field, value)

    async def delete(self, epoch: int, field: str) -> None:
        """Remove a field as the leader of `epoch`; raises like `put`."""
        await self._call(self._hdel, epoch, field)

    async def _call(self, script: AsyncScript, epoch: int, *args: Any) -> None:
        try:
            await script(keys=[LEADER_EPOCH, self._key], args=[epoch, *args])
        except ResponseError as error:
            if str(error).startswith("FENCED"):
                raise FailedPreconditionError(
                    f"epoch {epoch} does not lead any more", reason=Reason.STALE_EPOCH
                ) from error
            raise
        except RedisError as error:
            raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("cluster state is unreachable", retry_after_s=1.0)
