"""A deployment's own idle times as a histogram, and what to do in the next one.

The hybrid histogram of "Serverless in the Wild" (ATC'20): its head says how long nothing is likely
to come, so that an instance may leave and be started again in time; its tail says how long it is
worth staying. Classes grow with the times they hold: one histogram serves seconds and hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_LEAST_S: Final = 0.25
_PER_DOUBLING: Final = 4
_CLASSES: Final = 64  # up to 4.5 hours; what is longer is too rare to wait for
_SAMPLES_LEAST: Final = 8
_SAMPLES_MAX: Final = 512  # then all counts are halved: old habits fade
_OUT_SHARE_MAX: Final = 0.5  # of times beyond the last class
_HEAD, _TAIL = 0.05, 0.99
_MARGIN: Final = 0.1  # before the head and behind the tail


class Window(NamedTuple):
    """When the next request is likely to come, counted from the end of the last one."""

    opens_s: float
    closes_s: float


@dataclass(slots=True)
class IdleTimes:
    """Counts of idle times by class."""

    counts: list[int] = field(default_factory=lambda: [0] * _CLASSES)
    out: int = 0

    def add(self, idle_s: float) -> None:
        """Count an idle time that has ended with a request."""
        at = _class_of(idle_s)
        if at >= _CLASSES:
            self.out += 1
        else:
            self.counts[at] += 1
        if self.out + sum(self.counts) > _SAMPLES_MAX:
            self.counts = [count // 2 for count in self.counts]
            self.out //= 2

    def window(self) -> Window | None:
        """Return when the next request is likely; None while too little is known."""
        within = sum(self.counts)
        if within < _SAMPLES_LEAST or self.out > _OUT_SHARE_MAX * (within + self.out):
            return None
        opens_s = _begin_of(self._at(_HEAD * within)) * (1.0 - _MARGIN)
        closes_s = _begin_of(self._at(_TAIL * within) + 1) * (1.0 + _MARGIN)
        return Window(0.0 if opens_s < _LEAST_S else opens_s, closes_s)

    def _at(self, rank: float) -> int:
        """Return the class of the idle time that so many do not exceed."""
        seen = 0
        for at, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return at
        raise AssertionError("the rank is within what was counted")


def _class_of(idle_s: float) -> int:
    if idle_s < _LEAST_S:
        return 0
    return min(_CLASSES, 1 + int(_PER_DOUBLING * math.log2(idle_s / _LEAST_S)))


def _begin_of(at: int) -> float:
    """Return the least idle time of a class."""
    return 0.0 if at == 0 else _LEAST_S * 2.0 ** ((at - 1) / _PER_DOUBLING)


@dataclass(slots=True)
class Habit:
    """What is known of one deployment."""

    idle_times: IdleTimes = field(default_factory=IdleTimes)
    ended_s: float | None = None  # when its last sequence ended; None: it has some, or never had
