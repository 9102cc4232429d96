"""The relay's promise: each token once and in order, or one typed error; nothing left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from services.common.errors import (
    BriskError,
    InternalError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress, StartReport
from services.router.admission import Admission
from services.router.dispatch import Dispatcher
from services.router.relay import RelayConfig, RelayEvent, Transcript, relay
from services.router.routes import RouteTable
from tests.fakes.workers import FakeWorker, FakeWorkers, Message, continuation
from tests.unit.router.doubles import LOADING, PROMPT, SEED, FakeScheduler, a_job, a_route, until

LENGTH = 8
EXPECTED = continuation(PROMPT, SEED, LENGTH)


class House:
    """A router's inside with fakes around it. Workers in `routed` are in the table already."""

    def __init__(
        self,
        *routed: FakeWorker,
        startable: tuple[FakeWorker, ...] = (),
        moves_max: int = 3,
        silence_s_max: float = 0.05,
    ) -> None:
        self.workers = FakeWorkers(*routed, *startable)
        self.scheduler = FakeScheduler(startable=[a_route(w.name) for w in startable])
        self.dispatcher = Dispatcher(
            table=RouteTable(),
            scheduler=self.scheduler,
            admission=Admission(requests_max=100, queue_max=100),
            leader_wait_s=0.05,
        )
        for worker in routed:
            self.dispatcher.table.learn(a_route(worker.name))
        self.config = RelayConfig(moves_max=moves_max, silence_s_max=silence_s_max)
        self.events: list[RelayEvent] = []

    async def run(self, *, tokens: int = LENGTH) -> list[int]:
        """Run one request to its end and return its tokens."""
        job = a_job(tokens=tokens)
        async with aclosing(relay(job, self.dispatcher, self.workers, self.config)) as events:
            async for event in events:
                self.events.append(event)
        return self.tokens

    @property
    def tokens(self) -> list[int]:
        return [
            token
            for event in self.events
            if not isinstance(event, StartProgress | StartReport)
            for token in event.token_ids
        ]

    @property
    def reports(self) -> list[StartReport]:
        return [event for event in self.events if isinstance(event, StartReport)]

    def assert_nothing_left(self) -> None:
        assert all(worker.running == 0 for worker in self.workers.by_name.values())
        assert all(self.dispatcher.table.outstanding(name) == 0 for name in self.workers.by_name)


@pytest.mark.parametrize("per_chunk", [1, 3, 8, 100])
async def test_chunks_pass_as_they_came(per_chunk: int) -> None:
    house = House(FakeWorker(name="a", tokens_per_chunk=per_chunk))
    assert await house.run() == EXPECTED
    assert house.scheduler.acquired == []
    house.assert_nothing_left()


async def test_a_warm_report_comes_right_before_the_first_chunk_and_only_once() -> None:
    house = House(FakeWorker(name="a"))
    await house.run()
    [report] = house.reports
    assert house.events[0] is report
    assert not report.cold
    assert [p.phase for p in report.phases] == [StartPhase.QUEUE, StartPhase.FIRST_TOKEN]


async def test_a_cold_request_sees_progress_then_the_report_then_tokens() -> None:
    house = House(startable=(FakeWorker(name="a"),))
    assert await house.run() == EXPECTED
    assert house.events[0] == LOADING
    prefilling = house.events[1]
    assert isinstance(prefilling, StartProgress)
    assert prefilling.phase is StartPhase.FIRST_TOKEN
    report = house.events[2]
    assert isinstance(report, StartReport)
    assert report.cold
    assert [p.phase for p in report.phases][-1] is StartPhase.FIRST_TOKEN
    await house.dispatcher.aclose()
    assert house.scheduler.released == [house.scheduler.acquired[0][0]]


async def test_the_grant_is_released_as_soon_as_the_worker_has_the_sequence() -> None:
    pace = asyncio.Semaphore(1)
    house = House(startable=(FakeWorker(name="a", pace=pace),))
    async with aclosing(relay(a_job(), house.dispatcher, house.workers, house.config)) as events:
        async for event in events:
            if not isinstance(event, StartProgress | StartReport):
                break
        await house.dispatcher.aclose()
        assert len(house.scheduler.released) == 1


@pytest.mark.parametrize(
    "gone",
    [
        FakeWorker(name="a", lives_for=0),
        FakeWorker(name="a", ends_at=0),
        FakeWorker(name="a", refusal=UnavailableError("leaving", reason=Reason.SHUTTING_DOWN)),
    ],
    ids=["dies", "ends", "leaves"],
)
async def test_a_worker_lost_before_the_first_token_goes_unnoticed(gone: FakeWorker) -> None:
    house = House(gone, startable=(FakeWorker(name="b"),))
    assert await house.run() == EXPECTED
    assert house.scheduler.acquired[0][1] == {"a"}
    assert len(house.reports) == 1
    house.assert_nothing_left()


async def test_an_instance_that_is_gone_leaves_the_table_and_another_one_serves() -> None:
    house = House(FakeWorker(name="b"))
    house.dispatcher.table.learn(a_route("a"))  # comes first by id, but no worker has it
    assert await house.run() == EXPECTED
    assert house.scheduler.acquired == [], "b was there"
    assert len(house.dispatcher.table) == 1


async def test_others_do_not_run_into_the_same_lost_worker() -> None:
    lost = FakeWorker(name="a", lives_for=0)
    house = House(lost, FakeWorker(name="b"))
    await house.run()
    house.events.clear()
    assert await house.run() == EXPECTED
    assert len(lost.requests) == 1


@pytest.mark.parametrize("moves_max", [0, 1, 3])
async def test_the_client_is_told_once_the_moves_are_spent(moves_max: int) -> None:
    doomed = [FakeWorker(name=f"w{number}", lives_for=0) for number in range(6)]
    house = House(*doomed, moves_max=moves_max)
    with pytest.raises(UnavailableError) as told:
        await house.run()
    assert told.value.reason == Reason.WORKER_LOST
    assert told.value.retry_after_s is not None
    assert sum(len(worker.requests) for worker in doomed) == moves_max + 1
    house.assert_nothing_left()


async def test_a_client_never_hears_of_instances() -> None:
    house = House(moves_max=0)
    house.dispatcher.table.learn(a_route("a"))
    with pytest.raises(UnavailableError) as told:
        await house.run()
    assert told.value.reason == Reason.WORKER_LOST


@pytest.mark.parametrize("is_silent", [False, True], ids=["dies", "hangs"])
@pytest.mark.parametrize("lives_for", [1, 4, LENGTH - 1])
async def test_a_worker_lost_later_is_one_typed_error_after_good_tokens(
    *, lives_for: int, is_silent: bool
) -> None:
    lost = FakeWorker(name="a", lives_for=lives_for, is_silent=is_silent)
    house = House(lost, FakeWorker(name="b"))
    with pytest.raises(UnavailableError) as told:
        await house.run()
    assert told.value.reason == Reason.WORKER_LOST
    assert told.value.retry_after_s is not None
    assert house.tokens == EXPECTED[:lives_for]
    house.assert_nothing_left()
    house.events.clear()
    assert await house.run() == EXPECTED, "the next request goes elsewhere"


async def test_a_stream_that_ends_without_a_last_token_is_a_lost_worker() -> None:
    house = House(FakeWorker(name="a", ends_at=3))
    with pytest.raises(UnavailableError, match="before its last token") as told:
        await house.run()
    assert told.value.reason == Reason.WORKER_LOST


async def test_the_first_token_may_take_longer_than_a_silence() -> None:
    pace = asyncio.Semaphore(0)
    house = House(FakeWorker(name="a", pace=pace), silence_s_max=0.02)
    running = asyncio.create_task(house.run())
    _, pending = await asyncio.wait({running}, timeout=0.06)
    assert pending, "three silences later it still waits"
    for _ in range(LENGTH):
        pace.release()
    assert await running == EXPECTED


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "after tokens"])
async def test_tokens_left_out_are_never_passed_over(*, is_late: bool) -> None:
    house = House(FakeWorker(name="a", shifts_index_at=3 if is_late else 0))
    with pytest.raises(InternalError, match="expected"):
        await house.run()
    assert house.tokens == EXPECTED[: 3 if is_late else 0]
    house.assert_nothing_left()


@pytest.mark.parametrize(
    "refusal",
    [
        InvalidArgumentError("too long", reason=Reason.PROMPT_TOO_LONG),
        ResourceExhaustedError("full", reason=Reason.QUEUE_FULL, retry_after_s=2.0),
        InternalError("broken", reason=Reason.ENGINE_FAILED),
    ],
    ids=lambda refusal: refusal.reason,
)
async def test_what_a_worker_refuses_is_told_as_it_is_and_tried_nowhere_else(
    refusal: BriskError,
) -> None:
    other = FakeWorker(name="b")
    house = House(FakeWorker(name="a", refusal=refusal), other)
    with pytest.raises(type(refusal)) as told:
        await house.run()
    assert told.value is refusal
    assert other.requests == []
    house.assert_nothing_left()


async def test_a_client_that_leaves_frees_worker_and_slot_at_once() -> None:
    worker = FakeWorker(name="a")
    house = House(worker)
    events = relay(a_job(), house.dispatcher, house.workers, house.config)
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, StartReport):
                break
        assert worker.running == 1
    assert worker.given_up == ["r1"]
    house.assert_nothing_left()


async def test_a_client_that_leaves_during_prefill_frees_everything() -> None:
    worker = FakeWorker(name="a", pace=asyncio.Semaphore(0))
    house = House(worker)
    running = asyncio.create_task(house.run())
    await until(lambda: worker.running)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert worker.given_up == ["r1"]
    house.assert_nothing_left()


async def test_the_slot_is_free_when_the_last_token_is_out() -> None:
    house = House(FakeWorker(name="a"))
    async with aclosing(
        relay(a_job(tokens=1), house.dispatcher, house.workers, house.config)
    ) as events:
        async for event in events:
            if not isinstance(event, StartReport):
                assert house.dispatcher.table.outstanding("a") == 0


async def test_a_finished_stream_is_left_to_end_by_itself() -> None:
    worker = FakeWorker(name="a")
    await House(worker).run()
    assert worker.given_up == [], "a cancelled call would look like a client that left"


def test_the_transcript_has_all_that_a_continuation_needs() -> None:
    async def messages() -> list[Message]:
        return [m async for m in FakeWorker(name="a", tokens_per_chunk=3).generate(a_job())]

    transcript = Transcript()
    for message in asyncio.run(messages()):
        assert transcript.accept(message) is message.chunk
    assert transcript.prompt == PROMPT
    assert transcript.delivered == EXPECTED
    assert transcript.is_finished
