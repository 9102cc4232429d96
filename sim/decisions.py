"""How long decisions took, by the kind of event: the one thing here that is not virtual.

In processor time of the one thread that decides, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import math

_STEPS = 20  # to each factor of ten
_LEAST_NS = 100.0


class Decisions:
    """A histogram by event."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.sums_ns: dict[str, int] = {}
        self._bins: dict[int, int] = {}  # of all acquisitions

    def note(self, kind: str, took_ns: int) -> None:
        """Enter one decision."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.sums_ns[kind] = self.sums_ns.get(kind, 0) + took_ns
        if kind == "AcquireRequested":
            step = int(_STEPS * math.log10(max(took_ns, _LEAST_NS) / _LEAST_NS))
            self._bins[step] = self._bins.get(step, 0) + 1

    @property
    def total_s(self) -> float:
        """Return the time that all of them took."""
        return sum(self.sums_ns.values()) / 1e9

    @property
    def count(self) -> int:
        """Return how many there were."""
        return sum(self.counts.values())

    def mean_us(self, kind: str) -> float:
        """Return the mean of one kind, 0 if there was none."""
        count = self.counts.get(kind, 0)
        return self.sums_ns[kind] / count / 1e3 if count else 0.0

    def acquire_us(self, share: float) -> float:
        """Return what a share of the decisions about a request did not exceed, within 12 %."""
        left = share * sum(self._bins.values())
        for step in sorted(self._bins):
            left -= self._bins[step]
            if left <= 0:
                return float(_LEAST_NS * 10 ** ((step + 1) / _STEPS) / 1e3)
        return 0.0
