"""How fast and how often: a cap on bandwidth, and pauses between tries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.common.clock import monotonic_s

_SPEED_S: Final = 0.5  # an estimate takes in at least so much time


class Pace:
    """A cap on bytes per second that all readers share. Its methods may be called by any thread."""

    def __init__(
        self, bytes_per_s: int | None, *, clock: Callable[[], float] = monotonic_s
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def pause_s(self, size_bytes: int) -> float:
        """Return how long to wait after `size_bytes` more so that the cap is kept."""
        if self.bytes_per_s is None:
            return 0.0
        with self._lock:
            now_s = self._clock()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self.bytes_per_s
            return self._free_at_s - now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often a read is tried and how long the pauses are."""

    tries_max: int
    first_s: float
    pause_s_max: float

    def pause_s(self, tries: int, chance: float, asked_s: float | None = None) -> float:
        """Return the pause after `tries` failures. `chance`, 0..1, spreads it by half.

        `asked_s` is what the source asks for; it counts up to the longest pause.
        """
        doubled = self.first_s * float(2 ** (tries - 1))
        spread = min(doubled, self.pause_s_max) * (0.75 + chance / 2)
        return max(spread, min(asked_s or 0.0, self.pause_s_max))


class Speed:
    """A moving estimate of bytes per second. One thread at a time."""

    def __init__(self, *, clock: Callable[[], float] = monotonic_s) -> None:
        self._clock = clock
        self._began_s = self._since_s = clock()
        self._bytes = 0
        self._estimate = 0.0

    def add(self, size_bytes: int) -> None:
        """Take in what came."""
        self._bytes += size_bytes
        elapsed_s = self._clock() - self._since_s
        if elapsed_s >= _SPEED_S:
            latest = self._bytes / elapsed_s
            known = self._estimate > 0
            self._estimate = (self._estimate + latest) / 2 if known else latest
            self._since_s += elapsed_s
            self._bytes = 0

    @property
    def bytes_per_s(self) -> int:
        """Return the estimate; before the first there is one, the mean so far."""
        if self._estimate:
            return round(self._estimate)
        elapsed_s = self._clock() - self._began_s
        return round(self._bytes / elapsed_s) if elapsed_s > 0 else 0
