"""An instance leaves with its last sequence: unloaded, drained with its worker, or cut off."""

import asyncio
from collections.abc import Callable

import pytest

from services.common.errors import (
    AbortedError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.common.placement import InstanceState
from tests.unit.worker.doubles import until
from tests.unit.worker.instances_house import MEMORY, MODEL, House


async def test_unloading_waits_for_sequences_and_takes_no_new_ones(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=5))
    decoder.allowed.release(1)
    await until(lambda: bool(decoder.shown))
    with pytest.raises(FailedPreconditionError) as busy:
        await house.instances.unload("i", 1, only_if_idle=True)
    assert busy.value.reason == Reason.INSTANCE_BUSY
    assert house.ledger.state_of("i") is InstanceState.READY
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    with pytest.raises(FailedPreconditionError) as gone:
        await house.tokens()
    assert gone.value.reason == Reason.INSTANCE_GONE
    with pytest.raises(FailedPreconditionError):
        await house.load()
    assert house.free == 200
    assert not unload.done()
    decoder.allowed.release(1000)
    assert await running == [2, 3, 4, 5, 6]
    await unload
    assert house.free == MEMORY


async def test_memory_is_free_only_once_the_device_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.load()
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(house.engine, "unload", lambda _, done: held.append(done))
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=True))
    await until(lambda: bool(held))
    assert house.free == 200
    assert not unload.done()
    held[0]()
    await unload
    assert house.free == MEMORY


async def test_a_cancelled_unload_goes_on(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=2))
    await until(lambda: house.instances.residents["i"].serving.sequences.running >= 1)  # type: ignore[union-attr]
    unload = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=False))
    await until(lambda: house.ledger.state_of("i") is InstanceState.LEAVING)
    unload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unload
    again = asyncio.create_task(house.instances.unload("i", 1, only_if_idle=True))
    decoder.allowed.release(1000)
    await running
    await again
    assert house.free == MEMORY


async def test_unloading_what_is_unknown_is_fine(house: House) -> None:
    await house.instances.unload("nobody", 1, only_if_idle=True)
    await house.load()
    await house.instances.unload("i", 1, only_if_idle=True)
    await house.instances.unload("i", 1, only_if_idle=True)
    assert house.free == MEMORY


async def test_unloading_what_is_being_loaded_gives_the_load_up(house: House) -> None:
    house.starter.may_end.clear()
    load = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    await house.instances.unload("i", 1, only_if_idle=False)
    assert house.free == MEMORY
    with pytest.raises(AbortedError):
        await load


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = asyncio.create_task(house.tokens(max_tokens=3))
    await until(lambda: bool(house.instances.residents["i"].serving.sequences.running))  # type: ignore[union-attr]
    await house.instances.drain(60)
    for call in (house.tokens(), house.load(house.order("j", 1)), house.instances.check(MODEL)):
        with pytest.raises(UnavailableError) as refused:
            await call
        assert refused.value.reason == Reason.SHUTTING_DOWN
    decoder.allowed.release(1000)
    assert await running == [2, 3, 4]


async def test_draining_gives_loads_up(house: House) -> None:
    house.starter.may_end.clear()
    load = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    await house.instances.drain(60)
    with pytest.raises(UnavailableError) as refused:
        await load
    assert refused.value.reason == Reason.SHUTTING_DOWN
    assert house.free == MEMORY


async def test_what_does_not_finish_in_time_is_told_so(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    running = [asyncio.create_task(house.tokens(max_tokens=3)) for _ in range(3)]
    await until(lambda: house.instances.residents["i"].serving.sequences.waiting >= 1)  # type: ignore[union-attr]
    await house.instances.drain(0.0)
    for each in running:
        with pytest.raises(UnavailableError) as refused:
            await each
        assert refused.value.reason == Reason.SHUTTING_DOWN
