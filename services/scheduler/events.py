"""What can happen to the cluster: the core's input. Every event says when it happened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from services.common.errors import BriskError
from services.common.model import ModelRef, StartProgress, StartReport
from services.common.placement import WorkerState
from services.scheduler.deployment import Deployment
from services.scheduler.residency import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPut:
    """A deployment is new or has a new specification."""

    now_s: float
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRemoved:
    """A deployment was deleted."""

    now_s: float
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported:
    """A worker told its whole state."""

    now_s: float
    worker: WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersLearned:
    """Every worker that is registered has told its state, or did not answer."""

    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone, with all its instances."""

    now_s: float
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReported:
    """A node's store manager told which models it has, and for how long it is busy with others."""

    now_s: float
    node_id: str
    stored: tuple[Stored, ...]
    busy_s: float = 0.0  # until a read that is asked for now would begin


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChanged:
    """A store has changed since its node told everything."""

    now_s: float
    node_id: str
    stored: tuple[Stored, ...] = ()  # new, or in another tier
    removed: tuple[ModelRef, ...] = ()
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLost:
    """A node's store manager is gone."""

    now_s: float
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireRequested:
    """A request needs an instance. Its id is unique among those that wait."""

    now_s: float
    request_id: str
    deployment: str
    excluded: frozenset[str] = frozenset()
    deadline_s: float = math.inf  # until when it wants to wait


class Line(NamedTuple):
    """How many requests of a router wait for a slot of a deployment's instances."""

    deployment: str
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandReported:
    """A router told all its lines; it repeats that for as long as there are any."""

    now_s: float
    router_id: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireCancelled:
    """A request does not want its instance any more, be it granted or not."""

    now_s: float
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A grant is given back: the worker has the sequence, or the request is over."""

    now_s: float
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgressed:
    """A load told how far it has come."""

    now_s: float
    instance_id: str
    progress: StartProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSucceeded:
    """An instance serves; `start` has the phases that the worker measured."""

    now_s: float
    instance_id: str
    start: StartReport


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """A load ended without an instance; the worker has undone it."""

    now_s: float
    instance_id: str
    error: BriskError


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadSucceeded:
    """An instance is gone and its memory is free."""

    now_s: float
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadRefused:
    """An instance has sequences and stays."""

    now_s: float
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadFailed:
    """Nobody knows whether an instance is gone."""

    now_s: float
    instance_id: str
    error: BriskError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed: a wake-up that the core asked for, or nothing in particular."""

    now_s: float


Event = (
    DeploymentPut
    | DeploymentRemoved
    | WorkerReported
    | WorkersLearned
    | WorkerLost
    | StoreReported
    | StoreChanged
    | StoreLost
    | AcquireRequested
    | AcquireCancelled
    | DemandReported
    | Released
    | LoadProgressed
    | LoadSucceeded
    | LoadFailed
    | UnloadSucceeded
    | UnloadRefused
    | UnloadFailed
    | Tick
)
