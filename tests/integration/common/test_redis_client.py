"""No wait on Redis is without a limit, and no reply goes to the wrong caller."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.clock import monotonic_s
from services.common.errors import ConfigError
from services.common.redis_client import CONNECTIONS_MAX, connect, connect_or_refuse
from tests.fakes.redis_server import RedisServer, run_redis

TIMEOUT_S = 0.2
PATIENCE_S = 5.0  # one timeout, and a busy machine


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(SecretStr(redis_url), timeout_s=TIMEOUT_S)
    yield client
    await client.aclose()


async def refusal(url: str, timeout_s: float = TIMEOUT_S) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        await connect_or_refuse(SecretStr(url), setting="BRISK_DEMO_REDIS_URL", timeout_s=timeout_s)
    assert caught.value.setting == "BRISK_DEMO_REDIS_URL"
    return caught.value


async def test_the_right_password_gets_in_and_a_wrong_or_missing_one_is_refused() -> None:
    with run_redis(password="hunter2") as server:  # noqa: S106 - a test's
        async with await connect_or_refuse(SecretStr(server.url)) as client:
            assert await client.ping()
        wrong = await refusal(server.url.replace("hunter2", "hunter3"))
        missing = await refusal(server.url.replace(":hunter2@", ""))
    for error in (wrong, missing):
        assert error.problem == "Redis refuses the user name or password"
        assert "hunter" not in str(error)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://127.0.0.1:1/0", "Redis is unreachable"),
        ("redis://no-such-host.invalid:6379/0", "Redis is unreachable"),
        ("unix:///no/such/socket", "Redis is unreachable"),
        ("redis://127.0.0.1:port/0", "is not a Redis URL"),
        ("http://127.0.0.1/0", "is not a Redis URL"),
    ],
)
async def test_an_address_without_redis_is_refused(url: str, problem: str) -> None:
    assert (await refusal(url)).problem == problem


async def test_a_database_that_does_not_exist_is_refused(redis_server: RedisServer) -> None:
    error = await refusal(redis_server.url.removesuffix("0") + "99999")
    assert error.problem.startswith("Redis refuses the connection")


async def test_a_hung_redis_costs_one_timeout_not_twenty_seconds() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=TIMEOUT_S) as client:
            await client.set("key", "value")
            server.hang()
            started_s = monotonic_s()
            with pytest.raises(RedisTimeoutError):
                await client.get("key")  # on a connection that was open
            error = await refusal(server.url)  # on a new one
            assert monotonic_s() - started_s < PATIENCE_S
            assert error.problem == "Redis is unreachable"
            server.resume()
            assert await client.get("key") == "value"


async def test_a_redis_that_came_back_is_used_without_an_error() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=TIMEOUT_S) as client:
            await client.set("key", "value")
            server.restart()
            assert await client.get("key") is None


async def test_a_redis_that_is_gone_is_an_error_at_once() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=TIMEOUT_S) as client:
            await client.set("key", "value")
            server.stop()
            started_s = monotonic_s()
            with pytest.raises(RedisConnectionError):
                await client.get("key")
            assert monotonic_s() - started_s < PATIENCE_S


async def test_connections_are_bounded_and_shared() -> None:
    wanted = 2 * CONNECTIONS_MAX
    with run_redis() as server:
        url = SecretStr(server.url)
        async with (
            connect(url, timeout_s=PATIENCE_S) as client,
            connect(url) as observer,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(wanted):
                group.create_task(take(client))
            async with asyncio.timeout(PATIENCE_S):
                await until_blocked(observer, CONNECTIONS_MAX)
            assert (await observer.info("clients"))["connected_clients"] == CONNECTIONS_MAX + 1
            await observer.rpush("queue", *range(wanted))


async def until_blocked(observer: Redis, clients: int) -> None:
    while True:
        if (await observer.info("clients"))["blocked_clients"] >= clients:
            return
        await asyncio.sleep(0.01)


async def take(client: Redis) -> None:
    assert await cast("Awaitable[object]", client.blpop(["queue"])) is not None


async def test_waiting_for_a_connection_is_bounded() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=TIMEOUT_S) as client:
            server.hang()
            calls = [client.get(f"key-{i}") for i in range(2 * CONNECTIONS_MAX)]
            started_s = monotonic_s()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert monotonic_s() - started_s < 2 * PATIENCE_S
            assert all(isinstance(r, RedisTimeoutError | RedisConnectionError) for r in results)


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_command_ends_and_never_hands_its_reply_to_the_next_one(
    turns: int,
) -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.3) as client:
            await client.mset({"a": "value of a", "b": "value of b"})
            for _ in range(3):
                server.hang()  # so that the command is surely under way
                under_way = asyncio.ensure_future(client.get("a"))
                for _ in range(turns):
                    await asyncio.sleep(0)  # one turn of the event loop
                under_way.cancel()
                await asyncio.gather(under_way, return_exceptions=True)
                assert under_way.cancelled()
                server.resume()
                assert await client.get("b") == "value of b"


async def test_a_connection_is_not_lost_when_giving_it_back_is_cancelled(redis_url: str) -> None:
    async with connect(SecretStr(redis_url)) as observer:
        before = (await observer.info("clients"))["connected_clients"]
        async with connect(SecretStr(redis_url)) as client:
            pool: Any = client.connection_pool
            connection = await pool.get_connection()
            async with pool._condition:  # noqa: SLF001 - what a release waits for
                giving_back = asyncio.ensure_future(pool.release(connection))
                await asyncio.sleep(0)  # one turn of the event loop
                giving_back.cancel()
                await asyncio.gather(giving_back, return_exceptions=True)
            assert giving_back.cancelled()
            assert await client.ping()
            assert await pool.get_connection() is connection
            await pool.release(connection)
        after = (await observer.info("clients"))["connected_clients"]
    assert after == before


async def test_replies_do_not_cross_when_commands_are_cancelled_at_any_moment(
    redis: Redis,
) -> None:
    pick = random.Random(20_261_121)  # noqa: S311 - no secret
    await redis.mset({f"key-{i}": f"value-{i}" for i in range(8)})

    async def ask(number: int, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                assert await redis.get(f"key-{number}") == f"value-{number}"
        except TimeoutError:
            return False
        return True

    answered = 0
    for _ in range(100):
        rounds = [ask(number, pick.uniform(0.0, 0.002)) for number in range(8)]
        answered += sum(await asyncio.gather(*rounds))
        assert await ask(pick.randrange(8), 5.0)
    assert 0 < answered < 800  # some were cancelled, some not: the test tested something
