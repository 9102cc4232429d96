"""Without an instance a request waits for a start; every grant is given back, exactly once."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import (
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.router.dispatch import Dispatcher
from services.router.ports import RouteUpdate
from services.router.routes import NOTHING_EXCLUDED
from tests.unit.router.doubles import COLD, LOADING, FakeScheduler, a_job, a_route, until
from tests.unit.router.guests import Guests, a_dispatcher


async def test_a_free_slot_is_taken_without_asking_the_scheduler(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a"))
    await guests.ask("r1")
    seat = await guests.seat("r1")
    assert (seat.route.instance_id, seat.start) == ("a", None)
    assert scheduler.acquired == []


async def test_a_model_without_instances_is_acquired_with_progress(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new")]
    await guests.ask("r1")
    seat = await guests.seat("r1")
    assert seat.route.instance_id == "new"
    assert seat.start == COLD
    assert guests.progress == [LOADING]
    [(grant_id, excluded)] = scheduler.acquired
    assert grant_id.startswith("r1.")
    assert len(grant_id) <= 64
    assert excluded == NOTHING_EXCLUDED


async def test_a_grant_is_released_once_and_off_the_path(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new")]
    await guests.ask("r1")
    seat = await guests.seat("r1")
    seat.release_grant()
    assert scheduler.released == [], "it has not run yet"
    seat.leave()
    await guests.dispatcher.aclose()
    assert scheduler.released == [scheduler.acquired[0][0]]


async def test_a_seat_left_early_releases_its_grant_too(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new")]
    await guests.ask("r1")
    with await guests.seat("r1"):
        pass
    await guests.dispatcher.aclose()
    assert len(scheduler.released) == 1


async def test_each_acquisition_has_an_id_of_its_own(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new")]
    long_id = "x" * 64
    for _ in range(2):
        await guests.ask(long_id)
        (await guests.seat(long_id)).leave()
        guests.dispatcher.table.drop("new")
    (first, _), (second, _) = scheduler.acquired
    assert first != second
    assert len(first) == len(second) == 64


async def test_everyone_who_waited_for_a_start_gets_in_when_slots_allow(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new", slots=2)]
    scheduler.started = asyncio.Event()
    for name in ("r1", "r2", "r3"):
        await guests.ask(name)
    assert scheduler.waiting == 3
    scheduler.started.set()
    await until(lambda: len(guests.seated) == 2)
    assert guests.dispatcher.table.outstanding("new") == 2
    (await guests.seat(guests.seated[0])).leave()
    await until(lambda: len(guests.seated) == 3)


async def test_leaving_during_a_start_gives_the_start_up_at_once(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new")]
    scheduler.started = asyncio.Event()
    await guests.ask("r1")
    assert scheduler.waiting == 1
    await guests.leave("r1")
    assert (scheduler.waiting, scheduler.given_up) == (0, 1)


async def test_leaving_with_a_grant_but_no_slot_releases_the_grant(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.startable = [a_route("new", slots=1)]
    scheduler.started = asyncio.Event()
    await guests.ask("r1")
    await guests.ask("r2")
    scheduler.started.set()
    await until(lambda: len(guests.seated) == 1 and scheduler.waiting == 0)
    late = "r2" if guests.seated == ["r1"] else "r1"
    await guests.leave(late)
    await guests.dispatcher.aclose()
    assert len(scheduler.released) == 1
    assert scheduler.released[0].startswith(late)


async def test_those_in_line_acquire_when_the_last_instance_goes(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    dispatcher = guests.dispatcher
    dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("r1")
    await guests.ask("r2")
    scheduler.startable = [a_route("b")]
    update = RouteUpdate(leader_epoch=1, is_snapshot=False, removed_instance_ids=("a",))
    dispatcher.routes_changed(dispatcher.table.apply(update))
    assert (await guests.seat("r2")).route.instance_id == "b"


async def test_excluded_instances_are_passed_on_and_not_used(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a"))
    scheduler.ready = [a_route("a"), a_route("b")]
    await guests.ask("r1", frozenset({"a"}))
    assert (await guests.seat("r1")).route.instance_id == "b"
    assert scheduler.acquired[0][1] == {"a"}


async def test_a_scheduler_that_grants_what_was_excluded_is_not_asked_for_ever(
    scheduler: FakeScheduler, dispatcher: Dispatcher
) -> None:
    scheduler.minds_exclusions = False
    scheduler.ready = [a_route("a")]
    with pytest.raises(UnavailableError) as told:
        async for _ in dispatcher.seat(a_job(), frozenset({"a"})):
            pass
    assert told.value.reason == Reason.WORKER_LOST


async def test_what_the_scheduler_refuses_reaches_the_caller(
    dispatcher: Dispatcher,
) -> None:
    with pytest.raises(NotFoundError):
        async for _ in dispatcher.seat(a_job(), NOTHING_EXCLUDED):
            pass


async def test_without_a_leader_the_caller_is_told_when_to_come_back(
    scheduler: FakeScheduler,
) -> None:
    scheduler.is_leading = False
    dispatcher = a_dispatcher(scheduler, leader_wait_s=0.05)
    with pytest.raises(UnavailableError) as told:
        async for _ in dispatcher.seat(a_job(), NOTHING_EXCLUDED):
            pass
    assert told.value.reason == Reason.NO_LEADER
    assert told.value.retry_after_s is not None
    assert 2 <= len(scheduler.acquired) <= 10


async def test_a_leader_elected_in_time_serves_those_who_waited(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.is_leading = False
    scheduler.startable = [a_route("new")]
    await guests.ask("r1")
    scheduler.is_leading = True
    assert (await guests.seat("r1")).route.instance_id == "new"


async def test_a_route_that_turns_up_ends_the_wait_for_a_leader(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    scheduler.is_leading = False
    await guests.ask("r1")
    guests.dispatcher.table.learn(a_route("a"))
    assert (await guests.seat("r1")).route.instance_id == "a"
