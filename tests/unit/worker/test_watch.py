"""A worker whose device dies or hangs knows it: its sequences are told, and it leaves."""

import asyncio
import threading

import pytest

from services.common.errors import InternalError, Reason
from services.worker.__main__ import watch
from services.worker.engine import DeviceEngine
from tests.unit.worker.doubles import CountingDecoder, ListSink, job, until
from tests.unit.worker.instances_house import House


async def test_a_step_that_does_not_end_is_noticed_and_told_to_whoever_waits() -> None:
    engine = DeviceEngine("cpu:0")
    engine.start()
    decoder = CountingDecoder()
    decoder.is_gated = True
    engine.load("i", decoder)
    told = threading.Event()
    engine.add(job("a"))
    try:
        with pytest.raises(InternalError, match=r"has not ended within 0\.05 s") as hung:
            async with asyncio.timeout(10):
                await watch(engine, 0.05, told.set)
        assert hung.value.reason == Reason.ENGINE_FAILED
        assert told.is_set()
    finally:
        decoder.allowed.release(100)
        assert await asyncio.to_thread(engine.close, 10)


async def test_an_engine_that_waits_or_works_is_left_alone() -> None:
    engine = DeviceEngine("cpu:0")
    engine.start()
    engine.load("i", CountingDecoder())
    watching = asyncio.create_task(watch(engine, 0.05, lambda: None))
    sink = ListSink()
    engine.add(job("a", tokens=2000, sink=sink))
    await until(sink.ended.is_set)
    done, _ = await asyncio.wait((watching,), timeout=0.05)
    assert not done
    assert engine.step_s == 0.0
    watching.cancel()
    await asyncio.wait((watching,))
    assert await asyncio.to_thread(engine.close, 10)


async def test_sequences_of_a_device_that_hangs_are_told_to_go_on_elsewhere(house: House) -> None:
    await house.load()
    decoder = house.starter.decoders[0]
    decoder.is_gated = True
    stream = house.generate(max_tokens=5)
    taking = asyncio.ensure_future(anext(stream))
    await until(lambda: house.engine.step_s > 0)
    house.instances.give_up("cpu:7")
    house.instances.give_up("cpu:0")
    with pytest.raises(Exception, match="does not answer") as told:
        await taking
    assert getattr(told.value, "reason", None) == Reason.WORKER_LOST
    assert house.instances.is_draining
