"""Every process can be found while it lives and a little longer, and not after."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.common.clock import monotonic_s
from services.common.errors import UnavailableError
from services.common.keys import ServiceKind, service_key
from services.common.redis_client import connect
from services.common.registry import Registration, Registry, ServiceFacts
from tests.fakes.redis_server import run_redis

PATIENCE_S = 10.0
Watch = AsyncGenerator[tuple[ServiceFacts, ...]]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(SecretStr(redis_url))
    yield client
    await client.aclose()


def facts(service_id: str = "worker-1", kind: ServiceKind = ServiceKind.WORKER) -> ServiceFacts:
    return ServiceFacts(
        kind=kind,
        service_id=service_id,
        node_id="node-1",
        address="127.0.0.1:1",
        metrics_address="127.0.0.1:2",
        started_at=datetime(2026, 11, 21, 9, 0, tzinfo=UTC),
    )


@asynccontextmanager
async def registered(registration: Registration) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(registration.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def following(watch: Watch) -> tuple[str, ...]:
    async with asyncio.timeout(PATIENCE_S):
        return tuple(each.service_id for each in await anext(watch))


async def until(watch: Watch, *expected: str) -> None:
    """Follow the watch until it shows exactly `expected`."""
    async with asyncio.timeout(PATIENCE_S):
        async for found in watch:
            if tuple(each.service_id for each in found) == expected:
                return


async def test_what_a_process_says_about_itself_is_what_others_read(redis: Redis) -> None:
    registry = Registry(redis)
    async with (
        registered(Registration(redis, facts())),
        aclosing(registry.watch(ServiceKind.WORKER)) as watch,
    ):
        await until(watch, "worker-1")
        assert await registry.list(ServiceKind.WORKER) == (facts(),)


async def test_a_process_that_stops_is_gone_at_once(redis: Redis) -> None:
    async with aclosing(Registry(redis, poll_s=60.0).watch(ServiceKind.WORKER)) as watch:
        assert await following(watch) == ()
        async with registered(Registration(redis, facts())):
            await until(watch, "worker-1")
            change = asyncio.ensure_future(following(watch))
            await asyncio.wait((change,), timeout=0.3)  # lets the watch come to rest
            assert not change.done()
        assert await change == ()  # by the hint: the next poll is far away


async def test_a_process_that_dies_is_gone_when_its_time_is_up(redis: Redis) -> None:
    await redis.set(service_key(ServiceKind.WORKER, "worker-1"), facts().to_json(), px=100)
    async with aclosing(Registry(redis, poll_s=0.02).watch(ServiceKind.WORKER)) as watch:
        assert await following(watch) == ("worker-1",)
        assert await following(watch) == ()


async def test_a_process_that_lives_stays_longer_than_its_time_to_live(redis: Redis) -> None:
    brief = Registration(redis, facts(), ttl_s=0.3, heartbeat_s=0.05)
    async with (
        registered(brief),
        aclosing(Registry(redis, poll_s=0.02).watch(ServiceKind.WORKER)) as watch,
    ):
        await until(watch, "worker-1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await anext(watch)  # nothing changes


async def test_the_times_in_the_schema_are_those_in_redis(redis: Redis) -> None:
    async with (
        registered(Registration(redis, facts())),
        aclosing(Registry(redis).watch(ServiceKind.WORKER)) as watch,
    ):
        await until(watch, "worker-1")
        left_ms = await redis.pttl(service_key(ServiceKind.WORKER, "worker-1"))
        assert 5_000 < left_ms <= 6_000


async def test_losing_all_of_redis_costs_one_heartbeat(redis: Redis) -> None:
    brief = Registration(redis, facts(), heartbeat_s=0.05)
    async with (
        registered(brief),
        aclosing(Registry(redis, poll_s=0.02).watch(ServiceKind.WORKER)) as watch,
    ):
        await until(watch, "worker-1")
        await redis.flushall()
        await until(watch, "worker-1")


async def test_a_redis_that_is_away_is_outlived_by_both_sides() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.2) as client:
            brief = Registration(client, facts(), heartbeat_s=0.05)
            async with (
                registered(brief) as task,
                aclosing(Registry(client, poll_s=0.05).watch(ServiceKind.WORKER)) as watch,
            ):
                await until(watch, "worker-1")
                with capture_logs() as lines:
                    server.stop()
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await anext(watch)  # what was known stays
                assert not task.done()
                events = [line["event"] for line in lines]
                assert events.count("registration not renewed") == 1
                assert events.count("registry unreachable") <= 1


async def test_a_watch_goes_on_after_redis_came_back() -> None:
    with run_redis() as server:
        async with (
            connect(SecretStr(server.url), timeout_s=0.2) as client,
            aclosing(Registry(client, poll_s=0.05).watch(ServiceKind.WORKER)) as watch,
        ):
            assert await following(watch) == ()
            server.restart()
            async with registered(Registration(client, facts(), heartbeat_s=0.05)):
                await until(watch, "worker-1")


async def test_leaving_while_redis_hangs_is_bounded() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.3) as client:
            async with (
                registered(Registration(client, facts())),
                aclosing(Registry(client).watch(ServiceKind.WORKER)) as watch,
            ):
                await until(watch, "worker-1")
                server.hang()
                started_s = monotonic_s()
            assert monotonic_s() - started_s < 4.0


async def test_kinds_are_kept_apart_and_lists_are_ordered(redis: Redis) -> None:
    for kind in ServiceKind:
        for number in (3, 1, 2):
            service_id = f"{kind.value}-{number}"
            value = facts(service_id, kind).to_json()
            await redis.set(service_key(kind, service_id), value)
    registry = Registry(redis)
    for kind in ServiceKind:
        found = [each.service_id for each in await registry.list(kind)]
        assert found == [f"{kind.value}-{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "[]",
        "7",
        '{"schema": 2}',
        facts().to_json().replace('"schema": 1', '"schema": 9'),
        facts().to_json().replace('"address": "127.0.0.1:1", ', ""),
        facts().to_json().replace('"node_id"', '"more": "x", "node_id"'),
        facts().to_json().replace('"node-1"', "7"),
        facts().to_json().replace('"kind": "worker"', '"kind": "baker"'),
        facts().to_json().replace('"kind": "worker"', '"kind": "router"'),
        facts().to_json().replace("2026-11-21T09:00:00+00:00", "yesterday"),
    ],
)
async def test_a_registration_that_we_do_not_understand_is_left_out(
    redis: Redis, value: str
) -> None:
    await redis.set(service_key(ServiceKind.WORKER, "odd"), value)
    await redis.set(service_key(ServiceKind.WORKER, "worker-1"), facts().to_json())
    assert await Registry(redis).list(ServiceKind.WORKER) == (facts(),)


async def test_more_than_one_page_of_processes_is_listed_completely(redis: Redis) -> None:
    ids = [f"worker-{number:04}" for number in range(1500)]
    await redis.mset({service_key(ServiceKind.WORKER, each): facts(each).to_json() for each in ids})
    found = await Registry(redis).list(ServiceKind.WORKER)
    assert [each.service_id for each in found] == ids


async def test_a_registry_that_cannot_be_read_is_unavailable() -> None:
    with run_redis() as server:
        async with connect(SecretStr(server.url), timeout_s=0.1) as client:
            server.hang()
            with pytest.raises(UnavailableError):
                await Registry(client).list(ServiceKind.WORKER)
