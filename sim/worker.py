"""A worker of the simulated cluster: what it holds, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.model import ModelRef
from services.common.placement import Device, Instance, InstanceState, WorkerState
from services.scheduler.actions import StartLoad
from sim.engine import Engine
from sim.store import Loading, Store


@dataclass(slots=True, eq=False)
class Held:
    """An instance on a worker."""

    order: StartLoad
    model: ModelRef
    state: InstanceState = InstanceState.LOADING
    loading: Loading | None = None
    running: int = 0
    idle_since_s: float = 0.0
    is_unload_owed: bool = False  # whether the scheduler waits to hear that it is gone


@dataclass(slots=True, eq=False)
class Worker:
    """One device of a node. A node that comes back has new ones."""

    worker_id: str
    store: Store
    index: int  # of its device on the node
    engine: Engine
    memory_bytes: int
    held: dict[str, Held] = field(default_factory=dict)
    is_dead: bool = False
    is_report_due: bool = False
    reported_s: float = 0.0
    reports: int = 0

    def state(self, now_s: float) -> WorkerState:
        """Return what it says about itself."""
        self.reports += 1
        self.reported_s = now_s
        device_id = f"d{self.index}"
        used_bytes = 0
        instances: list[Instance] = []
        for instance_id, held in self.held.items():
            order = held.order
            used_bytes += order.memory_bytes
            is_idle = held.state is InstanceState.READY and not held.running
            instances.append(
                Instance(
                    instance_id=instance_id,
                    deployment=order.deployment,
                    model=held.model,
                    worker_id=self.worker_id,
                    device_id=device_id,
                    memory_bytes=order.memory_bytes,
                    slots=order.slots,
                    state=held.state,
                    running=held.running,
                    idle_s=now_s - held.idle_since_s if is_idle else None,
                )
            )
        free_bytes = self.memory_bytes - used_bytes
        return WorkerState(
            worker_id=self.worker_id,
            node_id=self.store.node_id,
            address=self.worker_id,
            devices=(
                Device(device_id=device_id, memory_bytes=self.memory_bytes, free_bytes=free_bytes),
            ),
            instances=tuple(instances),
            sequence=self.reports,
        )

    @property
    def free_bytes(self) -> int:
        """Return the memory that no instance has."""
        return self.memory_bytes - sum(each.order.memory_bytes for each in self.held.values())
