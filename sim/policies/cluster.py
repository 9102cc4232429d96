"""What a comparison policy knows of the cluster: devices, instances, tiers and loads under way.

It knows as much as it could wish for: store managers' tiers without delay, and the true constants
of the hardware for its estimates. What it lacks is that it learns nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from services.common.model import Tier
from services.common.placement import InstanceState, WorkerState
from services.scheduler.deployment import Deployment
from services.scheduler.first_fit import DeviceKey
from sim.calibration import Hardware

TRIES = 32  # devices drawn before all are looked at
HOLDERS_MAX = 64  # nodes of a tier that are compared


@dataclass(slots=True, eq=False)
class Kept:
    """An instance."""

    instance_id: str
    deployment: str
    device: Slot
    memory_bytes: int
    slots: int
    state: InstanceState = InstanceState.LOADING
    running: int = 0
    granted: int = 0
    idle_since_s: float = 0.0
    ready_s: float = 0.0
    is_moving: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it may be evicted."""
        return (
            self.state is InstanceState.READY
            and not self.running
            and not self.granted
            and not self.is_moving
        )

    @property
    def is_busy(self) -> bool:
        """Whether it serves, and might be moved or killed."""
        return (
            self.state is InstanceState.READY
            and bool(self.running or self.granted)
            and not self.is_moving
        )


@dataclass(slots=True, eq=False)
class Slot:
    """A device."""

    key: DeviceKey
    memory_bytes: int
    index: int  # in the cluster's list
    used_bytes: int = 0
    claimed_bytes: int = 0  # for starts that wait for what leaves here
    instances: dict[str, Kept] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        """Return what nobody has."""
        return self.memory_bytes - self.used_bytes - self.claimed_bytes

    @property
    def reclaimable_bytes(self) -> int:
        """Return what nobody has once what is idle has gone."""
        idle = (each.memory_bytes for each in self.instances.values() if each.is_idle)
        return self.free_bytes + sum(idle)

    def idle(self) -> list[Kept]:
        """Return what may be evicted, the one that is idle for longest first."""
        found = [each for each in self.instances.values() if each.is_idle]
        return sorted(found, key=lambda each: (each.idle_since_s, each.instance_id))

    def has_room(self, need_bytes: int) -> bool:
        """Whether a model of this size fits once what is idle has gone."""
        return self.free_bytes >= need_bytes or self.reclaimable_bytes >= need_bytes


class Cluster:
    """All of it."""

    def __init__(self, hardware: Hardware, seed: int) -> None:
        self.hardware = hardware
        self.random = Random(f"policy {seed}")
        self.deployments: dict[str, Deployment] = {}
        self.devices: list[Slot] = []
        self.nodes: dict[str, list[Slot]] = {}
        self.instances: dict[str, Kept] = {}
        self.by_deployment: dict[str, dict[str, Kept]] = {}
        self._workers: dict[str, Slot] = {}
        self._holders: dict[tuple[str, Tier], dict[str, None]] = {}
        self._disk_free_s: dict[str, float] = {}
        self._nic_free_s: dict[str, float] = {}

    # --- what is told ---

    def follow(self, said: WorkerState) -> Slot:
        """Take in a report; return the device."""
        slot = self._workers.get(said.worker_id)
        if slot is None:
            device = said.devices[0]
            slot = Slot(
                key=DeviceKey(said.node_id, said.worker_id, device.device_id),
                memory_bytes=device.memory_bytes,
                index=len(self.devices),
            )
            self._workers[said.worker_id] = slot
            self.devices.append(slot)
            self.nodes.setdefault(said.node_id, []).append(slot)
        return slot

    def lose(self, worker_id: str) -> list[Kept]:
        """Forget a worker; return the instances that it had."""
        slot = self._workers.pop(worker_id, None)
        if slot is None:
            return []
        last = self.devices.pop()
        if last is not slot:
            self.devices[slot.index] = last
            last.index = slot.index
        self.nodes[slot.key.node_id].remove(slot)
        lost = list(slot.instances.values())
        for each in lost:
            self.remove(each)
        return lost

    def has_worker(self, slot: Slot) -> bool:
        """Whether a device is still there."""
        return slot.key.worker_id in self._workers

    def tier_changed(self, node_id: str, model: str, tier: Tier, *, is_there: bool) -> None:
        """Take in what a node holds."""
        holders = self._holders.setdefault((model, tier), {})
        if is_there:
            holders[node_id] = None
        else:
            holders.pop(node_id, None)

    def add(self, kept: Kept) -> None:
        """Enter an instance."""
        self.instances[kept.instance_id] = kept
        self.by_deployment.setdefault(kept.deployment, {})[kept.instance_id] = kept
        kept.device.instances[kept.instance_id] = kept
        kept.device.used_bytes += kept.memory_bytes

    def remove(self, kept: Kept) -> None:
        """Take an instance out."""
        del self.instances[kept.instance_id]
        del self.by_deployment[kept.deployment][kept.instance_id]
        del kept.device.instances[kept.instance_id]
        kept.device.used_bytes -= kept.memory_bytes

    def load_ordered(self, slot: Slot, deployment: str, now_s: float) -> None:
        """Count on a load's share of its node's links."""
        node_id, hardware = slot.key.node_id, self.hardware
        size = self.deployments[deployment].model.weight_bytes
        match self.tier_of(node_id, deployment):
            case Tier.SSD:
                free_s = self._disk_free_s.get(node_id, 0.0)
                self._disk_free_s[node_id] = max(now_s, free_s) + size / hardware.ssd_speed
            case Tier.REMOTE:
                free_s = self._nic_free_s.get(node_id, 0.0)
                self._nic_free_s[node_id] = max(now_s, free_s) + size / hardware.nic_speed
            case _:
                pass

    # --- what is asked ---

    def need_bytes(self, deployment: str) -> int:
        """Return the device memory that an instance takes."""
        return self.deployments[deployment].device_bytes

    def tier_of(self, node_id: str, deployment: str) -> Tier:
        """Return the best tier in which a node has a model."""
        for tier in (Tier.DRAM, Tier.SSD):
            if node_id in self._holders.get((deployment, tier), ()):
                return tier
        return Tier.REMOTE

    def holders(self, deployment: str, tier: Tier) -> list[str]:
        """Return nodes that have a model in a tier; of very many, some."""
        found = self._holders.get((deployment, tier), {})
        if len(found) <= HOLDERS_MAX:
            return list(found)
        return self.random.sample(list(found), HOLDERS_MAX)

    def start_s(self, slot: Slot, deployment: str, now_s: float) -> float:
        """Return how long a start takes as the paper estimates it: queue, then bytes by speed."""
        node_id, hardware = slot.key.node_id, self.hardware
        size = self.deployments[deployment].model.weight_bytes
        match self.tier_of(node_id, deployment):
            case Tier.DRAM:
                return size / hardware.arena_speed
            case Tier.SSD:
                wait_s = max(0.0, self._disk_free_s.get(node_id, 0.0) - now_s)
                return wait_s + size / min(hardware.ssd_speed, hardware.arena_speed)
            case _:
                wait_s = max(0.0, self._nic_free_s.get(node_id, 0.0) - now_s)
                return wait_s + size / hardware.nic_speed

    def any_with_room(self, need_bytes: int) -> Slot | None:
        """Return a device drawn from those that have room or idle instances to evict."""
        count = len(self.devices)
        if not count:
            return None
        for _ in range(min(TRIES, 2 * count)):
            slot = self.devices[self.random.randrange(count)]
            if slot.has_room(need_bytes):
                return slot
        first = self.random.randrange(count)
        for offset in range(count):
            slot = self.devices[(first + offset) % count]
            if slot.has_room(need_bytes):
                return slot
        return None

    def with_room(self, nodes: list[str], need_bytes: int) -> Iterator[Slot]:
        """Yield, of each node, the device with room that loses least by it."""
        for node_id in nodes:
            fitting = [each for each in self.nodes.get(node_id, ()) if each.has_room(need_bytes)]
            if fitting:
                yield min(fitting, key=lambda each: (each.free_bytes < need_bytes, each.key))
