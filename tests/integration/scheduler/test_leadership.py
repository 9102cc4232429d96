"""One leads and the others stand by; whoever takes over finds what there is and loses nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from brisk.worker.v1 import worker_service_pb2 as worker_pb2
from brisk.worker.v1 import worker_service_pb2_grpc as worker_grpc
from redis.asyncio import Redis

from services.common.channel import open_channel
from services.common.errors import Reason, UnavailableError
from services.common.status import from_rpc_error
from tests.fakes.redis_server import run_redis
from tests.fakes.store_server import run_store
from tests.fakes.worker_server import run_worker
from tests.integration.scheduler.house import CALL_S, Scheduler, run_scheduler, until


async def epoch_of(scheduler: Scheduler) -> int:
    """Return the epoch that a leader tells its watchers."""
    request = pb2.WatchRoutesRequest(router_id="router-1")
    watch = scheduler.stub.WatchRoutes(request, timeout=CALL_S)
    first = await watch.read()
    watch.cancel()
    assert isinstance(first, pb2.WatchRoutesResponse)
    return first.leader_epoch


async def test_a_standby_names_the_leader(redis_url: str, tmp_path: Path) -> None:
    async with run_scheduler(redis_url, tmp_path) as first:
        await until(first.leads)
        async with run_scheduler(redis_url, tmp_path) as second:
            got = await second.acquired("r1", "alpha")
            assert isinstance(got.error, UnavailableError)
            assert got.error.reason == Reason.NOT_LEADER
            assert got.error.retry_after_s
            assert got.error.metadata["leader_address"] == first.address
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await second.models()
            assert from_rpc_error(refused.value).reason == Reason.NOT_LEADER
            assert await first.models() == []


async def test_a_standby_takes_over_after_a_kill_and_adopts(redis_url: str, tmp_path: Path) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as first,
    ):
        await until(first.leads)
        async with run_scheduler(redis_url, tmp_path) as second:
            await first.deploy("/m/alpha")
            got = await first.acquired("r1", "alpha")
            old_epoch = await epoch_of(first)
            await first.stop(signal.SIGKILL)
            killed_s = time.monotonic()
            await until(second.leads)
            # 6 s until the lease expires, and the standby asks for it in that moment.
            assert time.monotonic() - killed_s < 7.0
            again = await second.acquired("r2", "alpha")
            assert again.instance_id == got.instance_id
            assert again.granted is not None
            assert not again.granted.start.cold
            assert len(worker.loads) == 1
            assert await epoch_of(second) > old_epoch


async def test_an_order_of_a_deposed_leader_is_refused(redis_url: str, tmp_path: Path) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as scheduler,
    ):
        await until(scheduler.leads)
        await scheduler.deploy("/m/alpha")
        async with open_channel(worker.address) as channel:
            stub = worker_grpc.WorkerServiceStub(channel)
            newer = worker_pb2.UnloadRequest(instance_id="i9-9", leader_epoch=2**60)
            await stub.Unload(newer, timeout=CALL_S)
        got = await scheduler.acquired("r1", "alpha")
        assert isinstance(got.error, UnavailableError)
        assert got.error.reason == Reason.NOT_LEADER
        assert worker.loads == []


async def test_deployments_survive_a_restart(redis_url: str, tmp_path: Path) -> None:
    async with run_store(redis_url), run_worker(redis_url) as worker:
        async with run_scheduler(redis_url, tmp_path) as first:
            await until(first.leads)
            made = await first.deploy("/m/alpha", slots=2)
            got = await first.acquired("r1", "alpha")
            assert await first.stop() == 0
        async with run_scheduler(redis_url, tmp_path) as second:
            await until(second.leads)
            assert await second.models() == ["alpha"]
            again = await second.acquired("r2", "alpha")
            assert again.instance_id == got.instance_id
            assert len(worker.loads) == 1
            kept = await second.deploy("/m/alpha", slots=2)
            assert kept.created_at == made.created_at


async def test_sigterm_answers_who_waits_and_hands_the_lease_on(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        run_store(redis_url),
        run_worker(redis_url) as worker,
        run_scheduler(redis_url, tmp_path) as first,
        run_scheduler(redis_url, tmp_path) as second,
    ):
        await until(first.leads)
        await first.deploy("/m/alpha")
        worker.may_load.clear()
        waiting = asyncio.ensure_future(first.acquired("r1", "alpha"))
        await until(lambda: worker.loads)
        request = pb2.WatchRoutesRequest(router_id="router-1")
        watch = first.stub.WatchRoutes(request, timeout=CALL_S)
        await watch.read()
        asked_s = time.monotonic()
        assert await first.stop() == 0
        assert time.monotonic() - asked_s < 5.0
        got = await waiting
        assert isinstance(got.error, UnavailableError)
        assert got.error.reason == Reason.SHUTTING_DOWN
        assert await watch.read() is grpc.aio.EOF
        await until(second.leads, within_s=3.0)  # it need not wait for the lease to expire
        await until(lambda: not worker.held)
        worker.may_load.set()
        assert (await second.acquired("r2", "alpha")).granted is not None


async def test_a_leader_without_redis_steps_down_and_may_win_again(tmp_path: Path) -> None:
    with run_redis() as redis:
        async with (
            run_store(redis.url),
            run_worker(redis.url) as worker,
            run_scheduler(redis.url, tmp_path) as scheduler,
        ):
            await until(scheduler.leads)
            await scheduler.deploy("/m/alpha")
            got = await scheduler.acquired("r1", "alpha")
            old_epoch = await epoch_of(scheduler)
            request = pb2.WatchRoutesRequest(router_id="router-1")
            watch = scheduler.stub.WatchRoutes(request, timeout=CALL_S)
            await watch.read()
            redis.hang()
            hung_s = time.monotonic()
            assert await watch.read() is grpc.aio.EOF
            assert 2.0 < time.monotonic() - hung_s < 6.0
            assert not await scheduler.leads()
            redis.resume()
            await until(scheduler.leads)
            assert await epoch_of(scheduler) >= old_epoch  # won back in time, it keeps its epoch
            again = await scheduler.acquired("r2", "alpha")
            assert again.instance_id == got.instance_id
            assert len(worker.loads) == 1
            other = await scheduler.acquired("r3", "alpha", got.instance_id)
            assert other.instance_id != got.instance_id


async def test_a_redis_that_lost_everything_gets_the_deployments_back(tmp_path: Path) -> None:
    with run_redis() as redis:
        async with (
            run_store(redis.url),
            run_worker(redis.url) as worker,
            run_scheduler(redis.url, tmp_path) as first,
            run_scheduler(redis.url, tmp_path) as second,
        ):
            await until(first.leads)
            await first.deploy("/m/alpha")
            await first.deploy("/m/beta")
            got = await first.acquired("r1", "alpha")
            old_epoch = await epoch_of(first)
            await until(lambda: '"deployments followed", "count": 2' in second.log)
            await asyncio.to_thread(redis.restart)

            async def one_leads_anew() -> bool:
                for each in (first, second):
                    with suppress(grpc.aio.AioRpcError):  # it may lose the lead in between
                        if await each.leads() and await epoch_of(each) > old_epoch:
                            return True
                return False

            await until(one_leads_anew)
            leader = first if await first.leads() else second
            assert await leader.models() == ["alpha", "beta"]
            again = await leader.acquired("r2", "alpha")
            assert again.instance_id == got.instance_id
            assert len(worker.loads) == 1


async def test_the_stored_form_of_a_newer_version_is_left_alone(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_store(redis_url), Redis.from_url(redis_url, decode_responses=True) as redis:
        key = "brisk:v1:{leader}:deployments"
        newer = '{"schema": 2, "model": "something new"}'
        await redis.hset(key, "gamma", newer)
        async with run_scheduler(redis_url, tmp_path) as scheduler:
            await until(scheduler.leads)
            await scheduler.deploy("/m/alpha")
            assert await scheduler.models() == ["alpha"]
            assert "stored deployment not understood" in scheduler.log
        assert await redis.hget(key, "gamma") == newer
