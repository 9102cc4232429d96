"""Whatever comes together, each request ends in its tokens or one typed error and leaves nothing.

Seeds choose what workers do, when clients leave, and what the scheduler says meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from services.common.errors import BriskError, FailedPreconditionError, Reason, UnavailableError
from services.common.model import StartProgress, StartReport
from services.router.admission import Admission
from services.router.dispatch import Dispatcher
from services.router.ports import RouteUpdate
from services.router.relay import RelayConfig, relay
from services.router.routes import RouteTable
from tests.fakes.workers import FakeWorker, FakeWorkers, continuation
from tests.unit.router.doubles import PROMPT, SEED, FakeScheduler, a_job, a_route, until

REQUESTS = 24
INSTANCES = 8
TOLD = {Reason.WORKER_LOST, Reason.MODEL_NOT_FOUND, Reason.NO_LEADER, Reason.QUEUE_FULL}


def a_worker(dice: random.Random, name: str) -> FakeWorker:
    """Return a worker that is well, or will be lost in one of many ways."""
    gone = FailedPreconditionError("not here", reason=Reason.INSTANCE_GONE)
    leaving = UnavailableError("leaving", reason=Reason.SHUTTING_DOWN, retry_after_s=1.0)
    lives_for = dice.choice([None, None, 0, 1, 5])
    return FakeWorker(
        name=name,
        lives_for=lives_for,
        is_silent=bool(lives_for) and dice.random() < 0.3,  # a silent prefill has the deadline
        refusal=dice.choice([None, None, None, None, gone, leaving]),
        ends_at=dice.choice([None, None, None, 2]),
        tokens_per_chunk=dice.choice([1, 1, 4]),
    )


class Turmoil:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        names = [f"i{number}" for number in range(INSTANCES)]
        self.routes = [a_route(name, slots=self.dice.choice([1, 2, 4])) for name in names]
        self.workers = FakeWorkers(*(a_worker(self.dice, name) for name in names))
        self.scheduler = FakeScheduler(startable=self.routes[4:], ready=self.routes[:4])
        self.admission = Admission(requests_max=REQUESTS, queue_max=self.dice.choice([8, REQUESTS]))
        self.dispatcher = Dispatcher(
            table=RouteTable(),
            scheduler=self.scheduler,
            admission=self.admission,
            leader_wait_s=0.02,
        )
        for route in self.routes[: self.dice.randrange(4)]:
            self.dispatcher.table.learn(route)
        self.told: set[str] = set()
        self.config = RelayConfig(silence_s_max=0.02)

    async def client(self, number: int) -> None:
        """Be one client, who perhaps leaves early."""
        length = self.dice.randrange(1, 12)
        leaves_after = self.dice.choice([None, None, None, 0, 1, 3])
        expected = continuation(PROMPT, SEED, length)
        got: list[int] = []
        with self.admission.admit():
            job = a_job(f"r{number}", tokens=length)
            events = relay(job, self.dispatcher, self.workers, self.config)
            try:
                async with asyncio.timeout(5.0), aclosing(events):
                    async for event in events:
                        if leaves_after is not None and len(got) >= leaves_after:
                            return
                        if not isinstance(event, StartProgress | StartReport):
                            got += event.token_ids
            except BriskError as error:
                self.told.add(error.reason)
                expected = expected[: len(got)]
            assert got == expected

    async def world(self) -> None:
        """Change routes and leaders while the clients are busy."""
        for epoch in range(1, 30):
            await asyncio.sleep(self.dice.random() * 0.003)
            some = tuple(self.dice.sample(self.routes, self.dice.randrange(4)))
            update = RouteUpdate(
                leader_epoch=self.dice.choice([epoch, 1]),
                is_snapshot=self.dice.random() < 0.3,
                upserted=some,
                removed_instance_ids=tuple(r.instance_id for r in self.dice.sample(self.routes, 2)),
            )
            self.dispatcher.routes_changed(self.dispatcher.table.apply(update))
            self.scheduler.is_leading = self.dice.random() < 0.9
        self.scheduler.is_leading = True


async def run(seed: int) -> Turmoil:
    """Run a turmoil to its end, some clients cut off in the middle; check what each one got."""
    turmoil = Turmoil(seed)
    clients = [asyncio.create_task(turmoil.client(number)) for number in range(REQUESTS)]
    world = asyncio.create_task(turmoil.world())
    for task in turmoil.dice.sample(clients, 4):
        await asyncio.sleep(turmoil.dice.random() * 0.002)
        task.cancel()
    ended = await asyncio.gather(*clients, world, return_exceptions=True)
    assert [e for e in ended if isinstance(e, Exception)] == []
    await turmoil.dispatcher.aclose()
    return turmoil


@pytest.mark.parametrize("seed", range(40))
async def test_each_request_ends_well_and_leaves_nothing(seed: int) -> None:
    turmoil = await run(seed)
    assert turmoil.told <= TOLD
    table = turmoil.dispatcher.table
    assert all(table.outstanding(route.instance_id) == 0 for route in turmoil.routes)
    assert all(worker.running == 0 for worker in turmoil.workers.by_name.values())
    assert (turmoil.admission.requests, turmoil.admission.waiting) == (0, 0)
    assert turmoil.dispatcher._lines == {}  # noqa: SLF001 - the promise is about memory
    await until(lambda: turmoil.scheduler.waiting == 0)


async def test_the_turmoil_is_real() -> None:
    told: set[str] = set()
    given_up, released, excluded = 0, 0, 0
    for seed in range(8):
        turmoil = await run(seed)
        told |= turmoil.told
        given_up += sum(len(worker.given_up) for worker in turmoil.workers.by_name.values())
        released += len(turmoil.scheduler.released)
        excluded += sum(bool(ids) for _, ids in turmoil.scheduler.acquired)
    assert {Reason.WORKER_LOST, Reason.QUEUE_FULL} <= told
    assert given_up
    assert released
    assert excluded
