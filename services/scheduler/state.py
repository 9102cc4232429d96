"""All that the core knows. Soft: workers' reports rebuild it, only deployments are durable.

One `decide` changes it at a time, and nobody else does. Whatever is iterated is a list or a dict,
never a set, so that the same events always give the same actions.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from services.common.model import StartProgress
from services.common.placement import InstanceState, Route, WorkerState
from services.scheduler.actions import Action
from services.scheduler.choice import Ask, Choice, Way
from services.scheduler.deployment import Deployment
from services.scheduler.estimates import Estimates
from services.scheduler.first_fit import DeviceKey
from services.scheduler.idle_times import Habit
from services.scheduler.instance import Instance
from services.scheduler.ledger import Ledger, Place
from services.scheduler.node_io import NodeIo
from services.scheduler.residency import Residency
from services.scheduler.timers import Timers


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what the core does and for how long it waits."""

    grant_s: float = 10.0  # how long a grant pins an instance
    silence_s: float = 10.0  # how long a worker may say nothing; a dead one is noticed sooner
    learning_s: float = 3.0  # how long a new leader waits for workers before it says there is none
    patience_s: float = 5.0  # how long a start waits before idle instances go that alone won't do
    unreported_s: float = 3.0  # how long a ready instance may be missing from reports at first
    gone_s: float = 10.0  # how long late reports may list an instance that is gone
    attempts_max: int = 3  # loads tried for one start
    backoff_s: float = 0.25  # before a worker that failed is tried again; doubles
    unload_backoff_s: float = 0.5  # before an unload of unknown outcome is repeated; doubles
    unload_backoff_s_max: float = 10.0
    waiters_max: int = 10_000  # requests that wait for an instance
    window: int = 256  # starts looked at each time that room appears
    hold_s: float = 10.0  # before a deployment is scaled again whose loads fail
    turn_s: float = 30.0  # how long a start waits before busy instances are drained for it
    serve_s: float = 10.0  # how long an instance may serve before that
    rest_s: float = 10.0  # how long one that is back from an eviction stays at most
    reuse_s: float = 60.0  # how far ahead an evicted instance's next use counts
    can_migrate: bool = False  # whether workers can hand sequences on to one another


@dataclass(slots=True, kw_only=True)
class Worker:
    """A worker that reports."""

    last: WorkerState  # its latest report
    seen_s: float
    draining: bool = False
    instances: dict[str, None] = field(default_factory=dict)
    devices: dict[DeviceKey, None] = field(default_factory=dict)  # all that it ever told of


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A request that waits for a start."""

    request_id: str
    excluded: frozenset[str]
    asked_s: float
    deadline_s: float = math.inf


NOWHERE = Place(0.0, 0, "")


@dataclass(slots=True, kw_only=True)
class Start:
    """The one start of a deployment that is under way, and who waits for it."""

    key: str  # the deployment's name, or for one more start of it, that and a number
    placement_id: str
    deployment: str
    arrival: int  # its place in the queue, kept when an attempt fails
    asked_s: float
    place: Place = NOWHERE  # while it waits for a place
    waiters: dict[str, Waiter] = field(default_factory=dict)
    progress: StartProgress | None = None  # what the waiters were told last
    instance_id: str | None = None  # None: it waits for a place
    claim: DeviceKey | None = None  # the device where it waits for room
    waits_since_s: float = 0.0
    attempts: int = 0
    avoided: dict[str, None] = field(default_factory=dict)  # workers that failed
    retry_s: float = 0.0  # when they may be tried again
    has_lost_worker: bool = False
    chosen_s: float | None = None  # when its place was found
    load_s: float = 0.0  # when the load was ordered
    kept_until_s: float = 0.0  # its load is not undone before, though nobody waits for it
    is_ahead: bool = False  # begun before any request: it takes nothing from others
    explained: tuple[Way, DeviceKey] | None = None  # the choice that was told last


class Policy(Protocol):
    """Where starts go. The state is the caller's: policies read it and change nothing."""

    def choose(self, state: State, ask: Ask) -> Choice:
        """Return how to start what is asked for, or that nothing is possible now."""


@dataclass(slots=True, kw_only=True)
class State:
    """The cluster as the leader of `epoch` knows it."""

    epoch: int
    instance_prefix: str  # no other state, of this or any other leader, has the same
    learning_until_s: float
    policy: Policy
    limits: Limits = field(default_factory=Limits)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)  # by key
    ahead: dict[str, None] = field(default_factory=dict)  # starts before any request
    waiting_for: dict[str, str] = field(default_factory=dict)  # start by request
    granted: dict[str, str] = field(default_factory=dict)  # instance by request
    gone: dict[str, float] = field(default_factory=dict)  # until when late reports may list them
    ledger: Ledger = field(default_factory=Ledger)
    estimates: Estimates = field(default_factory=Estimates)
    residency: Residency = field(default_factory=Residency)
    io: dict[str, NodeIo] = field(default_factory=dict)  # by node, while something is loaded
    timers: Timers = field(default_factory=Timers)
    queue: list[Place] = field(default_factory=list)  # starts without a place
    # What routers have told of those who wait in their lines: by deployment and router.
    lines: dict[str, dict[str, int]] = field(default_factory=dict)
    lines_of: dict[str, dict[str, None]] = field(default_factory=dict)  # deployments by router
    heard_s: dict[str, float] = field(default_factory=dict)  # when, by router
    habits: dict[str, Habit] = field(default_factory=dict)  # by deployment that learns
    held_until_s: dict[str, float] = field(default_factory=dict)  # by deployment that fails
    evicted_s: dict[str, float] = field(default_factory=dict)  # when, by deployment; lately only
    wake_s: float | None = None  # the time of the last WakeAt
    _by_deployment: dict[str, dict[str, None]] = field(default_factory=dict)
    _starts_of: dict[str, dict[str, None]] = field(default_factory=dict)
    turn: int = 0  # counts the decisions: of many equal choices, others are looked at each time
    _instances_made: int = 0
    _placements_made: int = 0
    _keys_made: int = 0
    _arrivals: int = 0

    def new_instance_id(self) -> str:
        """Return an id that nobody has used."""
        while True:  # a worker may have made one up that we would have come to
            self._instances_made += 1
            instance_id = f"{self.instance_prefix}-{self._instances_made}"
            if instance_id not in self.instances:
                return instance_id

    def new_placement_id(self) -> str:
        """Return an id that nobody has used, for a start from its first request to its end."""
        self._placements_made += 1
        return f"p{self.instance_prefix[1:]}-{self._placements_made}"

    def next_arrival(self) -> int:
        """Return the place behind all that came before."""
        self._arrivals += 1
        return self._arrivals

    def add(self, instance: Instance) -> None:
        """Enter an instance everywhere."""
        self.instances[instance.instance_id] = instance
        self.workers[instance.worker_id].instances[instance.instance_id] = None
        self._by_deployment.setdefault(instance.deployment, {})[instance.instance_id] = None
        self.ledger.count(instance)

    def remove(self, instance: Instance) -> None:
        """Take an instance and its grants out everywhere."""
        del self.instances[instance.instance_id]
        del self.workers[instance.worker_id].instances[instance.instance_id]
        siblings = self._by_deployment[instance.deployment]
        del siblings[instance.instance_id]
        if not siblings:
            del self._by_deployment[instance.deployment]
        for request_id in instance.grants:
            del self.granted[request_id]
        self.ledger.forget(instance)

    def instances_of(self, deployment: str) -> Iterator[Instance]:
        """Yield a deployment's instances in the order in which they came; a copy."""
        ids = tuple(self._by_deployment.get(deployment, ()))
        return (self.instances[instance_id] for instance_id in ids)

    def begin(self, start: Start) -> None:
        """Enter a start, which waits for a place."""
        self.starts[start.key] = start
        self._starts_of.setdefault(start.deployment, {})[start.key] = None
        self.enqueue(start)
        if start.is_ahead:
            self.ahead[start.key] = None

    def end(self, start: Start) -> None:
        """Take a start out; it waits for no place any more."""
        del self.starts[start.key]
        self.ahead.pop(start.key, None)
        siblings = self._starts_of[start.deployment]
        del siblings[start.key]
        if not siblings:
            del self._starts_of[start.deployment]

    def starts_of(self, deployment: str) -> tuple[Start, ...]:
        """Return the starts of a deployment in the order in which they came."""
        return tuple(self.starts[key] for key in self._starts_of.get(deployment, ()))

    def new_start_key(self, deployment: str) -> str:
        """Return a key that no start has; "#" is in no name."""
        if deployment not in self.starts:
            return deployment
        self._keys_made += 1
        return f"{deployment}#{self._keys_made}"

    def ready_instance(self, deployment: str, excluded: frozenset[str]) -> Instance | None:
        """Return the least loaded ready instance that is not excluded."""
        ready = (
            instance
            for instance in self.instances_of(deployment)
            if instance.state is InstanceState.READY and instance.instance_id not in excluded
        )
        return min(ready, key=lambda each: (each.load, each.instance_id), default=None)

    def enqueue(self, start: Start) -> None:
        """Let a start wait for a place.

        In order of arrival; a priority counts like having come so many turns earlier, and a
        deadline like having come a turn before it. So everybody gets to the front in the end.
        """
        deployment = self.deployments.get(start.deployment)
        priority = 0 if deployment is None else deployment.spec.priority
        came_s = start.asked_s - priority * self.limits.turn_s
        deadline_s = min((each.deadline_s for each in start.waiters.values()), default=math.inf)
        start.place = Place(min(came_s, deadline_s - self.limits.turn_s), start.arrival, start.key)
        insort(self.queue, start.place)

    def dequeue(self, start: Start) -> None:
        """Take a start that waits for a place out of the queue."""
        del self.queue[bisect_left(self.queue, start.place)]

    def route_of(self, instance: Instance) -> Route:
        """Return where an instance can be reached."""
        return Route(
            instance_id=instance.instance_id,
            deployment=instance.deployment,
            worker_address=self.address_of(instance.worker_id),
            worker_id=instance.worker_id,
            slots=instance.slots,
        )

    def address_of(self, worker_id: str) -> str:
        """Return where a worker's gRPC server listens."""
        return self.workers[worker_id].last.address


@dataclass(slots=True)
class Turn:
    """One decision in the making: the state, the time and what has to be done."""

    state: State
    now_s: float
    actions: list[Action] = field(default_factory=list)
    is_room_changed: bool = False  # whether all starts that wait should be looked at
    changed: dict[DeviceKey, None] = field(default_factory=dict)  # devices with other room now
    again: dict[str, None] = field(default_factory=dict)  # starts to be looked at
    scaled: dict[str, None] = field(default_factory=dict)  # deployments whose demand has changed

    def do(self, action: Action) -> None:
        """Have `action` done, after those before."""
        self.actions.append(action)
