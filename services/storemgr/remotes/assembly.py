"""How a file of the store is put together from parts of the source's files. Nothing here does I/O.

A file that is kept has one piece, all of it. One of the stored form begins with a new header and
holds each tensor as a piece of its own, in the order of execution: so no original is ever written,
and what a model needs first comes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from brisk_native import CHUNK_BYTES, crc32c

_GAP_BYTES_MAX: Final = 64 << 10  # read over rather than asking twice
_SPAN_BYTES_MAX: Final = 16 << 20  # of a read that serves several pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of a source's file and where it goes."""

    source: int  # number of the file
    offset: int
    size: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A range to ask the source for, and which parts of it go where in the buffer."""

    source: int
    offset: int
    size: int
    parts: tuple[tuple[int, int, int], ...]  # offset in the read, size, place in the buffer

    @property
    def is_direct(self) -> bool:
        """Return whether all of the read goes to one place."""
        return len(self.parts) == 1 and self.parts[0][:2] == (0, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A file to make. What neither prefix nor pieces cover is zeros."""

    name: str
    size_bytes: int
    prefix: bytes
    pieces: tuple[Piece, ...]  # sorted by target, none over another
    expected: tuple[int, ...] | None  # checksums of its chunks, where the source promises them

    @property
    def chunks(self) -> int:
        """Return how many chunks the file has; the last may be short."""
        return -(-self.size_bytes // CHUNK_BYTES)

    def chunk_bytes(self, chunk: int) -> int:
        """Return the size of a chunk."""
        return min(CHUNK_BYTES, self.size_bytes - chunk * CHUNK_BYTES)

    def start(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, the file from `offset` on, with what needs no source."""
        buffer[:] = bytes(len(buffer))
        head = self.prefix[offset : offset + len(buffer)]
        buffer[: len(head)] = head

    def reads(self, offset: int, length: int) -> tuple[Read, ...]:
        """Return what to ask the source for to fill `length` bytes from `offset` on."""
        inside = sorted(self._inside(offset, length), key=lambda each: (each.source, each.offset))
        return tuple(_read(group) for group in _grouped(inside))

    def _inside(self, offset: int, length: int) -> Iterator[Piece]:
        """Yield the pieces, cut to the range; their target counts from its beginning."""
        end = offset + length
        first = bisect_right(self.pieces, offset, key=lambda each: each.target + each.size)
        for piece in self.pieces[first:]:
            if piece.target >= end:
                return
            begin, stop = max(offset, piece.target), min(end, piece.target + piece.size)
            if stop > begin:
                yield Piece(
                    source=piece.source,
                    offset=piece.offset + begin - piece.target,
                    size=stop - begin,
                    target=begin - offset,
                )


def whole(name: str, source: int, size_bytes: int, expected: tuple[int, ...] | None) -> Assembly:
    """Return the assembly of a file that is kept as it is."""
    piece = Piece(source=source, offset=0, size=size_bytes, target=0)
    return Assembly(
        name=name, size_bytes=size_bytes, prefix=b"", pieces=(piece,), expected=expected
    )


def runs(chunks: Iterable[int], chunks_max: int) -> Iterator[tuple[int, int]]:
    """Yield ascending `chunks` as runs of neighbours, (first, count), of `chunks_max` at most."""
    first, count = -1, 0
    for chunk in chunks:
        if count and (chunk != first + count or count == chunks_max):
            yield first, count
            count = 0
        if not count:
            first = chunk
        count += 1
    if count:
        yield first, count


def _grouped(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yield neighbours of one file that are better asked for at once."""
    group: list[Piece] = []
    for piece in pieces:
        if group:
            end = group[-1].offset + group[-1].size
            near = piece.source == group[-1].source and 0 <= piece.offset - end <= _GAP_BYTES_MAX
            span = piece.offset + piece.size - group[0].offset
            if not near or span > _SPAN_BYTES_MAX:
                yield group
                group = []
        group.append(piece)
    if group:
        yield group


def _read(group: Sequence[Piece]) -> Read:
    first, last = group[0], group[-1]
    parts: list[tuple[int, int, int]] = []
    for piece in group:
        at = piece.offset - first.offset
        if parts and _continues(parts[-1], at, piece.target):
            before = parts.pop()
            parts.append((before[0], before[1] + piece.size, before[2]))
        else:
            parts.append((at, piece.size, piece.target))
    return Read(
        source=first.source,
        offset=first.offset,
        size=last.offset + last.size - first.offset,
        parts=tuple(parts),
    )


def _continues(part: tuple[int, int, int], at: int, place: int) -> bool:
    return part[0] + part[1] == at and part[2] + part[1] == place


def first_damaged(assembly: Assembly, offset: int, buffer: memoryview) -> int | None:
    """Return the first chunk in `buffer`, from a chunk's `offset` on, that is not as expected."""
    if assembly.expected is None:
        return None
    for at in range(0, len(buffer), CHUNK_BYTES):
        chunk = (offset + at) // CHUNK_BYTES
        if crc32c(buffer[at : at + CHUNK_BYTES]) != assembly.expected[chunk]:
            return chunk
    return None
