"""Answers are made side by side, end together, and never outstay a client's patience."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from services.common.errors import AbortedError, Reason, ResourceExhaustedError, UnavailableError
from services.common.model import StartProgress, StartReport
from services.common.sampling import seed_of_choice
from services.router.admission import Admission
from services.router.dispatch import Dispatcher
from services.router.farewell import Farewell
from services.router.front import Front, generate
from services.router.job import Job
from services.router.ports import TokenChunk
from services.router.relay import RelayConfig
from services.router.routes import RouteTable
from tests.fakes.workers import FakeWorker, FakeWorkers, continuation
from tests.unit.router.doubles import PROMPT, SEED, FakeScheduler, a_job, a_route, until


@dataclass(slots=True)
class Client:
    """A sink that writes down what it is sent, as long as it reads."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    progress_after_tokens: bool = False
    writing: int = 0
    writing_most: int = 0
    reads: asyncio.Event = field(default_factory=asyncio.Event)

    async def progress(self, progress: StartProgress) -> None:
        self.progress_after_tokens |= bool(self.tokens)

    async def chunk(self, choice: int, chunk: TokenChunk, start: StartReport | None) -> None:
        self.writing += 1
        self.writing_most = max(self.writing, self.writing_most)
        try:
            await self.reads.wait()
            await asyncio.sleep(0)
        finally:
            self.writing -= 1
        if start is not None:
            self.starts.append(choice)
        self.tokens.setdefault(choice, []).extend(chunk.token_ids)


class House:
    """A front over one worker."""

    def __init__(self, *, requests_max: int = 8, unread_s_max: float = 30.0) -> None:
        self.worker = FakeWorker(name="i")
        self.admission = Admission(requests_max=requests_max, queue_max=8)
        table = RouteTable()
        table.learn(a_route("i", slots=2))
        self.front = Front(
            admission=self.admission,
            farewell=Farewell(),
            dispatcher=Dispatcher(
                table=table, scheduler=FakeScheduler(), admission=self.admission, leader_wait_s=0
            ),
            workers=FakeWorkers(self.worker),
            relay=RelayConfig(),
            request_s_default=30.0,
            unread_s_max=unread_s_max,
        )
        self.client = Client()
        self.client.reads.set()

    async def ask(self, choices: int = 1, tokens: int = 4) -> None:
        def job() -> Job:
            return replace(a_job(tokens=tokens), choices=choices)

        await generate(self.front, job, self.client)


async def test_each_answer_is_drawn_from_a_seed_of_its_own() -> None:
    house = House()
    await house.ask(choices=3)
    assert house.client.tokens == {
        index: continuation(PROMPT, seed_of_choice(SEED, index), 4) for index in range(3)
    }
    assert sorted(house.client.starts) == [0, 1, 2]
    assert not house.client.progress_after_tokens


async def test_the_first_of_several_answers_is_the_one_that_would_come_alone() -> None:
    alone, several = House(), House()
    await alone.ask()
    await several.ask(choices=2)
    assert alone.client.tokens[0] == several.client.tokens[0]


async def test_answers_are_written_one_at_a_time() -> None:
    house = House()
    await house.ask(choices=4, tokens=6)
    assert house.client.writing_most == 1


async def test_each_answer_takes_a_permit() -> None:
    house = House(requests_max=3)
    house.worker.pace = asyncio.Semaphore(0)
    running = asyncio.create_task(house.ask(choices=3))
    await until(lambda: house.admission.requests == 3)
    with pytest.raises(ResourceExhaustedError):
        await house.ask()
    for _ in range(12):
        house.worker.pace.release()
    await running
    assert house.admission.requests == 0
    with pytest.raises(ResourceExhaustedError) as refused:
        await house.ask(choices=4)
    assert refused.value.reason == Reason.QUEUE_FULL
    assert house.admission.requests == 0


async def test_an_answer_that_fails_ends_them_all() -> None:
    house = House()
    house.worker.lives_for = 2
    house.front = replace(house.front, relay=RelayConfig(moves_max=0))
    with pytest.raises(UnavailableError) as failed:
        await house.ask(choices=2)
    assert failed.value.reason == Reason.WORKER_LOST
    assert (house.worker.running, house.admission.requests) == (0, 0)


async def test_cancelling_ends_all_answers() -> None:
    house = House()
    house.worker.pace = asyncio.Semaphore(2)
    running = asyncio.create_task(house.ask(choices=2))
    await until(lambda: len(house.client.tokens) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (house.worker.running, house.admission.requests) == (0, 0)


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_client_that_stops_reading_is_given_up_on(choices: int) -> None:
    house = House(unread_s_max=0.02)
    house.client.reads.clear()
    with pytest.raises(AbortedError, match="did not read for") as ended:
        await house.ask(choices)
    assert ended.value.reason == Reason.SLOW_CONSUMER
    assert (house.worker.running, house.admission.requests) == (0, 0)


async def test_a_client_that_reads_slowly_but_reads_gets_all() -> None:
    house = House(unread_s_max=5.0)
    house.client.reads.clear()
    running = asyncio.create_task(house.ask(tokens=6))
    await until(lambda: house.client.writing)
    assert not running.done()
    house.client.reads.set()
    await running
    assert house.client.tokens[0] == continuation(PROMPT, SEED, 6)
