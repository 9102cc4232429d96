"""What a new file is put together from, for the loader in plain Python."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brisk_native._types import ShortReadError


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherPlan:
    """What `gather_file` is to put where."""

    prefix: bytes
    pieces: Sequence[tuple[int, int, int, int]]
    size_bytes: int

    def check(self, sources: Sequence[tuple[str | os.PathLike[str], int]]) -> None:
        """Raise ValueError, or ShortReadError if a source ends before a piece does."""
        reached = len(self.prefix)
        for source, offset, size, target in self.pieces:
            if source >= len(sources):
                raise ValueError("a piece of a source that is none")
            if target < reached:
                raise ValueError("a piece over another one")
            if target + size > self.size_bytes:
                raise ValueError("a piece beyond the end of the target")
            reached = target + size
            path, there = sources[source]
            if offset + size > there:
                raise ShortReadError(
                    f"{os.fspath(path)}: wanted {size} bytes at offset {offset}, "
                    f"the file ends after {max(0, there - offset)}"
                )
        if reached > self.size_bytes:
            raise ValueError("a prefix beyond the end of the target")

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield source, offset in it, size and place in the chunk of what a chunk consists of."""
        first = bisect_right(self.pieces, offset, key=lambda piece: piece[3] + piece[2])
        for source, begin, size, target in self.pieces[first:]:
            if target >= offset + length:
                return
            start, stop = max(offset, target), min(offset + length, target + size)
            if stop > start:
                yield source, begin + start - target, stop - start, start - offset
