"""What leaves a full tier first: pure policies without clock or I/O.

A policy hears of everything that comes, is used and goes, and ranks what is there. What must stay
(leases, pins, what came a moment ago) is not its business: see `Arena`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

_REMEMBERED_MAX: Final = 4096  # of what is gone
_UNIT_MAX: Final = 1e200  # long before a float overflows

Key = TypeVar("Key", bound=Hashable)


class EvictionPolicy(Protocol[Key]):
    """Ranks what a tier holds."""

    def admit(self, key: Key, size_bytes: int, cost_s: float) -> None:
        """Hear that `key` came, for a use. `cost_s` is what bringing it back would take."""

    def use(self, key: Key) -> None:
        """Hear that `key`, which is there, was used."""

    def remove(self, key: Key) -> None:
        """Hear that `key` went, by whatever way; fine if it is not there."""

    def ranked(self) -> list[Key]:
        """Return all that is there, what should go first first."""


class Lru(Generic[Key]):
    """What was not used for longest goes first, whatever it costs. For comparison."""

    def __init__(self) -> None:
        self._held: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key, size_bytes: int, cost_s: float) -> None:  # noqa: ARG002
        """See EvictionPolicy."""
        self._held[key] = None
        self._held.move_to_end(key)

    def use(self, key: Key) -> None:
        """See EvictionPolicy."""
        self._held.move_to_end(key)

    def remove(self, key: Key) -> None:
        """See EvictionPolicy."""
        self._held.pop(key, None)

    def ranked(self) -> list[Key]:
        """See EvictionPolicy."""
        return list(self._held)


@dataclass(slots=True)
class _Held:
    size_bytes: int
    cost_s: float
    rank: float


class CostAware(Generic[Key]):
    """What saves the least time per byte goes first.

    A key's worth is how often it was used, older uses counting less and less, times what bringing
    it back costs, per byte. Uses are counted on across absences, so that a popular model that once
    had to go does not start as a stranger. Age is counted in uses of anything, not in seconds: a
    quiet night makes nobody less popular.
    """

    def __init__(self, half_life: float = 128.0) -> None:
        """Let a use count half after `half_life` uses of whatever."""
        self._growth = 2 ** (1 / half_life)
        self._unit = 1.0  # what a use counts now: it grows instead of all others shrinking
        self._counts: OrderedDict[Key, float] = OrderedDict()
        self._held: dict[Key, _Held] = {}

    def admit(self, key: Key, size_bytes: int, cost_s: float) -> None:
        """See EvictionPolicy."""
        self._held[key] = _Held(max(size_bytes, 1), cost_s, 0.0)
        self.use(key)

    def use(self, key: Key) -> None:
        """See EvictionPolicy."""
        self._unit *= self._growth
        if self._unit > _UNIT_MAX:
            self._rescale()
        self._counts[key] = self._counts.get(key, 0.0) + self._unit
        self._counts.move_to_end(key)
        while len(self._counts) > max(_REMEMBERED_MAX, len(self._held)):
            self._counts.popitem(last=False)
        held = self._held[key]
        held.rank = self._counts[key] * held.cost_s / held.size_bytes

    def remove(self, key: Key) -> None:
        """See EvictionPolicy."""
        self._held.pop(key, None)

    def ranked(self) -> list[Key]:
        """See EvictionPolicy."""
        return sorted(self._held, key=lambda key: self._held[key].rank)

    def _rescale(self) -> None:
        for key in self._counts:
            self._counts[key] /= self._unit
        for held in self._held.values():
            held.rank /= self._unit
        self._unit = 1.0
