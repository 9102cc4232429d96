"""Who is there: each process writes facts about itself, with a time to live, and reads others'.

The process owns the facts and Redis holds a copy, so losing all of Redis costs one heartbeat. A
pub/sub message wakes watchers early; what they learn, they read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Never, cast

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from services.common.errors import UnavailableError
from services.common.keys import SERVICES_CHANNEL, ServiceKind, service_key, service_pattern
from services.common.log import get_logger
from services.common.redis_client import cancellation_kept

log = get_logger(__name__)

TTL_S: Final = 6.0
HEARTBEAT_S: Final = 2.0
POLL_S: Final = 1.0
SERVICES_MAX: Final = 10_000
_SCAN_COUNT: Final = 1000
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What a process says about itself."""

    kind: ServiceKind
    service_id: str  # never used twice
    node_id: str
    address: str  # gRPC, "host:port"
    metrics_address: str
    started_at: datetime

    def to_json(self) -> str:
        """Return the registration's value."""
        fields = {
            "schema": _SCHEMA,
            "kind": self.kind.value,
            "service_id": self.service_id,
            "node_id": self.node_id,
            "address": self.address,
            "metrics_address": self.metrics_address,
            "started_at": self.started_at.isoformat(),
        }
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ServiceFacts:
        """Parse a registration's value. Raises ValueError if it is none that we know."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("schema", None) != _SCHEMA:
            raise ValueError("unknown schema of a registration")
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("a registration's fields are texts")
        try:
            kind = ServiceKind(fields.pop("kind"))
            started_at = datetime.fromisoformat(fields.pop("started_at"))
            return cls(kind=kind, started_at=started_at, **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a registration lacks a field or has one too many: {error}"
            ) from error


class Registration:
    """Keeps one process's facts in Redis for as long as `run` runs."""

    def __init__(
        self,
        redis: Redis,
        facts: ServiceFacts,
        *,
        ttl_s: float = TTL_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._redis = redis
        self._key = service_key(facts.kind, facts.service_id)
        self._value = facts.to_json()
        self._ttl_ms = round(ttl_s * 1000)
        self._heartbeat_s = heartbeat_s

    async def run(self) -> Never:
        """Write the facts every heartbeat. Cancelling removes them. Redis errors are outlived."""
        is_written = False
        try:
            while True:
                try:
                    await self._write(wake_others=not is_written)
                    if not is_written:
                        log.info("registered")
                    is_written = True
                except RedisError as error:
                    if is_written:
                        log.warning("registration not renewed", error=type(error).__name__)
                    is_written = False
                await asyncio.sleep(self._heartbeat_s)
        finally:
            await self._remove()

    async def _write(self, *, wake_others: bool) -> None:
        await self._redis.set(self._key, self._value, px=self._ttl_ms)
        if wake_others:
            await self._redis.publish(SERVICES_CHANNEL, self._key)

    async def _remove(self) -> None:
        """Remove the facts if Redis answers; else they expire on their own."""
        with suppress(RedisError):
            await self._redis.delete(self._key)
            await self._redis.publish(SERVICES_CHANNEL, self._key)


class Registry:
    """Reads other processes' facts."""

    def __init__(self, redis: Redis, *, poll_s: float = POLL_S) -> None:
        self._redis = redis
        self._poll_s = poll_s

    async def list(self, kind: ServiceKind) -> tuple[ServiceFacts, ...]:
        """Return all processes of a kind, ordered by id.

        Raises UnavailableError if Redis does not answer. A value that we cannot read is left out.
        """
        try:
            keys = await self._scan(kind)
            values = cast("Sequence[str | None]", await self._redis.mget(keys) if keys else ())
        except RedisError as error:
            raise UnavailableError("cluster state is unreachable", retry_after_s=1.0) from error
        found = (self._parse(kind, value) for value in values if value is not None)
        return tuple(sorted((f for f in found if f is not None), key=lambda f: f.service_id))

    async def watch(self, kind: ServiceKind) -> AsyncGenerator[tuple[ServiceFacts, ...]]:
        """Yield all processes of a kind now and after each change, within about a second.

        Never ends and never raises for Redis: while it is away, what was known stays. Consume
        under `aclosing`; that ends the watch.
        """
        known: tuple[ServiceFacts, ...] | None = None
        is_away = False
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            while True:
                try:
                    current = await self.list(kind)
                except UnavailableError:
                    if not is_away:
                        log.warning("registry unreachable", kind=kind.value)
                    is_away = True
                    await asyncio.sleep(self._poll_s)
                    continue
                is_away = False
                if current != known:
                    known = current
                    yield current
                await self._wait_for_hint(pubsub)
        finally:
            with suppress(RedisError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has no types here

    async def _scan(self, kind: ServiceKind) -> Sequence[str]:
        keys: list[str] = []
        async for key in self._redis.scan_iter(match=service_pattern(kind), count=_SCAN_COUNT):
            keys.append(str(key))
            if len(keys) >= SERVICES_MAX:
                log.error("registry is over its limit", kind=kind.value, limit=SERVICES_MAX)
                break
        return keys

    async def _wait_for_hint(self, pubsub: PubSub) -> None:
        """Return on a message, after a poll interval, or after the same pause if Redis is away."""
        try:
            with cancellation_kept():
                if not pubsub.subscribed:
                    await pubsub.subscribe(SERVICES_CHANNEL)
                await pubsub.get_message(timeout=self._poll_s)
        except RedisError:
            await asyncio.sleep(self._poll_s)

    def _parse(self, kind: ServiceKind, value: str) -> ServiceFacts | None:
        try:
            facts = ServiceFacts.from_json(value)
        except ValueError as error:
            log.warning("registration not understood", kind=kind.value, error=str(error))
            return None
        return facts if facts.kind is kind else None
