"""A sorted collection of (number, name) pairs that stays quick when it is long."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

_BLOCK_MAX: Final = 512

Pair = tuple[float, str]


class SortedBlocks:
    """Pairs in order, in blocks of bounded length, so that no change moves more than one block."""

    def __init__(self) -> None:
        self._blocks: list[list[Pair]] = []
        self._last: list[Pair] = []  # of each block
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pair]:
        for block in self._blocks:
            yield from block

    def add(self, pair: Pair) -> None:
        """Put a pair in."""
        self._count += 1
        if not self._blocks:
            self._blocks.append([pair])
            self._last.append(pair)
            return
        at = min(bisect_left(self._last, pair), len(self._blocks) - 1)
        block = self._blocks[at]
        insort(block, pair)
        if len(block) > _BLOCK_MAX:
            half = len(block) // 2
            self._blocks.insert(at + 1, block[half:])
            self._last.insert(at, block[half - 1])
            del block[half:]
            at += 1
            block = self._blocks[at]
        self._last[at] = block[-1]

    def remove(self, pair: Pair) -> None:
        """Take a pair out that is there."""
        at = bisect_left(self._last, pair)
        block = self._blocks[at]
        del block[bisect_left(block, pair)]
        self._count -= 1
        if block:
            self._last[at] = block[-1]
        else:
            del self._blocks[at]
            del self._last[at]
