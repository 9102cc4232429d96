"""Times at which the core wants to look again, earliest first, at most one per kind and key.

A timer is a reminder, not a command: whoever looks again checks whether there is anything to do.
So timers are never taken back, and one that is pushed later than a pending one is not needed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What to look at."""

    GRANT = "grant"  # key: request
    KEEP_ALIVE = "keep_alive"  # key: instance
    QUEUE = "queue"  # key: deployment, or empty for all
    SILENCE = "silence"  # key: worker
    UNLOAD = "unload"  # key: instance
    ROUTER = "router"  # key: router
    SCALE = "scale"  # key: deployment
    AHEAD = "ahead"  # key: deployment


@dataclass(slots=True)
class Timers:
    """A heap whose outdated entries are skipped when they come up."""

    _heap: list[tuple[float, Kind, str]] = field(default_factory=list)
    _pending: dict[tuple[Kind, str], float] = field(default_factory=dict)

    def push(self, at_s: float, kind: Kind, key: str) -> None:
        """Remind of `key` at `at_s`, unless a reminder for it is due earlier."""
        pending_s = self._pending.get((kind, key))
        if pending_s is None or at_s < pending_s:
            self._pending[kind, key] = at_s
            heapq.heappush(self._heap, (at_s, kind, key))

    def pop_due(self, now_s: float) -> tuple[Kind, str] | None:
        """Return the earliest reminder that is due and forget it; None if there is none."""
        while self._heap and self._heap[0][0] <= now_s:
            at_s, kind, key = heapq.heappop(self._heap)
            if self._pending.get((kind, key)) == at_s:
                del self._pending[kind, key]
                return kind, key
        return None

    def next_s(self) -> float | None:
        """Return when the earliest reminder is due."""
        while self._heap and self._pending.get(self._heap[0][1:]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
