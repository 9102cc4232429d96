"""Loads keep exact books: whatever ends one, its memory is held until all of it is free."""

import asyncio

import pytest

from services.common.errors import (
    DataLossError,
    FailedPreconditionError,
    Reason,
    ResourceExhaustedError,
)
from services.common.model import (
    StartProgress,
)
from services.common.placement import InstanceState
from services.worker.ports import Loaded
from tests.unit.worker.instances_house import LOADED, MEMORY, House


async def test_a_load_reserves_shows_progress_and_ends_ready(house: House) -> None:
    house.starter.may_end.clear()
    events = house.instances.load(house.order(), 1)
    progress = await anext(events)
    assert isinstance(progress, StartProgress)
    assert progress.bytes_done == 1
    assert house.free == 200
    assert house.ledger.state_of("i") is InstanceState.LOADING
    house.starter.may_end.set()
    assert await anext(events) == LOADED
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert house.ledger.state_of("i") is InstanceState.READY


async def test_loading_what_is_here_answers_at_once(house: House) -> None:
    await house.load()
    assert await house.load() == LOADED
    assert len(house.starter.decoders) == 1
    assert house.free == 200


async def test_loading_what_is_being_loaded_or_leaving_is_refused(house: House) -> None:
    house.starter.may_end.clear()
    first = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    with pytest.raises(FailedPreconditionError) as refused:
        await house.load()
    assert refused.value.reason == Reason.INSTANCE_BUSY
    house.starter.may_end.set()
    await first
    assert house.free == 200


async def test_two_loads_cannot_have_the_same_memory(house: House) -> None:
    house.starter.may_end.clear()
    first = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    with pytest.raises(ResourceExhaustedError) as refused:
        await house.load(house.order("other", 300))
    assert refused.value.metadata == {"needed_bytes": "300", "available_bytes": "200"}
    house.starter.may_end.set()
    await first


async def test_what_a_load_takes_beyond_its_order_is_held_until_it_is_gone(house: House) -> None:
    house.starter.takes = 900
    await house.load()
    assert house.free == MEMORY - 900
    await house.instances.unload("i", 1, only_if_idle=False)
    assert house.free == MEMORY
    house.starter.takes = MEMORY + 1
    with pytest.raises(ResourceExhaustedError) as refused:
        await house.load()
    assert refused.value.reason == Reason.INSUFFICIENT_MEMORY
    assert house.free == MEMORY
    assert house.instances.residents == {}


async def test_a_failed_load_leaves_nothing(house: House) -> None:
    house.starter.fails = DataLossError("torn")
    with pytest.raises(DataLossError, match="torn"):
        await house.load()
    assert house.free == MEMORY
    assert house.instances.residents == {}
    house.starter.fails = None
    await house.load()


async def test_a_load_whose_caller_leaves_is_undone_before_its_memory_is_free(
    house: House,
) -> None:
    house.starter.may_end.clear()
    house.starter.cleaning_took_turns = 5
    events = house.instances.load(house.order(), 1)
    await anext(events)
    await events.aclose()
    assert house.starter.cleaned == 1
    assert house.free == MEMORY
    assert house.instances.residents == {}


async def test_a_cancelled_call_undoes_its_load(house: House) -> None:
    house.starter.may_end.clear()
    call = asyncio.create_task(house.load())
    await house.starter.has_begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert house.starter.cleaned == 1
    assert house.free == MEMORY


async def test_a_caller_that_leaves_before_it_took_the_answer_undoes_the_load(
    house: House,
) -> None:
    events = house.instances.load(house.order(), 1)
    while not isinstance(await anext(events), Loaded):
        pass
    await events.aclose()
    assert house.free == MEMORY
    assert house.instances.residents == {}


async def test_an_older_leader_can_neither_load_nor_unload(house: House) -> None:
    await house.load(epoch=5)
    for call in (
        house.load(house.order("j", 1), epoch=4),
        house.instances.unload("i", 4, only_if_idle=False),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await call
        assert refused.value.reason == Reason.STALE_EPOCH
    await house.instances.unload("i", 6, only_if_idle=False)
    with pytest.raises(FailedPreconditionError):
        await house.load(epoch=5)
    assert house.free == MEMORY


async def test_the_leader_is_to_be_told_of_every_change(house: House) -> None:
    changed = house.instances.changed

    async def tells(call: object) -> bool:
        changed.clear()
        await call  # type: ignore[misc]
        return changed.is_set()

    assert await tells(house.load())
    assert await tells(house.tokens(max_tokens=2))
    assert await tells(house.instances.unload("i", 1, only_if_idle=True))
    assert await tells(house.instances.drain(0))
