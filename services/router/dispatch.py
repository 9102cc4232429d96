"""Find each request a slot: a free one at once, else in line for one, else by a start.

Everything here is driven by events. A slot given back, or a change of routes, hands slots to those
in line, first come first served per model. Nothing polls.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Final, Self

from services.common.clock import monotonic_s
from services.common.deadline import Deadline
from services.common.errors import BriskError, Reason, UnavailableError
from services.common.log import get_logger
from services.common.model import StartProgress, StartReport
from services.common.placement import Route
from services.router.admission import Admission
from services.router.backoff import Backoff
from services.router.job import Job
from services.router.ports import Grant, Scheduler
from services.router.routes import RouteTable

log = get_logger(__name__)

AVOID_S: Final = 2.0  # how long an instance that could not be reached gets nothing new
_RELEASE_S_MAX: Final = 5.0
_RELEASES_MAX: Final = 1024  # more than that and the scheduler's own 10 s limit frees the grants
_PAUSE_FIRST_S: Final = 0.05  # between two tries to find a leader
_PAUSE_LONGEST_S: Final = 0.5
_LOST_RETRY_S: Final = 1.0
_LEADER_RETRY_S: Final = 2.0  # a lease is 6 s long and we have waited for most of it


class Seat:
    """A place on an instance: mostly a slot, and the grant that came with it, if any."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        route: Route,
        grant: Grant | None,
        *,
        has_slot: bool = True,
    ) -> None:
        self.route = route
        self._dispatcher = dispatcher
        self._grant = grant
        self._is_taken = has_slot

    @property
    def start(self) -> StartReport | None:
        """How the instance was started, or None if nothing was asked of the scheduler."""
        return self._grant.start if self._grant else None

    def release_grant(self) -> None:
        """Tell the scheduler, in the background, that the worker has the sequence or never will."""
        if self._grant is not None:
            self._dispatcher.release(self._grant)
            self._grant = None

    def leave(self) -> None:
        """Give slot and grant back. Safe to repeat."""
        self.release_grant()
        if self._is_taken:
            self._is_taken = False
            self._dispatcher.give_back(self.route)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()


@dataclass(slots=True, eq=False)
class _Waiter:
    """Someone in line. `turn` gets a route with a slot taken, or None: no instance is left."""

    excluded: frozenset[str]
    turn: asyncio.Future[Route | None] = field(default_factory=asyncio.Future)


class Dispatcher:
    """Owns the route table and the lines of those who wait."""

    def __init__(
        self,
        *,
        table: RouteTable,
        scheduler: Scheduler,
        admission: Admission,
        leader_wait_s: float,
    ) -> None:
        self.table = table
        self._scheduler = scheduler
        self._admission = admission
        self._leader_wait_s = leader_wait_s
        self._lines: dict[str, deque[_Waiter]] = {}  # only models that someone is in line for
        self._releases: set[asyncio.Task[None]] = set()
        self.lines_changed = asyncio.Event()

    def seat_now(self, model: str, excluded: frozenset[str]) -> Seat | None:
        """Return a seat if there is a free slot and nobody is in line for it."""
        if model in self._lines:
            return None
        route = self.table.take(model, excluded, monotonic_s())
        return None if route is None else Seat(self, route, None)

    def visit(self, model: str, excluded: frozenset[str]) -> Seat | None:
        """Return a seat without a slot, for what takes a moment and no decoding."""
        route = self.table.look(model, excluded, monotonic_s())
        return None if route is None else Seat(self, route, None, has_slot=False)

    async def seat(
        self, job: Job, excluded: frozenset[str]
    ) -> AsyncGenerator[StartProgress | Seat]:
        """Yield progress, then a seat on an instance that is not `excluded`.

        Raises ResourceExhaustedError (QUEUE_FULL), UnavailableError (NO_LEADER), or what the
        scheduler answered. Closing it gives up the place in line, or the start, at once. Who
        gets the seat must leave it.
        """
        with self._admission.queue(job.model):
            grant: Grant | None = None
            try:
                while True:
                    route = await self._turn(job.model, excluded)
                    if route is not None:
                        seat, grant = Seat(self, route, grant), None
                        yield seat
                        return
                    async with aclosing(self._acquire(job, excluded)) as events:
                        async for event in events:
                            if isinstance(event, Grant):
                                grant = self._replace(grant, event)
                            else:
                                yield event
            finally:
                self._replace(grant, None)

    def give_back(self, route: Route) -> None:
        """Return a slot; it goes to the first in line."""
        self.table.give_back(route.instance_id)
        self._serve_line(route.deployment)

    def routes_changed(self, models: Iterable[str]) -> None:
        """Hand out slots that have come, and send on those whose last instance has gone."""
        for model in models:
            self._serve_line(model)

    def forget(self, route: Route) -> None:
        """Take an instance that said it is gone out of the table: ids are never used twice."""
        self.table.drop(route.instance_id)
        self._serve_line(route.deployment)

    def avoid(self, route: Route) -> None:
        """Send nothing new for a while to an instance that could not be reached."""
        self.table.avoid(route.instance_id, monotonic_s() + AVOID_S)
        loop = asyncio.get_running_loop()
        loop.call_later(AVOID_S + 0.01, self._serve_line, route.deployment)
        self._serve_line(route.deployment)

    def lines(self, most: int) -> dict[str, int]:
        """Return how many are in line for each model, of at most so many models."""
        return {model: len(line) for model, line in islice(self._lines.items(), most)}

    def release(self, grant: Grant) -> None:
        """Give a grant back in the background, off the request's path."""
        if len(self._releases) >= _RELEASES_MAX:
            log.warning("grant left to expire", limit=_RELEASES_MAX)
            return
        task = asyncio.create_task(self._release(grant))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def aclose(self) -> None:
        """Wait for releases under way, each of which ends within 5 s."""
        if self._releases:
            await asyncio.wait(self._releases, timeout=_RELEASE_S_MAX)

    async def _release(self, grant: Grant) -> None:
        try:
            await self._scheduler.release(grant.grant_id, Deadline.after(_RELEASE_S_MAX))
        except BriskError as error:
            log.info("grant left to expire", reason=error.reason)

    def _replace(self, old: Grant | None, new: Grant | None) -> Grant | None:
        if old is not None:
            self.release(old)
        return new

    async def _turn(self, model: str, excluded: frozenset[str]) -> Route | None:
        """Stand in line and return a route with a slot taken, or None if no instance is usable."""
        waiter = _Waiter(excluded)
        self._lines.setdefault(model, deque()).append(waiter)
        self._serve_line(model)
        if not waiter.turn.done():
            self.lines_changed.set()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled() and (route := waiter.turn.result()) is not None:
                self.give_back(route)  # the slot came in the same moment as the cancellation
            raise
        finally:
            self._leave_line(model, waiter)

    def _learn(self, grant: Grant, excluded: frozenset[str]) -> None:
        if grant.route.instance_id in excluded:  # asking again could go on for ever
            raise UnavailableError(
                "no other instance was found",
                reason=Reason.WORKER_LOST,
                retry_after_s=_LOST_RETRY_S,
            )
        self.table.learn(grant.route)

    def _leave_line(self, model: str, waiter: _Waiter) -> None:
        line = self._lines.get(model)
        if line is None:
            return
        if waiter in line:
            line.remove(waiter)
            self.lines_changed.set()
        if not line:
            del self._lines[model]

    def _serve_line(self, model: str) -> None:
        """Give every slot that is free to the first in line who can use it."""
        line = self._lines.get(model)
        if not line:
            return
        now_s = monotonic_s()
        stay: deque[_Waiter] = deque()
        while line:
            waiter = line.popleft()
            if waiter.turn.done():
                continue
            route = self.table.take(model, waiter.excluded, now_s)
            if route is not None or not self.table.serves(model, waiter.excluded, now_s):
                waiter.turn.set_result(route)
                self.lines_changed.set()
                continue
            stay.append(waiter)
            if not waiter.excluded:
                break  # all slots are taken: nobody behind can get one either
        stay.extend(line)
        if stay:
            self._lines[model] = stay
        else:
            del self._lines[model]

    async def _acquire(
        self, job: Job, excluded: frozenset[str]
    ) -> AsyncGenerator[StartProgress | Grant]:
        """Yield progress and the grant; end without one if a usable route turned up meanwhile.

        While nobody leads it asks again for `leader_wait_s`: an election takes about that long.
        """
        give_up = Deadline.after(self._leader_wait_s)
        backoff = Backoff(first_s=_PAUSE_FIRST_S, longest_s=_PAUSE_LONGEST_S)
        while True:
            grant_id = f"{job.request_id[:47]}.{secrets.token_hex(8)}"  # unique, and 64 at most
            events = self._scheduler.acquire(grant_id, job.model, excluded, job.deadline)
            try:
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, Grant):
                            self._learn(event, excluded)
                            yield event
                            return
                        give_up = Deadline.after(self._leader_wait_s)
                        yield event
            except UnavailableError as error:
                if error.reason != Reason.NO_LEADER:
                    raise
                if give_up.expired:
                    raise _no_leader() from error
            await asyncio.sleep(give_up.remaining_s(at_most=backoff.pause_s()))
            if self.table.serves(job.model, excluded, monotonic_s()):
                return


def _no_leader() -> UnavailableError:
    return UnavailableError(
        "no scheduler leads at the moment",
        reason=Reason.NO_LEADER,
        retry_after_s=_LEADER_RETRY_S,
    )
