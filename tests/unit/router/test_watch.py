"""The route table follows whichever scheduler leads, and stays usable while none does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.router.admission import Admission
from services.router.dispatch import Dispatcher
from services.router.ports import RouteUpdate
from services.router.routes import NOTHING_EXCLUDED, RouteTable
from services.router.watch import watch_routes
from tests.fakes.workers import FakeWorkers
from tests.unit.router.doubles import MODEL, FakeScheduler, a_route, until


class Watched:
    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.workers = FakeWorkers()
        self.dispatcher = Dispatcher(
            table=RouteTable(),
            scheduler=self.scheduler,
            admission=Admission(requests_max=10, queue_max=10),
            leader_wait_s=0.05,
        )

    def says(self, *instance_ids: str, epoch: int = 1, is_snapshot: bool = True) -> None:
        self.scheduler.updates.put_nowait(
            RouteUpdate(
                leader_epoch=epoch,
                is_snapshot=is_snapshot,
                upserted=tuple(a_route(i) for i in instance_ids),
            )
        )

    def ends(self) -> None:
        self.scheduler.updates.put_nowait(None)

    async def knows(self, count: int) -> None:
        await until(lambda: len(self.dispatcher.table) == count)


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr("services.router.watch._PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr("services.router.watch._PAUSE_LONGEST_S", 0.002)
    watched = Watched()
    task = asyncio.create_task(watch_routes(watched.scheduler, watched.dispatcher, watched.workers))
    yield watched
    assert not task.done(), "the watch never ends by itself"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_routes_are_known_and_their_workers_connected_ahead(watched: Watched) -> None:
    watched.says("a", "b")
    await watched.knows(2)
    assert watched.workers.prepared == ["a.invalid:1", "b.invalid:1"]


async def test_a_lost_leader_leaves_the_routes_and_the_next_one_is_watched(
    watched: Watched,
) -> None:
    watched.says("a")
    await watched.knows(1)
    watched.scheduler.is_leading = False
    watched.ends()
    await until(lambda: watched.scheduler.watches >= 4)
    seat = watched.dispatcher.seat_now(MODEL, NOTHING_EXCLUDED)
    assert seat is not None, "warm requests go on"
    seat.leave()
    watched.scheduler.is_leading = True
    watched.says("b", "c", epoch=2)
    await watched.knows(2)


async def test_those_in_line_hear_of_new_routes(watched: Watched) -> None:
    table = watched.dispatcher.table
    watched.says("a")
    await watched.knows(1)
    taken = [table.take(MODEL, NOTHING_EXCLUDED, 0.0) for _ in range(4)]
    assert None not in taken
    waiting = asyncio.create_task(
        watched.dispatcher._turn(MODEL, NOTHING_EXCLUDED)  # noqa: SLF001 - the line itself
    )
    await asyncio.sleep(0)
    watched.says("b", is_snapshot=False)
    route = await waiting
    assert route is not None
    assert route.instance_id == "b"
