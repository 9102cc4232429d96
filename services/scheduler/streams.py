"""What callers wait on: bounded, and never a reason for the core to wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from services.common.errors import BriskError
from services.common.limits import AdmissionGate
from services.common.log import bound_request_id
from services.common.model import StartProgress
from services.common.placement import Route
from services.scheduler.actions import Grant

CHANGES_MAX: Final = 5000  # of one message; more follow in the next
_PROGRESS_MAX: Final = 8  # a slow reader misses older progress, nothing else


class Mailbox:
    """What one request hears: some progress, then a grant or a refusal."""

    def __init__(self) -> None:
        self.request_id = bound_request_id()  # as it is in the log
        self._progress: deque[StartProgress] = deque(maxlen=_PROGRESS_MAX)
        self._outcome: Grant | BriskError | None = None
        self._changed = asyncio.Event()

    def tell(self, progress: StartProgress) -> None:
        """Put progress in."""
        self._progress.append(progress)
        self._changed.set()

    def settle(self, outcome: Grant | BriskError) -> None:
        """Put the last word in."""
        self._outcome = outcome
        self._changed.set()

    async def next(self) -> StartProgress | Grant:
        """Return what comes next; raises the refusal. Cancelling loses nothing."""
        while True:
            if self._progress:
                return self._progress.popleft()
            if isinstance(self._outcome, BriskError):
                raise self._outcome
            if self._outcome is not None:
                return self._outcome
            self._changed.clear()
            await self._changed.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteChange:
    """A step of the route table."""

    is_snapshot: bool
    upserted: tuple[Route, ...] = ()
    removed: tuple[str, ...] = ()


class _Watch:
    """Changes that one watcher has not taken yet; at most one per instance."""

    def __init__(self) -> None:
        self.pending: dict[str, Route | None] = {}  # None: removed
        self.changed = asyncio.Event()

    def note(self, instance_id: str, route: Route | None) -> None:
        self.pending[instance_id] = route
        self.changed.set()

    def take(self, *, is_snapshot: bool = False) -> RouteChange:
        """Return what is pending, or as much of it as one message may hold."""
        taken = dict(islice(self.pending.items(), CHANGES_MAX))
        for instance_id in taken:
            del self.pending[instance_id]
        return RouteChange(
            is_snapshot=is_snapshot,
            upserted=tuple(route for route in taken.values() if route is not None),
            removed=tuple(key for key, route in taken.items() if route is None),
        )


class RouteBoard:
    """The routes as they are now, and who watches them."""

    def __init__(self, watchers_max: int) -> None:
        self._routes: dict[str, Route] = {}
        self._watches: dict[_Watch, None] = {}
        self._gate = AdmissionGate(watchers_max, what="route watches")
        self._is_closed = False

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes by instance."""
        return self._routes

    def up(self, route: Route) -> None:
        """Add a route."""
        self._routes[route.instance_id] = route
        self._note(route.instance_id, route)

    def down(self, instance_id: str) -> None:
        """Remove a route."""
        self._routes.pop(instance_id, None)
        self._note(instance_id, None)

    def close(self) -> None:
        """End all watches after what they have not taken yet."""
        self._is_closed = True
        for watch in self._watches:
            watch.changed.set()

    async def watch(self) -> AsyncGenerator[RouteChange]:
        """Yield all routes, then each change; ends with the board. Closing it ends the watch.

        Raises ResourceExhaustedError (QUEUE_FULL) if there are too many.
        """
        with self._gate.enter():
            watch = _Watch()
            self._watches[watch] = None
            try:
                watch.pending.update(self._routes)
                yield watch.take(is_snapshot=True)
                while watch.pending or not self._is_closed:
                    if watch.pending:
                        yield watch.take()
                    else:
                        watch.changed.clear()
                        await watch.changed.wait()
            finally:
                del self._watches[watch]

    def _note(self, instance_id: str, route: Route | None) -> None:
        for watch in self._watches:
            watch.note(instance_id, route)
