"""What the leader is told: all of it, numbered, each second and at once when it changes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY

from services.common.errors import Reason, UnavailableError
from services.common.placement import Device, InstanceState, WorkerState
from services.worker.engine import DeviceEngine
from services.worker.reports import Identity, StateSource, report_forever
from tests.unit.worker.doubles import until
from tests.unit.worker.instances_house import House

IDENTITY = Identity(worker_id="w", node_id="n", address="127.0.0.1:1")


class Leader:
    """Hears reports, or is away."""

    def __init__(self) -> None:
        self.heard: list[WorkerState] = []
        self.asked = 0
        self.is_away = False
        self.is_new = asyncio.Event()

    async def report(self, state: WorkerState) -> None:
        self.asked += 1
        self.is_new.set()
        if self.is_away:
            raise UnavailableError("nobody leads", reason=Reason.NO_LEADER)
        self.heard.append(state)

    async def next(self) -> None:
        self.is_new.clear()
        async with asyncio.timeout(10):
            await self.is_new.wait()


async def test_the_state_is_the_whole_worker(house: House) -> None:
    source = StateSource(IDENTITY, house.instances)
    await house.load()
    state = source.take()
    assert (state.worker_id, state.node_id, state.address) == ("w", "n", "127.0.0.1:1")
    assert state.devices == (Device(device_id="cpu:0", memory_bytes=1000, free_bytes=200),)
    (instance,) = state.instances
    assert instance.state is InstanceState.READY
    assert (instance.slots, instance.memory_bytes, instance.deployment) == (2, 800, "d")
    assert (instance.running, instance.waiting) == (0, 0)
    assert instance.idle_s is not None
    assert not state.draining
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    calls = [asyncio.create_task(house.tokens(max_tokens=2)) for _ in range(3)]
    await until(lambda: bool(source.take().instances[0].waiting))
    (instance,) = source.take().instances
    assert (instance.running, instance.waiting, instance.idle_s) == (2, 1, None)
    decoder.allowed.release(100)
    await asyncio.gather(*calls)


async def test_a_loading_instance_is_told_too(house: House) -> None:
    house.starter.may_end.clear()
    load = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    (instance,) = StateSource(IDENTITY, house.instances).take().instances
    assert instance.state is InstanceState.LOADING
    assert instance.idle_s is None
    house.starter.may_end.set()
    await load


async def test_each_state_has_a_higher_number(house: House) -> None:
    source = StateSource(IDENTITY, house.instances)
    numbers = [source.take().sequence for _ in range(3)]
    assert numbers == sorted(set(numbers))


async def test_a_change_is_reported_at_once_and_silence_after_a_second(house: House) -> None:
    leader = Leader()
    source = StateSource(IDENTITY, house.instances)
    changed = house.instances.changed
    loop = asyncio.get_running_loop()
    reporting = asyncio.create_task(report_forever(source, changed, leader))
    await leader.next()
    began_s = loop.time()
    await house.load()
    await leader.next()
    assert loop.time() - began_s < 0.9
    while leader.heard[-1].instances[0].state is not InstanceState.READY:
        await leader.next()
    began_s = loop.time()
    await leader.next()  # nothing has changed
    assert 0.5 < loop.time() - began_s < 3
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)


async def test_a_leader_that_is_away_is_asked_again(house: House) -> None:
    leader = Leader()
    leader.is_away = True
    source = StateSource(IDENTITY, house.instances)
    changed = house.instances.changed
    reporting = asyncio.create_task(report_forever(source, changed, leader))
    await leader.next()
    leader.is_away = False
    changed.set()
    await leader.next()
    assert len(leader.heard) == 1
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)


async def test_books_that_do_not_add_up_end_the_reports(house: House) -> None:
    house.ledger._free["cpu:0"] -= 1  # noqa: SLF001 - the fault to be found
    source = StateSource(IDENTITY, house.instances)
    with pytest.raises(RuntimeError, match="held of"):
        await report_forever(source, house.instances.changed, Leader())
    house.ledger._free["cpu:0"] += 1  # noqa: SLF001


async def test_the_state_is_exported_and_what_left_is_not() -> None:
    engine = DeviceEngine("cpu:0")
    engine.start()
    with ThreadPoolExecutor(1) as executor:
        house = House(executor, engine)
        source = StateSource(IDENTITY, house.instances)
        await house.load()
        source.take()

        def value(name: str, **labels: str) -> float | None:
            return REGISTRY.get_sample_value(name, labels)

        assert value("brisk_device_memory_used_bytes", device="cpu:0") == 800
        assert value("brisk_instances", state="ready") == 1
        assert value("brisk_num_requests_running", deployment="d") == 0
        await house.instances.unload("i", 1, only_if_idle=True)
        source.take()
        assert value("brisk_device_memory_used_bytes", device="cpu:0") == 0
        assert value("brisk_num_requests_running", deployment="d") is None
    assert await asyncio.to_thread(engine.close, 10)
