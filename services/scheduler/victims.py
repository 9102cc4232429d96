"""Which instances make room: the set that costs least of those that free enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.scheduler.instance import Instance

_STEPS_MAX: Final = 400  # of the search; then the best set so far is taken


def cheapest(
    offered: Sequence[tuple[Instance, float]], lacking_bytes: int
) -> tuple[tuple[Instance, ...], float]:
    """Return the set that frees `lacking_bytes` at the least loss, and that loss.

    Of equally good ones the one with fewer members. All that is offered must suffice. The search is
    exact for the dozen instances that a device holds; of many more it takes a good set.
    """
    if lacking_bytes <= 0:
        return (), 0.0
    if len(offered) == 1:
        return (offered[0][0],), offered[0][1]
    # What frees most for its loss first: the first set found is good, which cuts the search.
    items = sorted(
        offered, key=lambda item: (item[1] / max(1, item[0].memory_bytes), item[0].instance_id)
    )
    search = _Search(items)
    search.visit(0, lacking_bytes, 0.0)
    return tuple(items[at][0] for at in search.best), search.best_loss


class _Search:
    """Branch and bound over sets of instances."""

    def __init__(self, items: Sequence[tuple[Instance, float]]) -> None:
        self.best: tuple[int, ...] = ()
        self.best_loss = float("inf")
        self._items = items
        self._left_bytes = [0] * (len(items) + 1)  # what all from here on would free
        for at in range(len(items) - 1, -1, -1):
            self._left_bytes[at] = self._left_bytes[at + 1] + items[at][0].memory_bytes
        self._taken: list[int] = []
        self._steps = 0

    def visit(self, at: int, lacking_bytes: int, loss: float) -> None:
        """Try all sets that continue the one taken so far."""
        self._steps += 1
        is_better = (loss, len(self._taken)) < (self.best_loss, len(self.best) or len(self._items))
        if lacking_bytes <= 0:
            if is_better or not self.best:
                self.best, self.best_loss = tuple(self._taken), loss
            return
        if self._left_bytes[at] < lacking_bytes or (self.best and loss > self.best_loss):
            return
        if self.best and self._steps > _STEPS_MAX:
            return
        instance, own_loss = self._items[at]
        self._taken.append(at)
        self.visit(at + 1, lacking_bytes - instance.memory_bytes, loss + own_loss)
        self._taken.pop()
        self.visit(at + 1, lacking_bytes, loss)
