"""Whoever needs the leader finds it, asks Redis rarely, and is told plainly when there is none."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.common.clock import monotonic_s
from services.common.errors import UnavailableError
from services.common.keys import LEADER_LEASE
from services.common.leader import LeaderLocator
from services.common.lease import LeaderIdentity, LeaderLease
from services.common.redis_client import connect
from tests.fakes.redis_server import run_redis

A = LeaderIdentity(scheduler_id="scheduler-a", address="127.0.0.1:1")
B = LeaderIdentity(scheduler_id="scheduler-b", address="127.0.0.1:2")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(SecretStr(redis_url))
    yield client
    await client.aclose()


async def gets_so_far(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_get", {}).get("calls", 0))


async def test_the_holder_of_the_lease_is_found(redis: Redis) -> None:
    await LeaderLease(redis, A).acquire()
    assert await LeaderLocator(redis).locate() == A


async def test_redis_is_asked_once_however_many_ask(redis: Redis) -> None:
    await LeaderLease(redis, A).acquire()
    locator = LeaderLocator(redis)
    before = await gets_so_far(redis)
    found = await asyncio.gather(*(locator.locate() for _ in range(50)))
    assert await locator.locate() == A
    assert set(found) == {A}
    assert await gets_so_far(redis) == before + 1


async def test_a_leader_that_turned_out_wrong_is_looked_up_again(redis: Redis) -> None:
    first = LeaderLease(redis, A)
    await first.acquire()
    locator = LeaderLocator(redis)
    await locator.locate()
    await first.release()
    await LeaderLease(redis, B).acquire()
    assert await locator.locate() == A  # nobody has complained yet
    locator.invalidate(A)
    assert await locator.locate() == B
    locator.invalidate(A)  # a complaint that came late
    before = await gets_so_far(redis)
    assert await locator.locate() == B
    assert await gets_so_far(redis) == before
    locator.invalidate()
    assert await locator.locate() == B
    assert await gets_so_far(redis) == before + 1


@pytest.mark.parametrize("value", [None, "not ours"])
async def test_no_leader_is_an_answer_with_a_time_to_come_back(
    redis: Redis, value: str | None
) -> None:
    if value is not None:
        await redis.set(LEADER_LEASE, value)
    with pytest.raises(UnavailableError) as caught:
        await LeaderLocator(redis).locate()
    assert (caught.value.reason, caught.value.retry_after_s) == ("NO_LEADER", 1.0)


async def test_a_hung_redis_holds_all_who_ask_for_one_timeout_only() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.2) as client:
            server.hang()
            locator = LeaderLocator(client)
            asked_at_s = monotonic_s()
            answers = await asyncio.gather(
                *(locator.locate() for _ in range(100)), return_exceptions=True
            )
            assert monotonic_s() - asked_at_s < 2.0
            assert all(isinstance(answer, UnavailableError) for answer in answers)


async def test_one_who_stops_asking_does_not_stop_the_others(redis: Redis) -> None:
    await LeaderLease(redis, A).acquire()
    locator = LeaderLocator(redis)
    impatient = asyncio.create_task(locator.locate())
    patient = asyncio.create_task(locator.locate())
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == A
    assert impatient.cancelled()


async def test_an_answer_that_nobody_waits_for_any_more_does_no_harm(redis: Redis) -> None:
    locator = LeaderLocator(redis)
    asking = asyncio.create_task(locator.locate())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(UnavailableError):  # and the question is asked again
        await locator.locate()
