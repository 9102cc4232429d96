"""The router seats, lines up, asks and tells as the product's does."""

from __future__ import annotations

from collections.abc import Callable

from services.common.model import StartReport, Tier
from services.common.placement import Route
from services.scheduler import actions, events
from services.scheduler.events import Event
from sim.agenda import Agenda
from sim.request import Arrival, Request
from sim.router import Router
from tests.unit.sim.small import CONSTANTS


class Frontier:
    """A cluster that writes down what the router wants of it."""

    def __init__(self, *, hears_lines: bool) -> None:
        self.agenda = Agenda()
        self.told: list[Event] = []
        self.dispatched: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.router = Router(self, CONSTANTS.control, 300.0, hears_lines=hears_lines)

    def tell(self, event: Callable[[float], Event]) -> None:
        self.told.append(event(self.agenda.now_s))

    def dispatch(self, instance_id: str, request: Request) -> None:
        self.dispatched.append((instance_id, request.key))

    def failed(self, request: Request, reason: str) -> None:
        self.failures.append((request.key, reason))

    def ask(self, key: str) -> Request:
        request = Request(key=key, arrival=Arrival(0.0, "m", 10, 10), left=10)
        self.router.arrive(request)
        return request

    def up(self, instance_id: str) -> None:
        self.router.route_up(actions.RouteUp(route=route(instance_id)))
        self.router.settle()

    def kinds(self) -> list[str]:
        return [type(each).__name__ for each in self.told]

    def lines(self) -> list[dict[str, int]]:
        found = (each for each in self.told if isinstance(each, events.DemandReported))
        return [dict(each.lines) for each in found]


def route(instance_id: str) -> Route:
    return Route(
        instance_id=instance_id, deployment="m", worker_address="w", worker_id="w", slots=1
    )


def test_a_free_slot_is_taken_at_once_and_nobody_is_asked() -> None:
    frontier = Frontier(hears_lines=True)
    frontier.up("i")
    frontier.ask("a")
    assert frontier.dispatched == [("i", "a")]
    assert frontier.told == []


def test_without_an_instance_the_scheduler_is_asked_and_lines_do_not_name_who_asks() -> None:
    frontier = Frontier(hears_lines=True)
    frontier.ask("a")
    frontier.agenda.run(5.0)
    assert frontier.kinds() == ["AcquireRequested"]


def test_behind_a_full_instance_requests_stand_in_line_and_that_is_told_and_repeated() -> None:
    frontier = Frontier(hears_lines=True)
    frontier.up("i")
    for key in "abc":
        frontier.ask(key)
    frontier.agenda.run(4.5)
    assert frontier.kinds() == ["DemandReported"] * 3
    assert frontier.lines() == [{"m": 2}] * 3
    frontier.router.give_back("i", "m")
    frontier.router.give_back("i", "m")
    frontier.agenda.run(20.0)
    assert frontier.dispatched == [("i", "a"), ("i", "b"), ("i", "c")]
    assert frontier.lines()[-1] == {}, "an empty line is told, once"
    assert len(frontier.lines()) <= 5


def test_a_scheduler_that_hears_no_lines_is_asked_by_each_in_line() -> None:
    frontier = Frontier(hears_lines=False)
    frontier.up("i")
    for key in "ab":
        frontier.ask(key)
    assert frontier.kinds() == ["AcquireRequested"]
    frontier.router.give_back("i", "m")
    assert frontier.kinds() == ["AcquireRequested", "AcquireCancelled"]


def test_a_grant_is_given_back_when_the_worker_has_the_sequence() -> None:
    frontier = Frontier(hears_lines=True)
    request = frontier.ask("a")
    start = StartReport(cold=True, source=Tier.SSD)
    frontier.router.grant(actions.Grant(request_id="a.1", route=route("i"), start=start))
    frontier.router.settle()
    assert frontier.dispatched == [("i", "a")]
    assert request.source is Tier.SSD
    assert frontier.kinds() == ["AcquireRequested"]
    frontier.router.taken(request)
    assert frontier.kinds() == ["AcquireRequested", "Released"]


def test_who_loses_an_instance_asks_for_another_and_comes_before_the_rest() -> None:
    frontier = Frontier(hears_lines=True)
    frontier.up("i")
    lost, _ = frontier.ask("a"), frontier.ask("b")
    frontier.router.again(lost, "i")
    asked = [each for each in frontier.told if isinstance(each, events.AcquireRequested)]
    assert [each.excluded for each in asked] == [{"i"}, frozenset()]
    frontier.up("i")  # it is back, but not for the one that lost it
    assert frontier.dispatched == [("i", "a"), ("i", "b")]
    frontier.up("j")
    assert frontier.dispatched[2:] == [("j", "a")]
