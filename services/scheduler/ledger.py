"""Who holds how many bytes of which device, and who has been promised some.

A device's budget is in one of these hands:

    used        instances, from the order to load until their memory is known to be free
      coming      of these, the ones being unloaded that will be gone in a moment
      idle        of these, the ones that may be evicted
    claimed     promised to starts that wait for room here, in the order in which they claimed

A claim keeps later starts from taking what an earlier one waits for; that is why nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.common.placement import InstanceState
from services.scheduler.capacity import Capacity
from services.scheduler.first_fit import DeviceKey, FirstFit
from services.scheduler.instance import Instance
from services.scheduler.sorted_blocks import SortedBlocks

_RANKS_PER_S: Final = 20  # how finely nodes are told apart by when their I/O will be free


class Place(NamedTuple):
    """A start's place in the queue: the least comes first."""

    came_s: float
    arrival: int
    key: str


@dataclass(slots=True, kw_only=True)
class DeviceLedger:
    """One device's bytes."""

    key: DeviceKey
    memory_bytes: int
    is_open: bool = True  # whether instances may be placed here
    used_bytes: int = 0
    coming_bytes: int = 0
    idle_bytes: int = 0
    claims: dict[str, int] = field(default_factory=dict)  # by start, in the order of the queue
    places: dict[str, Place] = field(default_factory=dict)  # of those that claim
    instances: dict[str, Instance] = field(default_factory=dict)

    def free_bytes(self, claimant: str | None = None) -> int:
        """Return what a start may take at once: claims before its own are not for it."""
        return self.memory_bytes - self.used_bytes - self._claimed_before(claimant)

    def soon_bytes(self, claimant: str | None = None) -> int:
        """Return what it may take once the unloads under way are done."""
        return self.free_bytes(claimant) + self.coming_bytes

    def reclaimable_bytes(self, claimant: str | None = None) -> int:
        """Return what it may take once everything idle is evicted."""
        return self.soon_bytes(claimant) + self.idle_bytes

    def _claimed_before(self, claimant: str | None) -> int:
        claimed = 0
        for other, need_bytes in self.claims.items():
            if other == claimant:
                break
            claimed += need_bytes
        return claimed


@dataclass(frozen=True, slots=True)
class _Share:
    """What one instance adds to its device's sums."""

    used: int = 0
    coming: int = 0
    idle: int = 0
    idle_since_s: float | None = None


@dataclass(slots=True)
class _Node:
    """The devices of a node, and how soon it would load onto them."""

    devices: dict[DeviceKey, None] = field(default_factory=dict)
    slowness: int = 0  # less is faster
    io_free_s: float | None = None  # None: nothing is being loaded


_NOTHING = _Share()


class Ledger:
    """All devices' bytes, with indexes for the questions that placement asks."""

    def __init__(self) -> None:
        self.devices: dict[DeviceKey, DeviceLedger] = {}
        # Of open devices, as are all the next: what is free now,
        self.free_at_rest = Capacity()  # where no load is under way, the fastest nodes first
        self.free_at_work = Capacity()  # where some are, those done soonest first
        self.soon = FirstFit()  # what is free once unloads are done
        self.reclaimable = FirstFit()  # and once everything idle is evicted
        self.unclaimed = FirstFit()  # the same, where nobody waits
        self.budgets = FirstFit()
        self._nodes: dict[str, _Node] = {}
        self._shares: dict[str, _Share] = {}
        self._idle = SortedBlocks()  # since, instance; longest idle first

    def open(self, key: DeviceKey, memory_bytes: int) -> None:
        """Add a device, or change its budget."""
        device = self.devices.setdefault(key, DeviceLedger(key=key, memory_bytes=memory_bytes))
        device.memory_bytes = memory_bytes
        self._nodes.setdefault(key.node_id, _Node()).devices[key] = None
        self._index(device)

    def close(self, key: DeviceKey) -> tuple[str, ...]:
        """Place nothing here any more; return the starts whose claims end with that."""
        device = self.devices[key]
        device.is_open = False
        claimants = tuple(device.claims)
        device.claims.clear()
        device.places.clear()
        self.free_at_rest.discard(key)
        self.free_at_work.discard(key)
        for index in (self.soon, self.reclaimable, self.unclaimed, self.budgets):
            index.discard(key)
        return claimants

    def drop(self, key: DeviceKey) -> tuple[str, ...]:
        """Forget a device without instances; return the starts whose claims end with that."""
        claimants = self.close(key)
        del self.devices[key]
        devices = self._nodes[key.node_id].devices
        del devices[key]
        if not devices:
            del self._nodes[key.node_id]
        return claimants

    def of_node(self, node_id: str) -> Mapping[DeviceKey, None]:
        """Return the devices of a node."""
        node = self._nodes.get(node_id)
        return {} if node is None else node.devices

    def rank(self, node_id: str, slowness: int, io_free_s: float | None) -> None:
        """Set how fast a node is, and until when its loads keep it busy; None: there are none."""
        node = self._nodes.get(node_id)
        if node is None or (node.slowness, node.io_free_s) == (slowness, io_free_s):
            return
        node.slowness, node.io_free_s = slowness, io_free_s
        for key in node.devices:
            self._index_free(self.devices[key], node)

    def count(self, instance: Instance) -> None:
        """Bring the sums up to date with `instance`; call it after each change to one."""
        self._recount(instance, _share_of(instance))

    def forget(self, instance: Instance) -> None:
        """Take `instance` out of the sums."""
        self._recount(instance, _NOTHING)
        del self._shares[instance.instance_id]
        del self.devices[instance.device].instances[instance.instance_id]

    def claim(self, key: DeviceKey, claimant: str, need_bytes: int, place: Place) -> None:
        """Promise bytes of a device to a start, behind those that come before it in the queue."""
        device = self.devices[key]
        device.claims[claimant], device.places[claimant] = need_bytes, place
        order = sorted(device.claims, key=lambda each: device.places[each])
        device.claims = {each: device.claims[each] for each in order}
        self._index(device)

    def unclaim(self, key: DeviceKey, claimant: str) -> None:
        """End a claim."""
        device = self.devices[key]
        del device.claims[claimant]
        del device.places[claimant]
        self._index(device)

    def idle_instances(self) -> Iterator[str]:
        """Yield the idle instances, the one that is idle for longest first."""
        return (instance_id for _, instance_id in self._idle)

    def _recount(self, instance: Instance, share: _Share) -> None:
        before = self._shares.get(instance.instance_id, _NOTHING)
        self._shares[instance.instance_id] = share
        device = self.devices[instance.device]
        device.instances[instance.instance_id] = instance
        if before == share:
            return
        device.used_bytes += share.used - before.used
        device.coming_bytes += share.coming - before.coming
        device.idle_bytes += share.idle - before.idle
        self._index(device)
        if before.idle_since_s is not None:
            self._idle.remove((before.idle_since_s, instance.instance_id))
        if share.idle_since_s is not None:
            self._idle.add((share.idle_since_s, instance.instance_id))

    def _index(self, device: DeviceLedger) -> None:
        if not device.is_open:
            return
        key, free_bytes = device.key, device.free_bytes()
        soon_bytes = free_bytes + device.coming_bytes
        reclaimable_bytes = soon_bytes + device.idle_bytes
        self._index_free(device, self._nodes[key.node_id])
        self.soon.set(key, soon_bytes)
        self.reclaimable.set(key, reclaimable_bytes)
        self.unclaimed.set(key, -1 if device.claims else reclaimable_bytes)
        self.budgets.set(key, device.memory_bytes)

    def _index_free(self, device: DeviceLedger, node: _Node) -> None:
        if not device.is_open:
            return
        free_bytes = device.free_bytes()
        if node.io_free_s is None:
            self.free_at_work.discard(device.key)
            self.free_at_rest.set(device.key, free_bytes, node.slowness)
        else:
            self.free_at_rest.discard(device.key)
            self.free_at_work.set(device.key, free_bytes, int(node.io_free_s * _RANKS_PER_S))


def _share_of(instance: Instance) -> _Share:
    size = instance.memory_bytes
    match instance.state:
        case InstanceState.READY if instance.idle_since_s is not None:
            return _Share(used=size, idle=size, idle_since_s=instance.idle_since_s)
        case InstanceState.LEAVING if instance.is_gone_soon:
            return _Share(used=size, coming=size)
        case _:
            return _Share(used=size)
