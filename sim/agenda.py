"""Virtual time: what is to happen, earliest first.

Two things for one moment happen in the order in which they were asked for, so a run depends on
nothing but what it was given.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Agenda:
    """The clock and all that waits for it."""

    __slots__ = ("_asked", "_heap", "done", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done = 0  # happenings so far
        self._asked = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, at_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what` at a time, which must not have passed."""
        self._asked += 1
        heapq.heappush(self._heap, (at_s, self._asked, what, arguments))

    def later(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what` in a while."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._asked, what, arguments))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due by `until_s`, and stop there."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_s:
            self.now_s, _, what, arguments = pop(heap)
            self.done += 1
            what(*arguments)
        self.now_s = until_s
