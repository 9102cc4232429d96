"""A dispatcher with a scheduler beside it, and its guests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.router.dispatch import Dispatcher
from tests.unit.router.doubles import FakeScheduler
from tests.unit.router.guests import Guests, a_dispatcher


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
def dispatcher(scheduler: FakeScheduler) -> Dispatcher:
    return a_dispatcher(scheduler)


@pytest.fixture
async def guests(dispatcher: Dispatcher) -> AsyncIterator[Guests]:
    guests = Guests(dispatcher)
    yield guests
    for task in guests.tasks.values():
        task.cancel()
    await asyncio.gather(*guests.tasks.values(), return_exceptions=True)
