"""Callers wait on bounded things: a slow one misses progress, never its answer or a route."""

import asyncio
from contextlib import aclosing

import pytest

from services.common.errors import NotFoundError, ResourceExhaustedError
from services.common.model import StartPhase, StartProgress
from services.common.placement import Route
from services.scheduler import streams
from services.scheduler.actions import Grant
from services.scheduler.grants import warm_report
from services.scheduler.streams import Mailbox, RouteBoard, RouteChange
from tests.unit.scheduler.doubles import settled


def route(instance_id: str) -> Route:
    return Route(
        instance_id=instance_id, deployment="m", worker_address="w:1", worker_id="w", slots=4
    )


GRANT = Grant(request_id="r1", route=route("i1"), start=warm_report())


def progress(done: int) -> StartProgress:
    return StartProgress(phase=StartPhase.LOAD, bytes_done=done, bytes_total=100)


async def test_progress_comes_in_order_and_the_grant_last() -> None:
    mailbox = Mailbox()
    mailbox.tell(progress(1))
    mailbox.tell(progress(2))
    mailbox.settle(GRANT)
    assert [await mailbox.next() for _ in range(3)] == [progress(1), progress(2), GRANT]


async def test_a_slow_reader_misses_old_progress_only() -> None:
    mailbox = Mailbox()
    for done in range(100):
        mailbox.tell(progress(done))
    mailbox.settle(GRANT)
    heard = [await mailbox.next() for _ in range(9)]
    assert heard == [*(progress(done) for done in range(92, 100)), GRANT]


async def test_a_refusal_is_raised() -> None:
    mailbox = Mailbox()
    mailbox.settle(NotFoundError("no"))
    with pytest.raises(NotFoundError):
        await mailbox.next()


async def test_a_reader_waits_for_what_is_not_there_yet() -> None:
    mailbox = Mailbox()
    reading = asyncio.ensure_future(mailbox.next())
    await settled()
    assert not reading.done()
    mailbox.settle(GRANT)
    assert await reading == GRANT


async def test_a_watch_begins_with_everything_and_goes_on_with_changes() -> None:
    board = RouteBoard(watchers_max=1)
    board.up(route("i1"))
    async with aclosing(board.watch()) as watch:
        assert await anext(watch) == RouteChange(is_snapshot=True, upserted=(route("i1"),))
        board.up(route("i2"))
        board.down("i1")
        assert await anext(watch) == RouteChange(
            is_snapshot=False, upserted=(route("i2"),), removed=("i1",)
        )


async def test_a_slow_watcher_hears_the_last_word_on_each_instance() -> None:
    board = RouteBoard(watchers_max=1)
    async with aclosing(board.watch()) as watch:
        await anext(watch)
        for _ in range(50):
            board.up(route("i1"))
            board.down("i1")
            board.down("i2")
            board.up(route("i2"))
        assert await anext(watch) == RouteChange(
            is_snapshot=False, upserted=(route("i2"),), removed=("i1",)
        )


async def test_a_large_table_comes_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHANGES_MAX", 2)
    board = RouteBoard(watchers_max=1)
    for number in range(3):
        board.up(route(f"i{number}"))
    async with aclosing(board.watch()) as watch:
        first = await anext(watch)
        assert first == RouteChange(is_snapshot=True, upserted=(route("i0"), route("i1")))
        board.down("i2")
        assert await anext(watch) == RouteChange(is_snapshot=False, removed=("i2",))


async def test_a_closed_board_ends_its_watches_after_the_last_change() -> None:
    board = RouteBoard(watchers_max=2)
    async with aclosing(board.watch()) as behind, aclosing(board.watch()) as waiting:
        await anext(behind)
        await anext(waiting)
        ended = asyncio.ensure_future(anext(waiting, None))
        await settled()
        board.close()
        assert await ended is None
        board.up(route("i1"))
        assert (await anext(behind)).upserted == (route("i1"),)
        assert await anext(behind, None) is None


async def test_there_are_only_so_many_watches_and_a_closed_one_makes_room() -> None:
    board = RouteBoard(watchers_max=1)
    async with aclosing(board.watch()) as first:
        await anext(first)
        async with aclosing(board.watch()) as second:
            with pytest.raises(ResourceExhaustedError):
                await anext(second)
    async with aclosing(board.watch()) as third:
        assert (await anext(third)).is_snapshot
