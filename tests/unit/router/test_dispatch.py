"""Slots go to those in line as soon as there are any, first come first served; none is lost."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import (
    Reason,
    ResourceExhaustedError,
)
from services.router.ports import RouteUpdate
from services.router.routes import NOTHING_EXCLUDED
from tests.unit.router.doubles import MODEL, FakeScheduler, a_route, until
from tests.unit.router.guests import Guests, a_dispatcher


async def test_slots_go_to_those_in_line_in_the_order_they_came(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    names = [f"r{number}" for number in range(5)]
    for name in names:
        await guests.ask(name)
    for position, name in enumerate(names, start=1):
        assert guests.seated == names[:position]
        (await guests.seat(name)).leave()
        for _ in range(20):
            await asyncio.sleep(0)
    assert scheduler.acquired == []
    assert guests.dispatcher.table.outstanding("a") == 0


async def test_nobody_overtakes_the_line(guests: Guests) -> None:
    dispatcher = guests.dispatcher
    dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("first")
    await guests.ask("second")
    dispatcher.table.learn(a_route("b", slots=1))  # a slot that the line has not been told of
    assert dispatcher.seat_now(MODEL, NOTHING_EXCLUDED) is None
    dispatcher.routes_changed([MODEL])
    await until(lambda: guests.seated == ["first", "second"])


async def test_a_new_instance_serves_the_line(guests: Guests) -> None:
    dispatcher = guests.dispatcher
    dispatcher.table.learn(a_route("a", slots=1))
    for name in ("r1", "r2", "r3"):
        await guests.ask(name)
    update = RouteUpdate(
        leader_epoch=1, is_snapshot=False, upserted=(a_route("b", slots=1), a_route("c", slots=1))
    )
    dispatcher.routes_changed(dispatcher.table.apply(update))
    await until(lambda: guests.seated == ["r1", "r2", "r3"])


async def test_who_leaves_the_line_makes_room_and_takes_no_slot(guests: Guests) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    for name in ("r1", "r2", "r3"):
        await guests.ask(name)
    await guests.leave("r2")
    (await guests.seat("r1")).leave()
    await until(lambda: guests.seated == ["r1", "r3"])
    (await guests.seat("r3")).leave()
    assert guests.dispatcher.table.outstanding("a") == 0


async def test_a_slot_that_comes_in_the_moment_of_leaving_goes_to_the_next(guests: Guests) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    for name in ("r1", "r2", "r3"):
        await guests.ask(name)
    seat = await guests.seat("r1")
    seat.leave()  # r2 has the slot now but has not run yet
    await guests.leave("r2")
    await until(lambda: guests.seated == ["r1", "r3"])
    (await guests.seat("r3")).leave()
    assert guests.dispatcher.table.outstanding("a") == 0


async def test_no_line_is_remembered_once_it_is_empty(guests: Guests) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    for name in ("r1", "r2", "r3"):
        await guests.ask(name)
    await guests.leave("r2")
    await guests.leave("r3")
    assert guests.dispatcher._lines == {}  # noqa: SLF001 - the promise is about memory


async def test_those_in_line_move_on_as_soon_as_their_only_instance_is_forgotten(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("r1")
    await guests.ask("r2")
    scheduler.startable = [a_route("b")]
    guests.dispatcher.forget(a_route("a"))  # r1 still has its seat
    assert (await guests.seat("r2")).route.instance_id == "b"


async def test_someone_with_exclusions_does_not_hold_up_those_behind(guests: Guests) -> None:
    dispatcher = guests.dispatcher
    for instance_id in ("a", "b"):
        dispatcher.table.learn(a_route(instance_id, slots=1))
    await guests.ask("on-a")
    await guests.ask("on-b")
    await guests.ask("picky", frozenset({"a"}))
    await guests.ask("easy")
    seats = {s.route.instance_id: s for s in [await guests.seat("on-a"), await guests.seat("on-b")]}
    seats["a"].leave()
    await until(lambda: guests.seated[2:] == ["easy"])
    seats["b"].leave()
    await until(lambda: guests.seated[2:] == ["easy", "picky"])


async def test_a_full_queue_refuses_with_a_time_and_keeps_its_places(
    scheduler: FakeScheduler,
) -> None:
    guests = Guests(a_dispatcher(scheduler, queue_max=2))
    guests.dispatcher.table.learn(a_route("a", slots=1))
    for name in ("seated", "r1", "r2", "r3"):
        await guests.ask(name)
    with pytest.raises(ResourceExhaustedError) as refused:
        await guests.seat("r3")
    assert refused.value.reason == Reason.QUEUE_FULL
    assert refused.value.retry_after_s is not None
    (await guests.seat("seated")).leave()
    await until(lambda: guests.seated == ["seated", "r1"])
    await guests.leave("r2")


async def test_an_avoided_instance_comes_back_by_itself(
    guests: Guests, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.dispatch.AVOID_S", 0.02)
    scheduler.is_leading = False  # nobody else can bring it back
    guests.dispatcher.table.learn(a_route("a"))
    guests.dispatcher.avoid(a_route("a"))
    await guests.ask("r1")
    assert guests.seated == []
    assert (await guests.seat("r1")).route.instance_id == "a"


async def test_the_line_moves_on_when_the_avoided_instance_is_good_again(
    guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.dispatch.AVOID_S", 0.02)
    for instance_id in ("a", "b"):
        guests.dispatcher.table.learn(a_route(instance_id, slots=1))
    guests.dispatcher.avoid(a_route("a"))
    await guests.ask("r1")
    await guests.ask("r2")
    assert guests.seated == ["r1"]
    assert (await guests.seat("r2")).route.instance_id == "a"
