"""Where models are: the domain side of `brisk/common/v1/placement.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.common.model import ModelRef


class InstanceState(StrEnum):
    """What an instance can do now."""

    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device of a worker with a memory budget."""

    device_id: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A model resident on a device of a worker."""

    instance_id: str
    deployment: str
    model: ModelRef
    worker_id: str
    device_id: str
    memory_bytes: int
    slots: int
    state: InstanceState
    running: int = 0
    waiting: int = 0
    idle_s: float | None = None  # None while it has sequences
    keep_alive_left_s: float | None = None  # None while busy, or if kept for ever
    serial_reason: str = ""  # why its sequences are decoded one at a time, if so and if known


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """All that a worker says about itself."""

    worker_id: str
    node_id: str
    address: str
    devices: tuple[Device, ...]
    instances: tuple[Instance, ...] = ()
    draining: bool = False
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a deployment can be served."""

    instance_id: str
    deployment: str
    worker_address: str
    worker_id: str
    slots: int
