"""Who holds how many bytes of which device, and who has been promised some.

A device's budget is in one of these hands:

    used        instances, from the order to load until their memory is known to be free
      coming      of these, the ones being unloaded that will be gone in a moment
      idle        of these, the ones that may be evicted
    claimed     promised to starts that wait for room here, in the order in which they claimed

A claim keeps later starts from taking what an earlier one waits for; that is why nobody starves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.common.placement import InstanceState
from services.scheduler.first_fit import DeviceKey, FirstFit
from services.scheduler.instance import Instance


@dataclass(slots=True, kw_only=True)
class DeviceLedger:
    """One device's bytes."""

    key: DeviceKey
    memory_bytes: int
    is_open: bool = True  # whether instances may be placed here
    used_bytes: int = 0
    coming_bytes: int = 0
    idle_bytes: int = 0
    claims: dict[str, int] = field(default_factory=dict)  # by deployment, in the order of claiming

    def free_bytes(self, deployment: str | None = None) -> int:
        """Return what `deployment` may take at once: claims before its own are not for it."""
        return self.memory_bytes - self.used_bytes - self._claimed_before(deployment)

    def soon_bytes(self, deployment: str | None = None) -> int:
        """Return what it may take once the unloads under way are done."""
        return self.free_bytes(deployment) + self.coming_bytes

    def reclaimable_bytes(self, deployment: str | None = None) -> int:
        """Return what it may take once everything idle is evicted."""
        return self.soon_bytes(deployment) + self.idle_bytes

    def _claimed_before(self, deployment: str | None) -> int:
        claimed = 0
        for claimant, need_bytes in self.claims.items():
            if claimant == deployment:
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


_NOTHING = _Share()


class Ledger:
    """All devices' bytes, with indexes for the questions that placement asks."""

    def __init__(self) -> None:
        self.devices: dict[DeviceKey, DeviceLedger] = {}
        self.free = FirstFit()  # of open devices, as are the next three
        self.soon = FirstFit()
        self.reclaimable = FirstFit()
        self.budgets = FirstFit()
        self._shares: dict[str, _Share] = {}
        self._idle: list[tuple[float, str]] = []  # since, instance; longest idle first

    def open(self, key: DeviceKey, memory_bytes: int) -> None:
        """Add a device, or change its budget."""
        device = self.devices.setdefault(key, DeviceLedger(key=key, memory_bytes=memory_bytes))
        device.memory_bytes = memory_bytes
        self._index(device)

    def close(self, key: DeviceKey) -> tuple[str, ...]:
        """Place nothing here any more; return the deployments whose claims end with that."""
        device = self.devices[key]
        device.is_open = False
        claimants = tuple(device.claims)
        device.claims.clear()
        for index in (self.free, self.soon, self.reclaimable, self.budgets):
            index.discard(key)
        return claimants

    def drop(self, key: DeviceKey) -> tuple[str, ...]:
        """Forget a device without instances; return the deployments whose claims end with that."""
        claimants = self.close(key)
        del self.devices[key]
        return claimants

    def count(self, instance: Instance) -> None:
        """Bring the sums up to date with `instance`; call it after each change to one."""
        self._recount(instance, _share_of(instance))

    def forget(self, instance: Instance) -> None:
        """Take `instance` out of the sums."""
        self._recount(instance, _NOTHING)
        del self._shares[instance.instance_id]

    def claim(self, key: DeviceKey, deployment: str, need_bytes: int) -> None:
        """Promise bytes of a device to a deployment, behind the claims that are there."""
        device = self.devices[key]
        device.claims[deployment] = need_bytes
        self._index(device)

    def unclaim(self, key: DeviceKey, deployment: str) -> None:
        """End a claim."""
        device = self.devices[key]
        del device.claims[deployment]
        self._index(device)

    def idle_instances(self) -> Iterator[str]:
        """Yield the idle instances, the one that is idle for longest first."""
        return (instance_id for _, instance_id in self._idle)

    def _recount(self, instance: Instance, share: _Share) -> None:
        before = self._shares.get(instance.instance_id, _NOTHING)
        self._shares[instance.instance_id] = share
        if before == share:
            return
        device = self.devices[instance.device]
        device.used_bytes += share.used - before.used
        device.coming_bytes += share.coming - before.coming
        device.idle_bytes += share.idle - before.idle
        self._index(device)
        if before.idle_since_s is not None:
            del self._idle[bisect_left(self._idle, (before.idle_since_s, instance.instance_id))]
        if share.idle_since_s is not None:
            insort(self._idle, (share.idle_since_s, instance.instance_id))

    def _index(self, device: DeviceLedger) -> None:
        if device.is_open:
            self.free.set(device.key, device.free_bytes())
            self.soon.set(device.key, device.soon_bytes())
            self.reclaimable.set(device.key, device.reclaimable_bytes())
            self.budgets.set(device.key, device.memory_bytes)


def _share_of(instance: Instance) -> _Share:
    size = instance.memory_bytes
    match instance.state:
        case InstanceState.READY if instance.idle_since_s is not None:
            return _Share(used=size, idle=size, idle_since_s=instance.idle_since_s)
        case InstanceState.LEAVING if instance.is_gone_soon:
            return _Share(used=size, coming=size)
        case _:
            return _Share(used=size)
