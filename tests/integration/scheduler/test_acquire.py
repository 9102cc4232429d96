"""Acquire over real gRPC: one load for all who wait, cancelled when nobody does any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from brisk.common.v1 import model_pb2, placement_pb2
from brisk.scheduler.v1 import scheduler_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.fakes.store_server import FakeStoreServer, run_store
from tests.fakes.worker_server import FakeWorkerServer, run_worker
from tests.integration.scheduler.house import CALL_S, Scheduler, run_scheduler, until

DEVICE_BYTES = 3000  # a model with 4 slots takes 1000 + 4 * 128 bytes


@dataclass(slots=True, kw_only=True)
class House:
    """A scheduler with one worker and one store manager."""

    scheduler: Scheduler
    worker: FakeWorkerServer
    store: FakeStoreServer


@pytest.fixture
async def house(redis_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(run_store(redis_url))
        worker = await stack.enter_async_context(
            run_worker(redis_url, devices={"cpu:0": DEVICE_BYTES})
        )
        scheduler = await stack.enter_async_context(run_scheduler(redis_url, tmp_path))
        await until(scheduler.leads)
        yield House(scheduler=scheduler, worker=worker, store=store)


async def test_a_cold_acquire_tells_progress_then_grants(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    got = await house.scheduler.acquired("r1", "alpha")
    phases = [each.phase for each in got.progress]
    assert phases[-2:] == [model_pb2.START_PHASE_PLACEMENT, model_pb2.START_PHASE_LOAD]
    assert got.granted is not None
    assert got.granted.start.cold
    assert got.granted.route.worker_address == house.worker.address
    assert got.granted.route.slots == 4
    (order,) = house.worker.loads
    assert (order.deployment, order.device_id, order.memory_bytes) == ("alpha", "cpu:0", 1512)
    assert order.context_tokens_max == 128
    warm = await house.scheduler.acquired("r2", "alpha")
    assert warm.granted is not None
    assert not warm.granted.start.cold
    assert warm.granted.start.source == model_pb2.TIER_DEVICE


async def test_nobody_is_granted_a_load_that_could_still_be_undone(house: House) -> None:
    # A worker undoes a load whose stream is cancelled before it has ended it.
    await house.scheduler.deploy("/m/alpha")
    house.worker.may_end_load.clear()
    waiting = asyncio.ensure_future(house.scheduler.acquired("r1", "alpha"))
    await house.worker.told_loaded.wait()
    for _ in range(20):  # round trips in which a grant would have come
        (instance,) = await house.scheduler.instances()
        assert instance.state == placement_pb2.INSTANCE_STATE_LOADING
    assert not waiting.done()
    house.worker.may_end_load.set()
    got = await waiting
    assert list(house.worker.held) == [got.instance_id]
    assert house.worker.cancelled == []


async def test_the_request_id_goes_with_the_load(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    request = pb2.AcquireRequest(request_id="grant-1", deployment="alpha")
    call = house.scheduler.stub.Acquire(
        request, timeout=CALL_S, metadata=(("x-request-id", "ask-17"),)
    )
    async for _ in call:
        pass
    assert house.worker.request_ids == ["ask-17"]


async def test_twenty_concurrent_acquires_make_one_load(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    house.worker.may_load.clear()
    calls = [asyncio.ensure_future(house.scheduler.acquired(f"r{n}", "alpha")) for n in range(20)]
    await until(lambda: house.worker.loads)
    await until(lambda: house.scheduler.log.count('"kind": "AcquireRequested"') == 20)
    house.worker.may_load.set()
    got = await asyncio.gather(*calls)
    assert len({each.instance_id for each in got}) == 1
    assert len(house.worker.loads) == 1


async def test_the_last_waiter_that_leaves_cancels_the_load(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    house.worker.may_load.clear()
    first, second = house.scheduler.acquire("r1", "alpha"), house.scheduler.acquire("r2", "alpha")
    await first.read()
    await second.read()
    await until(lambda: house.worker.loads)
    first.cancel()
    await until(lambda: '"kind": "AcquireCancelled"' in house.scheduler.log)
    assert house.worker.cancelled == []
    second.cancel()
    await until(lambda: house.worker.cancelled == [house.worker.loads[0].instance_id])
    assert house.worker.held == {}
    house.worker.may_load.set()
    again = await house.scheduler.acquired("r3", "alpha")
    assert again.instance_id != house.worker.cancelled[0]


async def test_an_idle_instance_makes_room_and_a_busy_one_is_waited_for(house: House) -> None:
    for name in ("alpha", "beta"):
        await house.scheduler.deploy(f"/m/{name}")
    first = await house.scheduler.acquired("r1", "alpha")
    house.worker.busy(first.instance_id)
    await house.scheduler.release("r1")
    waiting = asyncio.ensure_future(house.scheduler.acquired("r2", "beta"))
    await until(lambda: "waiting for an idle device" in house.scheduler.log)
    assert len(house.worker.loads) == 1
    house.worker.busy(first.instance_id, running=0)
    second = await waiting
    assert second.granted is not None
    assert {each.instance_id for each in house.worker.unloads} == {first.instance_id}
    assert all(each.only_if_idle for each in house.worker.unloads)
    assert house.worker.used("cpu:0") <= DEVICE_BYTES


async def test_keep_alive_scales_to_zero_and_the_route_goes_first(house: House) -> None:
    await house.scheduler.deploy("/m/alpha", keep_alive=Duration())
    watch = house.scheduler.stub.WatchRoutes(
        pb2.WatchRoutesRequest(router_id="router-1"), timeout=CALL_S
    )
    snapshot = await watch.read()
    assert isinstance(snapshot, pb2.WatchRoutesResponse)
    assert snapshot.is_snapshot
    assert snapshot.leader_epoch > 0
    got = await house.scheduler.acquired("r1", "alpha")
    up = await watch.read()
    assert isinstance(up, pb2.WatchRoutesResponse)
    assert [route.instance_id for route in up.upserted] == [got.instance_id]
    assert not up.is_snapshot
    await house.scheduler.release("r1")
    down = await watch.read()
    assert isinstance(down, pb2.WatchRoutesResponse)
    assert list(down.removed_instance_ids) == [got.instance_id]
    await until(lambda: not house.worker.held)
    assert await house.scheduler.models() == ["alpha"]


async def test_an_instance_that_turns_out_busy_gets_its_route_back(house: House) -> None:
    await house.scheduler.deploy("/m/alpha", keep_alive=Duration(seconds=1))
    got = await house.scheduler.acquired("r1", "alpha")
    await house.scheduler.release("r1")

    async def is_idle() -> bool:
        (instance,) = await house.scheduler.instances()
        return instance.HasField("keep_alive_left")

    await until(is_idle)
    house.worker.is_silent = True
    house.worker.busy(got.instance_id)  # and the scheduler does not hear of it
    await until(lambda: "UnloadRefused" in house.scheduler.log)
    house.worker.is_silent = False
    again = await house.scheduler.acquired("r2", "alpha")
    assert again.instance_id == got.instance_id
    assert len(house.worker.loads) == 1


async def test_a_load_that_cannot_succeed_refuses_its_waiter_without_another_try(
    house: House,
) -> None:
    await house.scheduler.deploy("/m/alpha")
    house.worker.refusals.append(InvalidArgumentError("bad tensor", reason=Reason.INVALID_MODEL))
    got = await house.scheduler.acquired("r1", "alpha")
    assert isinstance(got.error, InvalidArgumentError)
    assert got.error.reason == Reason.INVALID_MODEL
    assert got.error.message == "bad tensor"
    assert len(house.worker.loads) == 1


async def test_a_load_that_failed_by_chance_is_repeated(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    house.worker.refusals.append(UnavailableError("store away", reason=Reason.STORE_UNREACHABLE))
    got = await house.scheduler.acquired("r1", "alpha")
    assert got.granted is not None
    assert len(house.worker.loads) == 2


async def test_what_can_never_be_is_refused_at_once(house: House) -> None:
    await house.scheduler.deploy("/m/alpha", slots=100)
    unknown = await house.scheduler.acquired("r1", "alpa")
    assert isinstance(unknown.error, NotFoundError)
    assert "did you mean alpha" in unknown.error.message
    large = await house.scheduler.acquired("r2", "alpha")
    assert isinstance(large.error, ResourceExhaustedError)
    assert large.error.reason == Reason.INSUFFICIENT_MEMORY
    assert large.error.metadata["needed_bytes"] == str(1000 + 100 * 128)
    assert large.error.metadata["available_bytes"] == str(DEVICE_BYTES)
    bad = await house.scheduler.acquired("no good id", "alpha")
    assert isinstance(bad.error, InvalidArgumentError)
    crowd = await house.scheduler.acquired("r3", "alpha", *(f"i{n}" for n in range(65)))
    assert isinstance(crowd.error, InvalidArgumentError)


async def test_two_open_calls_cannot_share_an_id(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    house.worker.may_load.clear()
    first = asyncio.ensure_future(house.scheduler.acquired("r1", "alpha"))
    await until(lambda: house.worker.loads)
    second = await house.scheduler.acquired("r1", "alpha")
    assert isinstance(second.error, InvalidArgumentError)
    house.worker.may_load.set()
    assert (await first).granted is not None


async def test_metrics_tell_what_happened(house: House) -> None:
    await house.scheduler.deploy("/m/alpha")
    await house.scheduler.acquired("r1", "alpha")
    await house.scheduler.acquired("r2", "alpha")
    await house.scheduler.acquired("r3", "nothing")

    async def told() -> bool:
        text = await house.scheduler.metrics()
        return all(
            line in text
            for line in (
                "brisk_scheduler_is_leader 1.0",
                'brisk_scheduler_acquires_total{outcome="cold"} 1.0',
                'brisk_scheduler_acquires_total{outcome="warm"} 1.0',
                'brisk_scheduler_acquires_total{outcome="MODEL_NOT_FOUND"} 1.0',
                'brisk_scheduler_starts_total{outcome="ready"} 1.0',
                'brisk_scheduler_start_phase_seconds_count{phase="placement"} 1.0',
                'brisk_scheduler_instances{state="ready"} 1.0',
                "brisk_scheduler_workers 1.0",
                "brisk_scheduler_queue_length 0.0",
            )
        )

    await until(told)
