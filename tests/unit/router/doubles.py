"""A scheduler without workers, and jobs and routes in few words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from services.common.deadline import Deadline
from services.common.errors import BriskError, NotFoundError, Reason, UnavailableError
from services.common.model import PhaseDuration, StartPhase, StartProgress, StartReport, Tier
from services.common.placement import Route
from services.common.prompt import TokensPrompt
from services.common.sampling import Sampling
from services.router.job import Job, make_job
from services.router.ports import AcquireEvent, Grant, RouteUpdate

MODEL = "m"
PROMPT = (7, 11)
SEED = 5
COLD = StartReport(
    cold=True,
    source=Tier.SSD,
    phases=(
        PhaseDuration(phase=StartPhase.QUEUE, duration_s=0.001),
        PhaseDuration(phase=StartPhase.LOAD, duration_s=0.002),
    ),
)
LOADING = StartProgress(phase=StartPhase.LOAD, bytes_done=1, bytes_total=2)


async def until(is_true: Callable[[], object]) -> None:
    """Let other tasks run until it is true; the test's timeout is the limit."""
    while not is_true():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0.0005)


def a_job(
    request_id: str = "r1", *, model: str = MODEL, tokens: int = 8, within_s: float = 30.0
) -> Job:
    return make_job(
        request_id=request_id,
        model=model,
        prompt=TokensPrompt(ids=PROMPT),
        sampling=Sampling(seed=SEED, max_tokens=tokens),
        deadline=Deadline.after(within_s),
        want_progress=True,
    )


def a_route(instance_id: str, *, slots: int = 4, model: str = MODEL) -> Route:
    return Route(
        instance_id=instance_id,
        deployment=model,
        worker_address=f"{instance_id}.invalid:1",
        worker_id=f"w-{instance_id}",
        slots=slots,
    )


@dataclass(slots=True, kw_only=True)
class FakeScheduler:
    """Starts the instances in `startable`, in order, and grants those that run.

    Single flight, exclusions, cancellation and leadership behave as the contract says.
    """

    startable: list[Route] = field(default_factory=list)
    started: asyncio.Event | None = None  # starts wait for it
    refusal: BriskError | None = None  # what it answers instead
    is_leading: bool = True
    minds_exclusions: bool = True
    updates: asyncio.Queue[RouteUpdate | None] = field(default_factory=asyncio.Queue)

    ready: list[Route] = field(default_factory=list)
    acquired: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    waiting: int = 0
    given_up: int = 0
    released: list[str] = field(default_factory=list)
    watches: int = 0
    told: list[dict[str, int]] = field(default_factory=list)  # lines, as they were reported

    async def acquire(
        self, grant_id: str, deployment: str, excluded: frozenset[str], deadline: Deadline
    ) -> AsyncGenerator[AcquireEvent]:
        self.acquired.append((grant_id, excluded))
        self._check_leads()
        if self.refusal is not None:
            raise self.refusal
        self.waiting += 1
        try:
            route = self._usable(self.ready, deployment, excluded)
            if route is None:
                route = self._usable(self.startable, deployment, excluded)
                if route is None:
                    raise NotFoundError(f"no model {deployment}", reason=Reason.MODEL_NOT_FOUND)
                yield LOADING
                if self.started is not None:
                    await self.started.wait()
                self._check_leads()
                if route in self.startable:
                    self.startable.remove(route)
                    self.ready.append(route)
            yield Grant(grant_id=grant_id, route=route, start=COLD)
        except (GeneratorExit, asyncio.CancelledError):
            self.given_up += 1
            raise
        finally:
            self.waiting -= 1

    async def report_demand(self, lines: Mapping[str, int], deadline: Deadline) -> None:
        self._check_leads()
        self.told.append(dict(lines))

    async def release(self, grant_id: str, deadline: Deadline) -> None:
        self._check_leads()
        self.released.append(grant_id)

    async def watch_routes(self) -> AsyncGenerator[RouteUpdate]:
        self.watches += 1
        self._check_leads()
        while (update := await self.updates.get()) is not None:
            yield update

    def _check_leads(self) -> None:
        if not self.is_leading:
            raise UnavailableError("nobody leads", reason=Reason.NO_LEADER, retry_after_s=1.0)

    def _usable(
        self, routes: list[Route], deployment: str, excluded: frozenset[str]
    ) -> Route | None:
        for route in routes:
            is_excluded = self.minds_exclusions and route.instance_id in excluded
            if route.deployment == deployment and not is_excluded:
                return route
        return None
