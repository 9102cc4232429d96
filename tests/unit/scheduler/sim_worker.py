"""A worker of the simulated cluster: what it holds and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.model import ModelRef
from services.common.placement import Device, Instance, InstanceState, WorkerState


@dataclass(slots=True, kw_only=True)
class SimInstance:
    """A model on a worker."""

    instance_id: str
    deployment: str
    model: ModelRef
    device_id: str
    memory_bytes: int
    slots: int
    state: InstanceState
    running: int = 0
    idle_since_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class SimWorker:
    """A worker; `stalled` ones do their work but nobody hears of it."""

    worker_id: str
    devices: dict[str, int]
    instances: dict[str, SimInstance] = field(default_factory=dict)
    draining: bool = False
    stalled: bool = False
    is_dead: bool = False
    sequence: int = 0

    def state(self, now_s: float) -> WorkerState:
        """Return what it says about itself."""
        self.sequence += 1
        return WorkerState(
            worker_id=self.worker_id,
            node_id="n-" + self.worker_id,
            address=self.worker_id + ":1",
            devices=tuple(
                Device(device_id=key, memory_bytes=size, free_bytes=size - self.used(key))
                for key, size in self.devices.items()
            ),
            instances=tuple(
                Instance(
                    instance_id=each.instance_id,
                    deployment=each.deployment,
                    model=each.model,
                    worker_id=self.worker_id,
                    device_id=each.device_id,
                    memory_bytes=each.memory_bytes,
                    slots=each.slots,
                    state=each.state,
                    running=each.running,
                    idle_s=None if each.running else now_s - each.idle_since_s,
                )
                for each in self.instances.values()
            ),
            draining=self.draining,
            sequence=self.sequence,
        )

    def used(self, device_id: str) -> int:
        """Return the bytes that are reserved on a device."""
        here = [each for each in self.instances.values() if each.device_id == device_id]
        return sum(each.memory_bytes for each in here)
