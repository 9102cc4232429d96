"""What the core wants done: its output. The shell does it and reports the outcome as events."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import BriskError
from services.common.model import ModelRef, StartProgress, StartReport
from services.common.placement import Route
from services.scheduler.choice import Candidate, Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLoad:
    """Bring a model onto a device. Answered by LoadProgressed, then LoadSucceeded or LoadFailed."""

    instance_id: str
    deployment: str
    model: ModelRef
    worker_id: str
    address: str
    device_id: str
    slots: int
    context_tokens_max: int
    memory_bytes: int
    request_id: str  # the request that has waited for longest, for the log
    placement_id: str = ""  # the start that it belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelLoad:
    """Stop a load; nothing is expected back."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnload:
    """Remove an instance. Answered by UnloadSucceeded, UnloadRefused or UnloadFailed."""

    instance_id: str
    worker_id: str
    address: str
    only_if_idle: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TellProgress:
    """Tell requests how far their start has come."""

    request_ids: tuple[str, ...]
    progress: StartProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Give a request its instance: the last thing it hears."""

    request_id: str
    route: Route
    start: StartReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """End a request with an error: the last thing it hears."""

    request_id: str
    error: BriskError


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteUp:
    """Routers may send sequences to an instance."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDown:
    """Routers must send no more sequences to an instance."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt:
    """Send a Tick at this time, instead of any asked for before."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """Keep why a start goes where it goes: to be told when somebody asks."""

    placement_id: str
    deployment: str
    request_ids: tuple[str, ...]
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Keep how a load went, beside what was predicted."""

    placement_id: str
    instance_id: str
    expected: Candidate
    ordered_s: float  # when it was ordered
    report: StartReport | None  # None: it failed
    error: BriskError | None = None


Action = (
    StartLoad
    | CancelLoad
    | StartUnload
    | TellProgress
    | Grant
    | Refuse
    | RouteUp
    | RouteDown
    | WakeAt
    | Explain
    | Outcome
)
