"""Workers come, fall silent, die and leave; the scheduler notices and nobody waits for a ghost."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

from services.common.errors import Reason, UnavailableError
from tests.fakes.store_server import run_store
from tests.fakes.worker_server import run_worker
from tests.integration.scheduler.house import run_scheduler, until


async def test_a_silent_worker_is_lost_after_ten_seconds_and_comes_back(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as scheduler,
    ):
        await until(scheduler.leads)
        await scheduler.deploy("/m/alpha")
        got = await scheduler.acquired("r1", "alpha")
        worker.is_silent = True
        silent_s = time.monotonic()
        await until(lambda: scheduler.log.count('"do": "RouteDown"') == 1, within_s=20.0)
        assert 9.0 < time.monotonic() - silent_s < 15.0
        assert await scheduler.workers() == []
        worker.is_silent = False
        worker.changed.set()
        await until(lambda: scheduler.log.count('"do": "RouteUp"') == 2)
        again = await scheduler.acquired("r2", "alpha")
        assert again.instance_id == got.instance_id


async def test_a_worker_that_dies_while_loading_is_replaced_at_once(
    redis_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(run_store(redis_url))
        doomed = await stack.enter_async_context(AsyncExitStack())
        first = await doomed.enter_async_context(run_worker(redis_url, worker_id="worker-a"))
        second = await stack.enter_async_context(run_worker(redis_url, worker_id="worker-b"))
        scheduler = await stack.enter_async_context(run_scheduler(redis_url, tmp_path))
        await until(scheduler.leads)

        async def knows_both() -> bool:
            return len(await scheduler.workers()) == 2

        await until(knows_both)
        await scheduler.deploy("/m/alpha")
        first.may_load.clear()
        waiting = asyncio.ensure_future(scheduler.acquired("r1", "alpha"))
        await until(lambda: first.loads)
        dies_s = time.monotonic()
        await doomed.aclose()
        got = await waiting
        assert time.monotonic() - dies_s < 3.0
        assert got.granted is not None
        assert got.granted.route.worker_id == "worker-b"
        assert len(second.loads) == 1


async def test_a_worker_that_dies_alone_leaves_a_typed_refusal(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_store(redis_url), run_scheduler(redis_url, tmp_path) as scheduler:
        await until(scheduler.leads)
        async with run_worker(redis_url) as worker:
            await scheduler.deploy("/m/alpha")
            worker.may_load.clear()
            waiting = asyncio.ensure_future(scheduler.acquired("r1", "alpha"))
            await until(lambda: worker.loads)
        got = await waiting
        assert isinstance(got.error, UnavailableError)
        assert got.error.reason == Reason.WORKER_LOST
        assert got.error.retry_after_s


async def test_no_worker_is_said_after_a_grace_and_then_at_once(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_scheduler(redis_url, tmp_path, learning_s=1.0) as scheduler,
    ):
        await until(scheduler.leads)
        await scheduler.deploy("/m/alpha")
        first = await scheduler.acquired("r1", "alpha")
        second = await scheduler.acquired("r2", "alpha")
        for got in (first, second):
            assert isinstance(got.error, UnavailableError)
            assert got.error.reason == Reason.NO_WORKER
            assert got.error.retry_after_s


async def test_a_worker_that_comes_during_the_grace_is_used(redis_url: str, tmp_path: Path) -> None:
    async with (
        run_store(redis_url),
        run_scheduler(redis_url, tmp_path, learning_s=30.0) as scheduler,
    ):
        await until(scheduler.leads)
        await scheduler.deploy("/m/alpha")
        waiting = asyncio.ensure_future(scheduler.acquired("r1", "alpha"))
        async with run_worker(redis_url):
            assert (await waiting).granted is not None


async def test_a_draining_worker_keeps_its_sequences_and_gets_nothing_new(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url, worker_id="worker-a") as first,
        run_scheduler(redis_url, tmp_path) as scheduler,
    ):
        await until(scheduler.leads)
        await scheduler.deploy("/m/alpha")
        got = await scheduler.acquired("r1", "alpha")
        first.busy(got.instance_id)
        first.is_draining = True
        first.changed.set()
        await until(lambda: '"do": "RouteDown"' in scheduler.log)
        async with run_worker(redis_url, worker_id="worker-b") as second:

            async def knows_both() -> bool:
                return len(await scheduler.workers()) == 2

            await until(knows_both)
            again = await scheduler.acquired("r2", "alpha")
            assert again.granted is not None
            assert again.granted.route.worker_id == "worker-b"
            assert len(second.loads) == 1
            assert first.unloads == []
