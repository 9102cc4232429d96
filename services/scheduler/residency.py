"""Where each model's bytes are: which nodes have it in DRAM, on SSD, or lack it altogether.

A node that has not told is believed to have every model on its SSD: deploying brings it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.model import ModelRef, Tier


class Stored(NamedTuple):
    """How much of a model a node's store has."""

    ref: ModelRef
    dram_bytes: int = 0
    is_on_ssd: bool = True


class Source(NamedTuple):
    """Where the bytes of a model that are not yet in a node's DRAM would come from."""

    tier: Tier
    missing_bytes: int  # to be read from `tier`; of DRAM, all that are copied to the device


class _Holders:
    """The nodes that have a model in a tier, any of which can be picked at once."""

    __slots__ = ("_at", "_nodes")

    def __init__(self) -> None:
        self._nodes: list[str] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node_id: str) -> None:
        if node_id not in self._at:
            self._at[node_id] = len(self._nodes)
            self._nodes.append(node_id)

    def discard(self, node_id: str) -> None:
        at = self._at.pop(node_id, None)
        if at is None:
            return
        last = self._nodes.pop()
        if last != node_id:
            self._nodes[at] = last
            self._at[last] = at

    def some(self, most: int, turn: int) -> Iterator[str]:
        """Yield all, or if they are many, others at each turn."""
        count = len(self._nodes)
        step = max(1, count // most)
        for number in range(min(most, count)):
            yield self._nodes[(turn + number * step) % count]


@dataclass(slots=True)
class Residency:
    """What store managers have told."""

    _nodes: dict[str, dict[ModelRef, Stored]] = field(default_factory=dict)
    _in_dram: dict[ModelRef, _Holders] = field(default_factory=dict)
    _on_ssd: dict[ModelRef, _Holders] = field(default_factory=dict)

    def follow(self, node_id: str, stored: Iterable[Stored]) -> None:
        """Take in all that a node's store has; what it does not list it lacks."""
        self.forget(node_id)
        self._nodes[node_id] = {}
        self.change(node_id, stored)

    def change(
        self, node_id: str, stored: Iterable[Stored], removed: Iterable[ModelRef] = ()
    ) -> None:
        """Take in what has changed since a node told all; nothing if it has not."""
        known = self._nodes.get(node_id)
        if known is None:
            return
        for ref in removed:
            known.pop(ref, None)
            _note(self._in_dram, ref, node_id, is_there=False)
            _note(self._on_ssd, ref, node_id, is_there=False)
        for each in stored:
            known[each.ref] = each
            _note(self._in_dram, each.ref, node_id, is_there=each.dram_bytes > 0)
            _note(self._on_ssd, each.ref, node_id, is_there=each.is_on_ssd)

    def forget(self, node_id: str) -> None:
        """Forget a node that is gone."""
        for ref in self._nodes.pop(node_id, {}):
            _note(self._in_dram, ref, node_id, is_there=False)
            _note(self._on_ssd, ref, node_id, is_there=False)

    def counts(self, node_id: str) -> tuple[int, int] | None:
        """Return how many models a node has on SSD and in DRAM; None if it has not told."""
        known = self._nodes.get(node_id)
        if known is None:
            return None
        on_ssd = sum(each.is_on_ssd for each in known.values())
        return on_ssd, sum(each.dram_bytes > 0 for each in known.values())

    def in_dram(self, ref: ModelRef, most: int, turn: int) -> Iterator[str]:
        """Yield at most so many nodes that have some of a model in DRAM."""
        holders = self._in_dram.get(ref)
        return iter(()) if holders is None else holders.some(most, turn)

    def on_ssd(self, ref: ModelRef, most: int, turn: int) -> Iterator[str]:
        """Yield at most so many nodes that said to have a model on SSD, unless nearly all do."""
        holders = self._on_ssd.get(ref)
        if holders is None or 2 * len(holders) > len(self._nodes):
            return iter(())
        return holders.some(most, turn)

    def source(self, node_id: str, ref: ModelRef, weight_bytes: int) -> Source:
        """Return what a start of a model on a node has to read, and from where."""
        known = self._nodes.get(node_id)
        if known is None:
            return Source(Tier.SSD, weight_bytes)
        stored = known.get(ref)
        if stored is None:
            return Source(Tier.REMOTE, weight_bytes)
        missing_bytes = weight_bytes - stored.dram_bytes
        if missing_bytes <= 0:
            return Source(Tier.DRAM, weight_bytes)
        return Source(Tier.SSD if stored.is_on_ssd else Tier.REMOTE, missing_bytes)


def _note(index: dict[ModelRef, _Holders], ref: ModelRef, node_id: str, *, is_there: bool) -> None:
    holders = index.get(ref)
    if is_there:
        if holders is None:
            holders = index[ref] = _Holders()
        holders.add(node_id)
    elif holders is not None:
        holders.discard(node_id)
        if not len(holders):
            del index[ref]
