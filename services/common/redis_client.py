"""Redis with a limit on every wait.

redis-py's defaults let one GET hang for more than 20 s on a stopped server; ours gives up after
one timeout, because a heartbeat must not wait longer than its lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's own name; never meant to be the built-in here
    NoPermissionError,
    RedisError,
    ResponseError,
)

from services.common.errors import ConfigError

COMMAND_TIMEOUT_S: Final = 1.0
CONNECTIONS_MAX: Final = 16


def connect(url: SecretStr, *, timeout_s: float = COMMAND_TIMEOUT_S) -> Redis:
    """Return a client whose commands each end within about `timeout_s`; `aclose` it.

    Cancelling one takes effect within the same time. Connects on first use. A connection that the
    server closed is replaced once; a timeout is not repeated. Raises ValueError if the URL is
    malformed.
    """
    pool = _Pool.from_url(
        url.get_secret_value(),
        max_connections=CONNECTIONS_MAX,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        decode_responses=True,
    )
    return _Redis.from_pool(pool)


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raise CancelledError after a block that swallowed one.

    redis-py sends under `asyncio.wait_for`, which in Python 3.11 forgets a cancellation that
    arrives in the same turn as its result (cpython issue 86296). A loop would run on for ever.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class _Pool(BlockingConnectionPool):
    """Loses no connection: giving one back goes on when its caller is cancelled meanwhile.

    redis-py 8.1 waits for a lock there, and a connection whose caller stops waiting is in nobody's
    list any more: it stays open until the garbage collector finds it.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._releases: set[asyncio.Task[None]] = set()  # each takes one timeout at most

    async def release(self, connection: AbstractConnection) -> None:
        task = asyncio.ensure_future(super().release(connection))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def aclose(self) -> None:
        if self._releases:
            await asyncio.wait(self._releases)
        await super().aclose()


class _Redis(Redis):
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with cancellation_kept():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's


async def connect_or_refuse(
    url: SecretStr, *, setting: str = "BRISK_REDIS_URL", timeout_s: float = COMMAND_TIMEOUT_S
) -> Redis:
    """Return a client that has answered once; `aclose` it.

    Raises ConfigError naming `setting` if the server cannot be reached or refuses the password.
    """
    try:
        redis = connect(url, timeout_s=timeout_s)
    except ValueError as error:
        raise ConfigError(setting, "is not a Redis URL") from error
    try:
        await redis.ping()
    except RedisError as error:
        await redis.aclose()
        raise ConfigError(setting, _problem(error)) from error
    except BaseException:
        await redis.aclose()
        raise
    return redis


def _problem(error: RedisError) -> str:
    """Say what is wrong without the URL, which may hold a password."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "Redis refuses the user name or password"
    if isinstance(error, ResponseError):
        return f"Redis refuses the connection: {error}"
    return "Redis is unreachable"
