"""A stream ends at its deadline, or with a word of its own before the router is gone."""

from __future__ import annotations

import asyncio

import pytest

from services.common.deadline import Deadline
from services.common.errors import BriskError, DeadlineError, Reason, UnavailableError
from services.router.farewell import Farewell


async def endless(farewell: Farewell, within_s: float = 60.0) -> None:
    async with farewell.stream(Deadline.after(within_s)):
        await asyncio.get_running_loop().create_future()


async def test_a_stream_ends_at_its_deadline() -> None:
    with pytest.raises(DeadlineError):
        await endless(Farewell(), within_s=0.01)


async def test_a_stream_that_outlives_the_farewell_is_told_to_come_back() -> None:
    farewell = Farewell()
    stream = asyncio.create_task(endless(farewell))
    await asyncio.sleep(0)
    farewell.begin(within_s=0.01)
    with pytest.raises(UnavailableError) as told:
        await stream
    assert told.value.reason == Reason.SHUTTING_DOWN
    assert told.value.retry_after_s is not None


async def test_an_earlier_deadline_stays_a_deadline() -> None:
    farewell = Farewell()
    stream = asyncio.create_task(endless(farewell, within_s=0.01))
    await asyncio.sleep(0)
    farewell.begin(within_s=30.0)
    with pytest.raises(DeadlineError):
        await stream


async def test_nobody_new_is_let_in_after_the_farewell_began() -> None:
    farewell = Farewell()
    farewell.begin(within_s=30.0)
    with pytest.raises(UnavailableError) as told:
        await endless(farewell)
    assert told.value.reason == Reason.SHUTTING_DOWN


async def test_streams_that_ended_are_not_ended_again() -> None:
    farewell = Farewell()
    async with farewell.stream(Deadline.after(60.0)):
        pass
    farewell.begin(within_s=0.0)


async def test_a_timeout_from_within_is_not_taken_for_the_deadline() -> None:
    with pytest.raises(TimeoutError) as error:
        async with Farewell().stream(Deadline.after(60.0)):
            raise TimeoutError
    assert not isinstance(error.value, BriskError)
