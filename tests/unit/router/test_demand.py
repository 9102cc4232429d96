"""The scheduler hears how long lines are when they change, and at the end that they are gone."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.router import demand
from services.router.demand import report_demand
from tests.unit.router.doubles import MODEL, FakeScheduler, a_route, until
from tests.unit.router.guests import Guests


@pytest.fixture
async def reporting(
    guests: Guests, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    monkeypatch.setattr(demand, "_PAUSE_S", 0.001)
    monkeypatch.setattr(demand, "_REPEAT_S", 0.05)
    running = asyncio.ensure_future(report_demand(scheduler, guests.dispatcher))
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.usefixtures("reporting")
async def test_lines_are_told_as_they_grow_repeated_and_told_as_gone(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("r1")
    assert scheduler.told == []  # a free slot is no line
    await guests.ask("r2")
    await guests.ask("r3")
    await until(lambda: {MODEL: 2} in scheduler.told)
    await until(lambda: scheduler.told.count({MODEL: 2}) > 1)
    await guests.leave("r3")
    await until(lambda: scheduler.told[-1] == {MODEL: 1})
    (await guests.seat("r1")).leave()
    await until(lambda: scheduler.told[-1] == {})
    told = len(scheduler.told)
    await asyncio.sleep(0.05)
    assert len(scheduler.told) == told  # nothing is told of nothing


@pytest.mark.usefixtures("reporting")
async def test_while_nobody_leads_nobody_is_told_and_then_all(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.is_leading = False
    guests.dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("r1")
    await guests.ask("r2")
    await asyncio.sleep(0.01)
    scheduler.is_leading = True
    await until(lambda: scheduler.told == [{MODEL: 1}] or len(scheduler.told) > 1)
