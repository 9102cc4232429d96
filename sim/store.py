"""A node's tiers: what it holds where, and how long it takes to bring a model to a device.

Every link is a queue: loads pass it one after another, in order of arrival, and each tier's stream
overlaps the next one's. So a load ends when the slowest link that it crosses is through with it.
A load that is given up hands back what it had not yet used, if nobody queued behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from services.common.model import Tier
from sim.calibration import Hardware


class Told(Protocol):
    """Hears what comes into a tier of a node and what leaves it."""

    def __call__(self, node_id: str, model: str, tier: Tier, *, is_there: bool) -> None:
        """Take it in."""


@dataclass(slots=True)
class Link:
    """Something that carries one load after another."""

    speed: float
    free_s: float = 0.0
    carried_bytes: int = 0

    def carry(self, now_s: float, size: int, factor: float = 1.0) -> tuple[float, float]:
        """Return when a load of `size` begins and ends here."""
        begin_s = max(now_s, self.free_s)
        self.free_s = begin_s + size / (self.speed * factor)
        self.carried_bytes += size
        return begin_s, self.free_s

    def give_up(self, now_s: float, begin_s: float, end_s: float, size: int) -> None:
        """Take back what a load has not used by now."""
        if self.free_s == end_s and now_s < end_s:
            unused = min(1.0, (end_s - now_s) / (end_s - begin_s))
            self.carried_bytes -= int(size * unused)
            self.free_s = max(now_s, begin_s)


class Shelf:
    """The models in one tier, the one that was used least recently first."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.sizes: dict[str, int] = {}  # in the order of their last use
        self.leases: dict[str, int] = {}

    def touch(self, model: str) -> None:
        """Note a use."""
        self.sizes[model] = self.sizes.pop(model)

    def put(self, model: str, size: int) -> list[str] | None:
        """Take a model in and return what had to go for it; None if it does not fit."""
        gone: list[str] = []
        free = self.capacity_bytes - self.used_bytes
        for each, its_size in self.sizes.items():
            if free >= size:
                break
            if not self.leases.get(each):
                gone.append(each)
                free += its_size
        if free < size:
            return None
        for each in gone:
            self.used_bytes -= self.sizes.pop(each)
        self.sizes[model] = size
        self.used_bytes += size
        return gone

    def lease(self, model: str) -> None:
        """Keep a model from being evicted."""
        self.leases[model] = self.leases.get(model, 0) + 1

    def release(self, model: str) -> None:
        """Take a lease back."""
        self.leases[model] -= 1


@dataclass(slots=True, eq=False)
class Loading:
    """One model on its way to one device."""

    model: str
    size: int
    source: Tier
    fetched_s: float  # when all of it is on the node
    ends_s: float  # when all of it is on the device
    uses: list[tuple[Link, float, float]] = field(default_factory=list)
    followers: int = 0  # loads of the same model that use what this one fetches


class Store:
    """One node's tiers."""

    def __init__(self, node_id: str, hardware: Hardware, told: Told) -> None:
        self.node_id = node_id
        self.hardware = hardware
        self.arena = Shelf(hardware.arena_bytes)
        self.ssd = Shelf(hardware.ssd_bytes)
        self.disk = Link(hardware.ssd_speed)
        self.inward = Link(hardware.nic_speed)
        self.outward = Link(hardware.nic_speed)
        self.devices = [Link(hardware.arena_speed) for _ in range(int(hardware.devices))]
        self._told = told
        self._arriving: dict[str, Loading] = {}  # models under way into the arena

    def tier_of(self, model: str) -> Tier:
        """Return the fastest tier of the node that holds a model, else REMOTE."""
        if model in self.arena.sizes:
            return Tier.DRAM
        return Tier.SSD if model in self.ssd.sizes else Tier.REMOTE

    def load(
        self,
        now_s: float,
        model: str,
        size: int,
        *,
        device: int = 0,
        factor: float = 1.0,
        peer: Store | None = None,
    ) -> Loading:
        """Begin to bring a model to a device; `peer` is a node that has it, if this one has not."""
        loading = Loading(model=model, size=size, source=Tier.DRAM, fetched_s=now_s, ends_s=now_s)
        if (other := self._arriving.get(model)) is not None:  # the same bytes serve both
            other.followers += 1
            loading.source, loading.fetched_s = other.source, other.fetched_s
        elif model in self.arena.sizes:
            self.arena.touch(model)
        else:
            self._fetch(now_s, loading, factor, peer)
        self.arena.lease(model)
        begin_s, end_s = self.devices[device].carry(now_s, size, factor)
        loading.uses.append((self.devices[device], begin_s, end_s))
        loading.ends_s = max(loading.fetched_s, end_s)
        self.devices[device].free_s = loading.ends_s
        loading.uses[-1] = (self.devices[device], begin_s, loading.ends_s)
        return loading

    def finish(self, loading: Loading) -> None:
        """Enter that a model has come through all tiers: it stays in each that has room."""
        self.arena.release(loading.model)
        arriving = self._arriving.get(loading.model)
        if arriving is not None and arriving.fetched_s <= loading.ends_s:
            del self._arriving[loading.model]
        if loading.source in (Tier.REMOTE, Tier.PEER) and loading.model not in self.ssd.sizes:
            self._put(self.ssd, Tier.SSD, loading.model, loading.size)
        if loading.model not in self.arena.sizes:
            self._put(self.arena, Tier.DRAM, loading.model, loading.size)

    def give_up(self, now_s: float, loading: Loading) -> None:
        """Stop a load; nothing of it stays, unless others use what it fetches."""
        self.arena.release(loading.model)
        uses = loading.uses[-1:] if loading.followers else loading.uses
        for link, begin_s, end_s in uses:
            link.give_up(now_s, begin_s, end_s, loading.size)
        if not loading.followers and self._arriving.get(loading.model) is loading:
            del self._arriving[loading.model]

    def empty(self, now_s: float) -> None:
        """Lose what was in memory, as a node that died; its SSD keeps what it has."""
        for model in self.arena.sizes:
            self._told(self.node_id, model, Tier.DRAM, is_there=False)
        self.arena = Shelf(self.hardware.arena_bytes)
        self._arriving.clear()
        for link in (self.disk, self.inward, self.outward, *self.devices):
            link.free_s = now_s

    def warm(self, model: str, size: int) -> None:
        """Have a model in memory as if it had been loaded."""
        if model not in self.arena.sizes:
            self._put(self.arena, Tier.DRAM, model, size)

    def place(self, models: Iterable[tuple[str, int]]) -> None:
        """Fill the SSD with what was imported before the run, as far as it has room."""
        for model, size in models:
            if self.ssd.used_bytes + size <= self.ssd.capacity_bytes:
                self.ssd.put(model, size)
                self._told(self.node_id, model, Tier.SSD, is_there=True)

    def _fetch(self, now_s: float, loading: Loading, factor: float, peer: Store | None) -> None:
        if loading.model in self.ssd.sizes:
            self.ssd.touch(loading.model)
            loading.source = Tier.SSD
            begin_s, loading.fetched_s = self.disk.carry(now_s, loading.size, factor)
            loading.uses.append((self.disk, begin_s, loading.fetched_s))
        else:
            loading.source = Tier.REMOTE if peer is None else Tier.PEER
            asked_s = now_s + self.hardware.remote_latency_s
            ends: list[float] = []
            for link in (self.inward, *(() if peer is None else (peer.outward,))):
                begin_s, end_s = link.carry(asked_s, loading.size, factor)
                loading.uses.append((link, begin_s, end_s))
                ends.append(end_s)
            loading.fetched_s = max(ends)
        self._arriving[loading.model] = loading

    def _put(self, shelf: Shelf, tier: Tier, model: str, size: int) -> None:
        gone = shelf.put(model, size)
        if gone is None:
            return
        for each in gone:
            self._told(self.node_id, each, tier, is_there=False)
        self._told(self.node_id, model, tier, is_there=True)
