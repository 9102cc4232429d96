"""Each request gets a slot as soon as there is one, first come first served, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.common.errors import (
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartProgress
from services.router.admission import Admission
from services.router.dispatch import Dispatcher, Seat
from services.router.ports import RouteUpdate
from services.router.routes import NOTHING_EXCLUDED, RouteTable
from tests.unit.router.doubles import COLD, LOADING, MODEL, FakeScheduler, a_job, a_route, until


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


async def test_a_free_slot_is_taken_without_asking_the_scheduler(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a"))
    await guests.ask("r1")
    seat = await guests.seat("r1")
    assert (seat.route.instance_id, seat.start) == ("a", None)
    assert scheduler.acquired == []


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


async def test_those_in_line_move_on_as_soon_as_their_only_instance_is_forgotten(
    guests: Guests, scheduler: FakeScheduler
) -> None:
    guests.dispatcher.table.learn(a_route("a", slots=1))
    await guests.ask("r1")
    await guests.ask("r2")
    scheduler.startable = [a_route("b")]
    guests.dispatcher.forget(a_route("a"))  # r1 still has its seat
    assert (await guests.seat("r2")).route.instance_id == "b"


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
