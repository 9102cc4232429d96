"""An instance's books: each sequence is admitted in order and ends exactly once."""

import asyncio

import pytest

from services.common.errors import Reason, ResourceExhaustedError
from services.worker.admission import Admission
from services.worker.engine import shutting_down
from services.worker.ports import TokenSink
from services.worker.sampler import Choice
from services.worker.sequences import Sequences
from services.worker.stream import TokenStream
from tests.unit.worker.doubles import HandEngine, job


class House:
    def __init__(self, slots: int = 1, waiting_max: int = 2) -> None:
        self.engine = HandEngine()
        self.changes = 0
        admission = Admission(slots=slots, kv_bytes=100, waiting_max=waiting_max)
        self.sequences = Sequences(self.engine, admission, slots=slots, changed=self.on_change)

    def on_change(self) -> None:
        self.changes += 1

    def open(self, ticket: str, kv_bytes: int = 1) -> TokenStream:
        def make(sink: TokenSink) -> object:
            return job(ticket, tokens=1, sink=sink)  # type: ignore[arg-type]

        return self.sequences.open(ticket, kv_bytes, make)  # type: ignore[arg-type]


async def test_the_next_in_line_starts_when_one_ends() -> None:
    house = House()
    for ticket in "abc":
        house.open(ticket)
    assert house.engine.added == ["a"]
    assert (house.sequences.running, house.sequences.waiting) == (1, 2)
    house.engine.finish("a", 7)
    await asyncio.sleep(0)
    assert house.engine.added == ["a", "b"]
    assert (house.sequences.running, house.sequences.waiting) == (1, 1)


async def test_busy_and_idle_are_told_once_each() -> None:
    house = House(slots=2)
    assert house.sequences.idle_s is not None
    house.open("a")
    assert house.changes == 1
    assert house.sequences.idle_s is None
    house.open("b")
    house.engine.finish("a", 7)
    await asyncio.sleep(0)
    assert house.changes == 1
    house.engine.finish("b", 7)
    await house.sequences.wait_idle()
    assert house.changes == 2
    assert house.sequences.idle_s == pytest.approx(0, abs=5)
    house.sequences.audit()


async def test_a_client_that_leaves_ends_its_running_sequence() -> None:
    house = House()
    house.open("a")
    house.open("b")
    house.sequences.close("a")
    assert house.engine.cancelled == ["a"]
    await asyncio.sleep(0)
    assert house.engine.added == ["a", "b"]


async def test_a_client_that_leaves_the_queue_never_reaches_the_device() -> None:
    house = House()
    house.open("a")
    stream = house.open("b")
    house.open("c")
    house.sequences.close("b")
    assert await stream.take() == ()
    house.engine.finish("a", 7)
    await asyncio.sleep(0)
    assert house.engine.added == ["a", "c"]
    house.sequences.close("b")
    house.sequences.close("a")
    assert house.engine.cancelled == []


async def test_a_refused_sequence_leaves_no_trace() -> None:
    house = House(waiting_max=1)
    with pytest.raises(ResourceExhaustedError):
        house.open("large", 101)
    assert house.sequences.idle_s is not None
    house.open("a")
    house.open("b")
    with pytest.raises(ResourceExhaustedError) as refused:
        house.open("c")
    assert refused.value.reason == Reason.QUEUE_FULL
    assert refused.value.retry_after_s is not None
    assert 0.1 <= refused.value.retry_after_s <= 60
    with pytest.raises(ResourceExhaustedError):
        house.sequences.refuse_if_full()
    house.engine.finish("a", 7)
    await asyncio.sleep(0)
    house.engine.finish("b", 7)
    await house.sequences.wait_idle()
    assert house.engine.added == ["a", "b"]


async def test_aborting_tells_running_and_waiting_clients_at_once() -> None:
    house = House()
    streams = [house.open(ticket) for ticket in "abc"]
    house.sequences.abort_all(shutting_down())
    for stream in streams:
        with pytest.raises(type(shutting_down())):
            await stream.take()
    assert set(house.engine.cancelled) >= {"a"}
    await house.sequences.wait_idle()


async def test_the_streams_room_wakes_the_engine() -> None:
    house = House()
    stream = house.open("a")
    running = house.engine.jobs["a"]
    while running.sink.has_room():
        running.sink.put(running.continuation.accept(Choice(1)))
    await asyncio.sleep(0)
    await stream.take()
    assert house.engine.wakes == 1
