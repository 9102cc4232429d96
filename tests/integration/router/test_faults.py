"""Whatever dies around the router, clients get all their tokens or one typed error."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.common.errors import Reason, UnavailableError
from services.common.keys import ServiceKind
from services.common.registry import Registry
from tests.fakes.redis_server import run_redis
from tests.fakes.workers import FakeWorker
from tests.integration.router.fake_scheduler import run_scheduler
from tests.integration.router.fake_worker import Cable, until
from tests.integration.router.house import Stream, ask, expected, run_house, run_router


async def test_a_client_that_leaves_cancels_the_worker_within_one_message(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        pace = asyncio.Semaphore(1)
        worker = FakeWorker(name="i1", pace=pace)
        await house.serve(house.worker.hold(worker))
        stream = await house.begin(ask(100))
        stream.call.cancel()
        await house.worker.servicer.cancelled.acquire()  # no further token was needed for it
        assert worker.running == 0
        await house.shows("brisk_router_num_requests_running 0.0")
        await house.shows('brisk_requests_total{outcome="cancelled",reason="CANCELLED"} 1.0')


async def test_a_client_that_leaves_in_line_or_in_prefill_leaves_nothing_behind(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(house.worker.hold(worker, slots=1))
        prefilling = house.inference.Generate(ask(4))
        await until(lambda: worker.running)
        in_line = house.inference.Generate(ask(4))
        await house.shows("brisk_router_num_requests_waiting 1.0")
        in_line.cancel()
        await house.shows("brisk_router_num_requests_waiting 0.0")
        prefilling.cancel()
        await house.worker.servicer.cancelled.acquire()
        assert len(worker.requests) == 1


async def test_a_client_that_leaves_during_a_start_cancels_the_acquisition(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.route("i1")
        stream = await house.begin(ask(4, want_progress=True))
        stream.call.cancel()
        await house.scheduler.given_up.acquire()
        assert house.scheduler.acquiring == 0


async def test_a_client_that_does_not_read_is_let_go_at_the_deadline(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, request_s_default=1.0) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1", tokens_per_chunk=1000)))
        stream = Stream(house.inference.Generate(ask(200_000)))
        await house.shows("brisk_router_num_requests_running 1.0")
        await house.shows("brisk_router_num_requests_running 0.0")
        line = 'brisk_requests_total{outcome="failed",reason="DEADLINE_EXCEEDED"} 1.0'
        assert line in house.router.metrics()
        answer = await stream.rest()
        assert answer.error is not None
        assert answer.error.code == "DEADLINE_EXCEEDED"


async def test_an_instance_that_is_gone_is_replaced_unseen(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.route("gone"))
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        house.scheduler.started.set()
        answer = await house.generate(ask(4))
        assert (answer.error, answer.tokens) == (None, expected(4))
        [acquired] = house.scheduler.acquired
        assert list(acquired.excluded_instance_ids) == ["gone"]


async def test_a_worker_killed_before_the_first_token_is_replaced_unseen(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house, Cable(house.worker.address) as cable:
        slow = FakeWorker(name="killed", pace=asyncio.Semaphore(0))
        route = replace(house.worker.hold(slow), worker_address=cable.address)
        await house.serve(route)
        running = asyncio.create_task(house.generate(ask(4)))
        await until(lambda: slow.running)
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        house.scheduler.started.set()
        cable.cut()
        answer = await running
        assert (answer.error, answer.tokens) == (None, expected(4))
        assert list(house.scheduler.acquired[0].excluded_instance_ids) == ["killed"]


async def test_a_worker_killed_after_the_first_token_is_one_typed_error(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house, Cable(house.worker.address) as cable:
        slow = FakeWorker(name="killed", pace=asyncio.Semaphore(2))
        route = replace(house.worker.hold(slow), worker_address=cable.address)
        await house.serve(route)
        stream = await house.begin(ask(4))
        await stream.next()
        cable.cut()
        answer = await stream.rest()
        assert answer.tokens == expected(2)
        assert isinstance(answer.error, UnavailableError)
        assert answer.error.reason == Reason.WORKER_LOST
        assert answer.error.retry_after_s
        assert house.scheduler.acquired == []


async def test_a_worker_that_hangs_after_tokens_is_given_up(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, silence_s_max=0.2) as house:
        worker = FakeWorker(name="i1", lives_for=2, is_silent=True)
        await house.serve(house.worker.hold(worker))
        answer = await house.generate(ask(4))
        assert answer.tokens == expected(2)
        assert answer.error is not None
        assert answer.error.reason == Reason.WORKER_LOST
        await house.worker.servicer.cancelled.acquire()


async def test_workers_that_all_refuse_end_in_one_error_after_the_moves(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, moves_max=2) as house:
        await house.serve(*(house.worker.route(f"gone{number}") for number in range(5)))
        answer = await house.generate(ask(4))
        assert answer.error is not None
        assert answer.error.reason == Reason.WORKER_LOST
        assert len(house.worker.servicer.requests) == 3


async def test_warm_requests_do_not_notice_a_dead_scheduler_and_a_dead_redis(
    tmp_path: Path,
) -> None:
    with run_redis() as redis:
        async with AsyncExitStack() as stack:
            house = await stack.enter_async_context(run_house(redis.url, tmp_path))
            await house.serve(house.worker.hold(FakeWorker(name="i1")))
            await house.leader.stop()
            redis.stop()
            await until(lambda: "route watch interrupted" in house.router.log)
            for _ in range(5):
                answer = await house.generate(ask(4), timeout=5.0)
                assert (answer.error, answer.tokens) == (None, expected(4))


async def test_without_a_leader_a_cold_request_is_told_when_to_come_back(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, leader_wait_s=0.3) as house:
        house.scheduler.is_leading = False
        answer = await house.generate(ask(4))
        assert answer.error is not None
        assert (answer.error.code, answer.error.reason) == ("UNAVAILABLE", Reason.NO_LEADER)
        assert answer.error.retry_after_s


async def test_a_scheduler_that_dies_during_a_start_is_followed_by_the_next(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house, run_scheduler(epoch=2) as heir:
        house.scheduler.startable["i1"] = house.worker.route("i1")
        heir.scheduler.startable["i2"] = house.worker.hold(FakeWorker(name="i2"))
        heir.scheduler.started.set()
        stream = await house.begin(ask(4, want_progress=True))
        await house.leader.stop()
        await heir.lead(redis_url)
        answer = await stream.rest()
        assert (answer.error, answer.tokens) == (None, expected(4))
        await until(lambda: heir.scheduler.watchers)


async def test_news_of_a_deposed_leader_is_not_believed(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house, run_scheduler(epoch=0) as old:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        await old.lead(redis_url)
        await house.leader.stop()
        await until(lambda: old.scheduler.watchers)
        await old.scheduler.publish(house.worker.route("wrong"))
        answer = await house.generate(ask(4))
        assert answer.tokens == expected(4)
        assert "brisk_routes 1.0" in house.router.metrics()


async def test_a_full_router_refuses_at_once_with_a_time_to_come_back(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, requests_max=2) as house:
        pace = asyncio.Semaphore(0)
        worker = FakeWorker(name="i1", pace=pace)
        await house.serve(house.worker.hold(worker))
        inside = [asyncio.create_task(house.generate(ask(2))) for _ in range(2)]
        await until(lambda: worker.running == 2)
        refused = await house.generate(ask(2))
        assert refused.error is not None
        assert refused.error.code == "RESOURCE_EXHAUSTED"
        assert refused.error.reason == Reason.QUEUE_FULL
        assert refused.error.retry_after_s
        assert refused.error.retry_after_s > 0
        for _ in range(6):
            pace.release()
        assert [(await answer).tokens for answer in inside] == [expected(2)] * 2
        assert (await house.generate(ask(2))).tokens == expected(2)


async def test_a_full_queue_of_one_model_does_not_close_the_others(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, queue_max=1) as house:
        stuck = FakeWorker(name="i1", pace=asyncio.Semaphore(0))
        await house.serve(
            house.worker.hold(stuck, slots=1),
            house.worker.hold(FakeWorker(name="i2"), model="other"),
        )
        calls = [house.inference.Generate(ask(2)) for _ in range(2)]
        await house.shows("brisk_router_num_requests_waiting 1.0")
        refused = await house.generate(ask(2))
        assert refused.error is not None
        assert refused.error.reason == Reason.QUEUE_FULL
        assert (await house.generate(ask(2, model="other"))).tokens == expected(2)
        for call in calls:
            call.cancel()


async def test_sigterm_in_mid_stream_lets_it_finish_and_admits_nobody(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, announce_s=1.0) as house:
        pace = asyncio.Semaphore(1)
        await house.serve(house.worker.hold(FakeWorker(name="i1", pace=pace)))
        stream = await house.begin(ask(8))
        house.router.terminate()
        await until(lambda: "draining" in house.router.log)
        refused = await house.generate(ask(2))
        assert refused.error is not None
        assert (refused.error.code, refused.error.reason) == ("UNAVAILABLE", Reason.SHUTTING_DOWN)
        assert refused.error.retry_after_s
        for _ in range(8):
            pace.release()
        answer = await stream.rest()
        assert (answer.error, answer.tokens) == (None, expected(8))
        assert await house.router.ended() == 0


async def test_a_stream_longer_than_the_drain_is_told_so(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path, drain_s=1.0) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1", pace=asyncio.Semaphore(1))))
        stream = await house.begin(ask(8))
        house.router.terminate()
        answer = await stream.rest()
        assert answer.tokens == expected(1)
        assert answer.error is not None
        assert answer.error.reason == Reason.SHUTTING_DOWN
        assert await house.router.ended() == 0


async def test_a_router_registers_and_takes_itself_out(redis_url: str, tmp_path: Path) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        registry = Registry(redis)
        async with run_house(redis_url, tmp_path) as house:
            [facts] = await registry.list(ServiceKind.ROUTER)
            assert facts.address == house.router.address
            assert facts.metrics_address == house.router.metrics_address
            house.router.terminate()
            await house.router.ended()
            assert await registry.list(ServiceKind.ROUTER) == ()


async def test_a_port_that_is_taken_is_refused_by_name(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        (tmp_path / "second").mkdir()
        with pytest.raises(AssertionError, match="BRISK_ROUTER_LISTEN"):
            async with run_router(redis_url, tmp_path / "second", listen=house.router.address):
                pass
