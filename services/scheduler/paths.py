"""How fast one way gives bytes: `overhead + bytes * pace`, told apart by loads of different sizes.

A Kalman filter over the two figures, with relative errors and a memory of some ten loads. Loads of
one size alone correct both figures in proportion to how uncertain they are; another size settles
which of them it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_GB: Final = 1e9
_NOISE: Final = 0.05**2  # variance of one load's time, relative
_MEMORY: Final = 0.9  # what an outcome counts when the next one has come
_DOUBT: Final = 2.0  # standard deviation of what is believed at first, relative
_LIMIT_SPREADS: Final = 3.0  # an outcome further off counts as this far
_TRUSTED: Final = 3  # outcomes before that limit applies
_ERROR_MAX: Final = 8.0  # of a logarithm: a factor of 3,000
_SPREAD_LEAST: Final = 0.02
_SPREAD_RATE: Final = 0.2
_LEAST_S: Final = 1e-6


@dataclass(slots=True)
class Path:
    """What was learned of one way; begins with what is believed."""

    overhead_s: float
    pace_s: float  # for each 10^9 bytes
    count: int = 0
    spread: float = 1.0
    _doubt_overhead: float = -1.0  # the variances, and what both have in common
    _doubt_pace: float = -1.0
    _common: float = 0.0

    def __post_init__(self) -> None:
        self._doubt_overhead = (_DOUBT * self.overhead_s) ** 2
        self._doubt_pace = (_DOUBT * self.pace_s) ** 2

    @property
    def bytes_per_s(self) -> float:
        """Return the bandwidth."""
        return _GB / self.pace_s

    def seconds(self, size_bytes: int) -> float:
        """Return how long so many bytes take."""
        return self.overhead_s + self.pace_s * size_bytes / _GB

    def another(self) -> Path:
        """Return one that believes the same and has learned nothing yet."""
        return Path(self.overhead_s, self.pace_s)

    def learn(self, size_bytes: int, took_s: float, share: float) -> None:
        """Learn from a load, which counts as `share` of one."""
        expected_s = self.seconds(size_bytes)
        error = math.log(max(took_s, _LEAST_S) / expected_s)
        limit = _LIMIT_SPREADS * self.spread if self.count >= _TRUSTED else _ERROR_MAX
        error = max(-limit, min(limit, error))
        of_overhead, of_pace = 1.0 / expected_s, size_bytes / _GB / expected_s
        lever_overhead = self._doubt_overhead * of_overhead + self._common * of_pace
        lever_pace = self._common * of_overhead + self._doubt_pace * of_pace
        total = _NOISE / share + of_overhead * lever_overhead + of_pace * lever_pace
        relative = math.expm1(error)  # so that a large one is made good at once
        self._correct(relative, lever_overhead / total, lever_pace / total)
        self._doubt_overhead -= lever_overhead * lever_overhead / total
        self._doubt_pace -= lever_pace * lever_pace / total
        self._common -= lever_overhead * lever_pace / total
        self._forget()
        rate = max(1.0 / (self.count + 1), _SPREAD_RATE)
        self.spread = max(_SPREAD_LEAST, self.spread + rate * (abs(error) - self.spread))
        self.count += 1

    def _correct(self, error: float, gain_overhead: float, gain_pace: float) -> None:
        """Move both figures, neither of them below a tenth of itself nor beyond ten times."""
        overhead_s = self.overhead_s + gain_overhead * error
        pace_s = self.pace_s + gain_pace * error
        self.overhead_s = min(10.0 * self.overhead_s, max(0.1 * self.overhead_s, overhead_s))
        self.pace_s = min(10.0 * self.pace_s, max(0.1 * self.pace_s, pace_s))

    def _forget(self) -> None:
        """Grow the doubts, as what was learned gets old, but not beyond those at first."""
        most_overhead = (_DOUBT * self.overhead_s) ** 2
        most_pace = (_DOUBT * self.pace_s) ** 2
        grown = 1.0 / _MEMORY
        if self._doubt_overhead * grown > most_overhead or self._doubt_pace * grown > most_pace:
            grown = 1.0
        self._doubt_overhead = max(self._doubt_overhead * grown, 1e-4 * most_overhead)
        self._doubt_pace = max(self._doubt_pace * grown, 1e-4 * most_pace)
        bound = 0.99 * math.sqrt(self._doubt_overhead * self._doubt_pace)
        self._common = max(-bound, min(bound, self._common * grown))
