"""The router of the simulated cluster: lines for slots, and acquiring when there is no free one.

As in `services/router/dispatch.py`: a free slot is taken at once, else the request stands in line
and the scheduler is asked; whatever gives a slot first, serves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from services.common.placement import Route
from services.scheduler import actions, events
from services.scheduler.events import Event, Line
from sim.agenda import Agenda
from sim.calibration import Control
from sim.request import Request


class Frontier(Protocol):
    """What the router needs of the cluster."""

    agenda: Agenda

    def tell(self, event: Callable[[float], Event]) -> None:
        """Send an event to the scheduler; `event` is called with its time there."""

    def dispatch(self, instance_id: str, request: Request) -> None:
        """Send a sequence to an instance."""

    def failed(self, request: Request, reason: str) -> None:
        """End a request that got no first token in time, or was refused."""


class Router:
    """All routers as one: they share what they know within moments."""

    def __init__(
        self, frontier: Frontier, control: Control, patience_s: float, *, hears_lines: bool
    ) -> None:
        self._frontier = frontier
        self._control = control
        self._patience_s = patience_s  # a client's, for the first token
        self._hears_lines = hears_lines  # whether the scheduler is told how long lines are
        self._is_line_due = False
        self._lines_told_s = -1.0
        self._lines_told = 0  # how often
        self._has_told_lines = False
        self._routes: dict[str, dict[str, Route]] = {}  # by deployment
        self._by_instance: dict[str, Route] = {}
        self._outstanding: dict[str, int] = {}  # outlives the route: its sequences finish
        self._lines: dict[str, deque[Request]] = {}
        self._acquiring: dict[str, Request] = {}  # by acquire key
        self._touched: dict[str, None] = {}  # deployments to look at before the moment ends

    @property
    def waiting(self) -> int:
        """Return how many requests stand in line."""
        return sum(len(line) for line in self._lines.values())

    def arrive(self, request: Request) -> None:
        """Serve a new request, or let it wait."""
        deployment = request.arrival.deployment
        if deployment not in self._lines and (route := self._free(deployment, request)) is not None:
            self._seat(request, route)
            return
        self._lines.setdefault(deployment, deque()).append(request)
        self._ask(request)
        self._frontier.agenda.later(self._patience_s, self._tired, request)

    def again(self, request: Request, lost: str) -> None:
        """Let a request wait that lost its instance, before those that came later."""
        self._count(lost, -1)
        self._forget(lost)
        request.instance_id = None
        request.excluded |= {lost}
        self._lines.setdefault(request.arrival.deployment, deque()).appendleft(request)
        self._touched[request.arrival.deployment] = None
        self._ask(request)
        self.settle()

    def give_back(self, instance_id: str, deployment: str) -> None:
        """Take a slot back."""
        self._count(instance_id, -1)
        if deployment in self._lines:
            self._touched[deployment] = None
            self.settle()

    def moved(self, request: Request, instance_id: str) -> None:
        """Follow a sequence that was migrated."""
        if request.instance_id is not None:
            self._count(request.instance_id, -1)
        request.instance_id = instance_id
        self._count(instance_id, 1)

    def taken(self, request: Request) -> None:
        """Give a grant back: the worker has the sequence."""
        if request.is_granted:
            self._release(request)

    # --- what the scheduler says ---

    def route_up(self, action: actions.RouteUp) -> None:
        """Learn an instance."""
        self._learn(action.route)

    def route_down(self, action: actions.RouteDown) -> None:
        """Forget an instance; who waited for it asks again."""
        self._forget(action.instance_id)

    def grant(self, action: actions.Grant) -> None:
        """Let a request know its instance."""
        request = self._acquiring.pop(action.request_id, None)
        if request is None:  # it was served meanwhile; its cancellation is on the way
            return
        self._learn(action.route)
        request.is_acquiring, request.is_granted = False, True
        if action.start.cold:
            request.source = action.start.source

    def refuse(self, action: actions.Refuse) -> None:
        """End a request."""
        request = self._acquiring.pop(action.request_id, None)
        if request is None:
            return
        request.is_acquiring = False
        self._lines[request.arrival.deployment].remove(request)
        self._drop_empty(request.arrival.deployment)
        self._frontier.failed(request, action.error.reason)

    def settle(self) -> None:
        """Give out free slots, and ask for those whose last instance has gone."""
        while self._touched:
            deployment = next(iter(self._touched))
            del self._touched[deployment]
            self._serve(deployment)

    # --- inside ---

    def _serve(self, deployment: str) -> None:
        line = self._lines.get(deployment)
        if line is None:
            return
        stay: list[Request] = []
        while line:
            request = line.popleft()
            route = self._free(deployment, request)
            if route is not None:
                self._seat(request, route)
                continue
            stay.append(request)
            if not request.excluded:
                break  # nobody behind can get one either
        line.extendleft(reversed(stay))
        for request in line:
            if not request.is_acquiring and not self._serves(deployment, request):
                self._acquire(request)
        self._drop_empty(deployment)
        self._lines_changed()

    def _ask(self, request: Request) -> None:
        """Ask for an instance, or only say that a line is longer, as the scheduler wants it."""
        self._lines_changed()
        if not self._hears_lines or not self._serves(request.arrival.deployment, request):
            self._acquire(request)

    def _serves(self, deployment: str, request: Request) -> bool:
        """Whether any instance could serve a request, free or not."""
        routes = self._routes.get(deployment, {})
        if not request.excluded:
            return bool(routes)
        return any(instance_id not in request.excluded for instance_id in routes)

    def _lines_changed(self) -> None:
        if self._hears_lines and not self._is_line_due:
            self._is_line_due = True
            agenda = self._frontier.agenda
            due_s = max(agenda.now_s, self._lines_told_s + self._control.lines_gap_s)
            agenda.at(due_s, self._tell_lines)

    def _tell_lines(self) -> None:
        """Say how long all lines are; say it again while there are any."""
        agenda = self._frontier.agenda
        self._is_line_due, self._lines_told_s = False, agenda.now_s
        self._lines_told += 1
        counted = (
            (name, sum(1 for each in line if not each.is_acquiring))
            for name, line in self._lines.items()
        )
        lines = tuple(Line(name, waiting) for name, waiting in counted if waiting)
        if lines or self._has_told_lines:
            self._has_told_lines = bool(lines)
            self._frontier.tell(
                lambda now_s: events.DemandReported(now_s=now_s, router_id="r", lines=lines)
            )
        if lines:
            agenda.later(self._control.lines_repeat_s, self._repeat_lines, self._lines_told)

    def _repeat_lines(self, told: int) -> None:
        if told == self._lines_told and not self._is_line_due:
            self._tell_lines()

    def _drop_empty(self, deployment: str) -> None:
        if not self._lines.get(deployment, True):
            del self._lines[deployment]

    def _free(self, deployment: str, request: Request) -> Route | None:
        """Return the instance with a free slot and the least outstanding sequences."""
        best, least = None, 0
        for instance_id, route in self._routes.get(deployment, {}).items():
            outstanding = self._outstanding.get(instance_id, 0)
            if outstanding >= route.slots or instance_id in request.excluded:
                continue
            if not outstanding:
                return route  # nobody has less
            if best is None or outstanding < least:
                best, least = route, outstanding
        return best

    def _seat(self, request: Request, route: Route) -> None:
        self._count(route.instance_id, 1)
        request.instance_id = route.instance_id
        if request.is_acquiring:
            self._end_acquire(request)
        self._frontier.dispatch(route.instance_id, request)

    def _count(self, instance_id: str, change: int) -> None:
        left = self._outstanding.get(instance_id, 0) + change
        if left:
            self._outstanding[instance_id] = left
        else:
            self._outstanding.pop(instance_id, None)

    def _acquire(self, request: Request) -> None:
        if request.is_granted:
            self._release(request)
        if request.is_acquiring:
            return
        request.acquires += 1
        key = request.acquire_key = f"{request.key}.{request.acquires}"
        request.is_acquiring = True
        self._acquiring[key] = request
        deployment, excluded = request.arrival.deployment, request.excluded
        self._frontier.tell(
            lambda now_s: events.AcquireRequested(
                now_s=now_s, request_id=key, deployment=deployment, excluded=excluded
            )
        )

    def _end_acquire(self, request: Request) -> None:
        key = request.acquire_key
        if request.is_acquiring:
            del self._acquiring[key]
            request.is_acquiring = False
            self._frontier.tell(lambda now_s: events.AcquireCancelled(now_s=now_s, request_id=key))
        elif request.is_granted:
            self._release(request)

    def _release(self, request: Request) -> None:
        key = request.acquire_key
        request.is_granted = False
        self._frontier.tell(lambda now_s: events.Released(now_s=now_s, request_id=key))

    def _tired(self, request: Request) -> None:
        """Let a client leave that got nothing for too long."""
        if request.first_token_s is not None or request.failure or request.instance_id is not None:
            return
        line = self._lines.get(request.arrival.deployment)
        if line is None or request not in line:
            return
        line.remove(request)
        self._drop_empty(request.arrival.deployment)
        self._end_acquire(request)
        self._frontier.failed(request, "DEADLINE_EXCEEDED")

    def _learn(self, route: Route) -> None:
        self._by_instance[route.instance_id] = route
        self._routes.setdefault(route.deployment, {})[route.instance_id] = route
        self._touched[route.deployment] = None

    def _forget(self, instance_id: str) -> None:
        route = self._by_instance.pop(instance_id, None)
        if route is None:
            return
        siblings = self._routes[route.deployment]
        del siblings[instance_id]
        if not siblings:
            del self._routes[route.deployment]
        self._touched[route.deployment] = None
