"""Redis with a limit on every wait.

redis-py's defaults let one GET hang for more than 20 s on a stopped server; ours gives up after
one timeout, because a heartbeat must not wait longer than its lease.
"""

from __future__ import annotations

from typing import Final

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
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

    Connects on first use. A connection that the server closed is replaced once; a timeout is
    not repeated. Raises ValueError if the URL is malformed.
    """
    pool = BlockingConnectionPool.from_url(
        url.get_secret_value(),
        max_connections=CONNECTIONS_MAX,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


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
