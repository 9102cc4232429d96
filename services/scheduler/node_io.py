"""What each node's I/O is busy with: loads are served one after another, as far as we predict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Load:
    """One load under way."""

    size_bytes: int
    transfer_s: float  # as it was predicted, without its wait
    ordered_s: float
    begins_s: float  # as it was predicted
    is_alone: bool  # whether no other load was under way at any time


@dataclass(slots=True)
class NodeIo:
    """The loads of one node, and when they will be done."""

    loads: dict[str, Load] = field(default_factory=dict)  # by instance
    free_s: float = -math.inf
    stated_s: float = -math.inf  # until when its store manager says that it is busy

    def wait_s(self, now_s: float) -> float:
        """Return how long a load that is ordered now would wait for its first byte."""
        return max(0.0, self.free_s - now_s, self.stated_s - now_s)

    def begin(self, instance_id: str, now_s: float, *, size_bytes: int, transfer_s: float) -> None:
        """Enter a load that is ordered."""
        for other in self.loads.values():
            other.is_alone = False
        begins_s = max(now_s, self.free_s)
        self.loads[instance_id] = Load(
            size_bytes=size_bytes,
            transfer_s=transfer_s,
            ordered_s=now_s,
            begins_s=begins_s,
            is_alone=not self.loads,
        )
        self.free_s = begins_s + transfer_s

    def end(self, instance_id: str, now_s: float) -> Load | None:
        """Enter that a load has ended, however; return what was known of it."""
        load = self.loads.pop(instance_id, None)
        if load is None:
            return None
        left_s = sum(each.transfer_s for each in self.loads.values())
        self.free_s = min(self.free_s, now_s + left_s) if self.loads else -math.inf
        return load
