"""Requests that wait for seats, each in a task of its own."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from services.common.model import StartProgress
from services.router.admission import Admission
from services.router.dispatch import Dispatcher, Seat
from services.router.routes import NOTHING_EXCLUDED, RouteTable
from tests.unit.router.doubles import MODEL, FakeScheduler, a_job


def a_dispatcher(
    scheduler: FakeScheduler, *, queue_max: int = 100, leader_wait_s: float = 0.2
) -> Dispatcher:
    return Dispatcher(
        table=RouteTable(),
        scheduler=scheduler,
        admission=Admission(requests_max=1000, queue_max=queue_max),
        leader_wait_s=leader_wait_s,
    )


class Guests:
    """Requests that each wait for a seat in a task of their own."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.tasks: dict[str, asyncio.Task[Seat]] = {}
        self.seated: list[str] = []
        self.progress: list[StartProgress] = []

    async def ask(self, name: str, excluded: frozenset[str] = NOTHING_EXCLUDED) -> None:
        """Have `name` ask and come to rest: seated or waiting."""
        self.tasks[name] = asyncio.create_task(self._ask(name, excluded))
        for _ in range(20):
            await asyncio.sleep(0)

    async def seat(self, name: str) -> Seat:
        return await self.tasks[name]

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    async def _ask(self, name: str, excluded: frozenset[str]) -> Seat:
        seat = self.dispatcher.seat_now(MODEL, excluded)
        if seat is None:
            async with aclosing(self.dispatcher.seat(a_job(name), excluded)) as events:
                async for event in events:
                    if isinstance(event, Seat):
                        seat = event
                    else:
                        self.progress.append(event)
        assert seat is not None
        self.seated.append(name)
        return seat
