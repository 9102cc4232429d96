"""Which chunks of the arena are free: pure, exact to the chunk.

All chunks are equal, so a model fits whenever enough of them are free, wherever they lie.
Neighbours are given out together where that is possible, so that a model lies in few pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some chunks side by side, in bytes."""

    offset: int
    size_bytes: int


class ChunkLedger:
    """The free chunks, as runs sorted by place, no two of which touch."""

    def __init__(self, size_bytes: int, chunk_bytes: int) -> None:
        """Cut `size_bytes`; what is left after the last whole chunk is never given out."""
        self.chunk_bytes = chunk_bytes
        self.chunks = size_bytes // chunk_bytes
        self._begins: list[int] = [0] if self.chunks else []
        self._ends: list[int] = [self.chunks] if self.chunks else []

    @property
    def size_bytes(self) -> int:
        """All that can be given out."""
        return self.chunks * self.chunk_bytes

    @property
    def free_bytes(self) -> int:
        """What is free, maybe in many pieces."""
        return (sum(self._ends) - sum(self._begins)) * self.chunk_bytes

    def rounded(self, size_bytes: int) -> int:
        """Return what a file of this size takes."""
        return -(-size_bytes // self.chunk_bytes) * self.chunk_bytes

    def take(self, size_bytes: int) -> tuple[Piece, ...] | None:
        """Take chunks for a file of `size_bytes`; None, and nothing taken, if too few are free.

        One run if there is one that is large enough, the smallest such; else the largest ones.
        """
        left = self.rounded(size_bytes) // self.chunk_bytes
        if left * self.chunk_bytes > self.free_bytes:
            return None
        pieces: list[Piece] = []
        while left:
            sizes = [end - begin for begin, end in zip(self._begins, self._ends, strict=True)]
            fitting = [size for size in sizes if size >= left]
            run = sizes.index(min(fitting) if fitting else max(sizes))
            count = min(left, sizes[run])
            pieces.append(self._piece(self._begins[run], count))
            self._begins[run] += count
            if self._begins[run] == self._ends[run]:
                del self._begins[run], self._ends[run]
            left -= count
        return tuple(pieces)

    def claim(self, pieces: Iterable[Piece]) -> None:
        """Take exactly these pieces. Raises ValueError if some of them are not free."""
        for piece in pieces:
            begin, end = self._chunks_of(piece)
            run = bisect_left(self._ends, begin + 1)
            if run == len(self._ends) or self._begins[run] > begin or self._ends[run] < end:
                raise ValueError(f"{piece} is not free")
            rest = [(self._begins[run], begin), (end, self._ends[run])]
            kept = [(first, last) for first, last in rest if first < last]
            self._begins[run : run + 1] = [first for first, _ in kept]
            self._ends[run : run + 1] = [last for _, last in kept]

    def give_back(self, pieces: Iterable[Piece]) -> None:
        """Free pieces that were taken. Raises ValueError if some of them are free already."""
        for piece in pieces:
            begin, end = self._chunks_of(piece)
            run = bisect_left(self._begins, begin)
            touches_before = run > 0 and self._ends[run - 1] >= begin
            touches_after = run < len(self._begins) and self._begins[run] <= end
            if (run > 0 and self._ends[run - 1] > begin) or (
                run < len(self._begins) and self._begins[run] < end
            ):
                raise ValueError(f"{piece} is free already")
            first = run - 1 if touches_before else run
            last = run + 1 if touches_after else run
            begin = self._begins[first] if touches_before else begin
            end = self._ends[last - 1] if touches_after else end
            self._begins[first:last] = [begin]
            self._ends[first:last] = [end]

    def free_pieces(self) -> Iterator[Piece]:
        """Yield what is free, as runs."""
        for begin, end in zip(self._begins, self._ends, strict=True):
            yield self._piece(begin, end - begin)

    def _piece(self, chunk: int, count: int) -> Piece:
        return Piece(offset=chunk * self.chunk_bytes, size_bytes=count * self.chunk_bytes)

    def _chunks_of(self, piece: Piece) -> tuple[int, int]:
        begin, count = piece.offset // self.chunk_bytes, piece.size_bytes // self.chunk_bytes
        is_whole = piece == self._piece(begin, count)
        if not is_whole or count < 1 or begin < 0 or begin + count > self.chunks:
            raise ValueError(f"{piece} is no piece of {self.chunks} chunks")
        return begin, begin + count
