"""An instance as the scheduler sees it, from the order to load it until its memory is free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.model import ModelRef
from services.common.placement import InstanceState
from services.scheduler.choice import Candidate
from services.scheduler.first_fit import DeviceKey


class Exit(StrEnum):
    """How an instance leaves."""

    IF_IDLE = "if_idle"  # at once, or not at all if it turns out to be busy
    CANCELLED = "cancelled"  # at once: it never was ready
    DRAINED = "drained"  # when its sequences have ended
    WITH_WORKER = "with_worker"  # when its worker shuts down; nobody has to be told


@dataclass(slots=True, kw_only=True)
class Instance:
    """One model on one device. Changed by the core only, which tells the ledger each time."""

    instance_id: str
    deployment: str
    model: ModelRef
    device: DeviceKey
    memory_bytes: int
    slots: int
    state: InstanceState
    exit: Exit | None = None  # set while it is leaving
    grants: dict[str, float] = field(default_factory=dict)  # by request: when it was granted
    running: int = 0
    waiting: int = 0
    # Since when it may be evicted: None while it is pinned, has sequences or is not known not to.
    idle_since_s: float | None = None
    reported_idle_since_s: float | None = None  # what its worker says, pins left aside
    released_s: float = -math.inf  # when a grant was last given back
    ready_s: float = 0.0
    busy_since_s: float | None = None  # since when it has had sequences; None: it has none
    leaving_since_s: float = 0.0
    expected: Candidate | None = None  # what was predicted when its load was ordered
    reload_ms: float = 0.0  # what a start of it here would take, as it was estimated lately
    reload_until_s: float = -math.inf  # until when that holds
    placement_id: str = ""  # the placement that it came of; empty if another leader's
    start_key: str = ""  # the start, while it is loading
    is_reported: bool = False  # whether a report of its worker has listed it
    unload_in_flight: bool = False
    unload_failures: int = 0

    @property
    def worker_id(self) -> str:
        """Return the worker that holds it."""
        return self.device.worker_id

    @property
    def is_gone_soon(self) -> bool:
        """Whether its memory will be free within moments."""
        return (
            self.exit in (Exit.IF_IDLE, Exit.CANCELLED)
            and self.unload_in_flight
            and self.unload_failures == 0
        )

    @property
    def load(self) -> int:
        """Return how many sequences it has or is about to get."""
        return self.running + self.waiting + len(self.grants)
