"""One deadline per request, carried from hop to hop; gRPC for Python does not carry it itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from services.common.clock import monotonic_s


class Timed(Protocol):
    """The part of a gRPC servicer context that knows how long its caller will wait."""

    def time_remaining(self) -> float | None:
        """Return seconds, or None if the caller set no deadline."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline `seconds` from now; infinite is allowed."""
        return cls(monotonic_s() + seconds)

    @classmethod
    def from_context(cls, context: Timed, default_s: float) -> Deadline:
        """Return the caller's deadline, or `default_s` from now if it set none."""
        left_s = context.time_remaining()
        if left_s is None or not math.isfinite(left_s):
            left_s = default_s
        return cls.after(left_s)

    def remaining_s(self, at_most: float = math.inf) -> float:
        """Return the seconds left, between 0 and `at_most`: the timeout for the next hop."""
        return max(0.0, min(self.at_s - monotonic_s(), at_most))

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return monotonic_s() >= self.at_s
