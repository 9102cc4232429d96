"""Whatever range of a stored file is asked for is filled with just the source's bytes for it."""

from __future__ import annotations

from collections.abc import Sequence

from brisk_native import CHUNK_BYTES
from hypothesis import given
from hypothesis import strategies as st

from services.storemgr.remotes.assembly import Assembly, Piece, runs, whole


def filled(assembly: Assembly, sources: Sequence[bytes], offset: int, length: int) -> bytes:
    """Do what a supply does."""
    buffer = memoryview(bytearray(b"\xff" * length))
    assembly.start(offset, buffer)
    for read in assembly.reads(offset, length):
        span = sources[read.source][read.offset : read.offset + read.size]
        assert len(span) == read.size
        for at, size, place in read.parts:
            buffer[place : place + size] = span[at : at + size]
    return bytes(buffer)


@st.composite
def assemblies(draw: st.DrawFn) -> tuple[Assembly, list[bytes], bytes]:
    """Draw a file, its sources, and its content made the plain way."""
    sources = draw(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=3))
    prefix = draw(st.binary(max_size=40))
    content = bytearray(prefix)
    pieces: list[Piece] = []
    for _ in range(draw(st.integers(0, 8))):
        content += bytes(draw(st.integers(0, 9)))
        number = draw(st.integers(0, len(sources) - 1))
        offset = draw(st.integers(0, len(sources[number]) - 1))
        size = draw(st.integers(1, len(sources[number]) - offset))
        pieces.append(Piece(source=number, offset=offset, size=size, target=len(content)))
        content += sources[number][offset : offset + size]
    content += bytes(draw(st.integers(0, 9)))
    assembly = Assembly(
        name="x",
        size_bytes=len(content),
        prefix=prefix,
        pieces=tuple(pieces),
        expected=None,
    )
    return assembly, sources, bytes(content)


@given(assemblies(), st.data())
def test_any_range_is_what_it_would_be_in_the_whole_file(
    made: tuple[Assembly, list[bytes], bytes], data: st.DataObject
) -> None:
    assembly, sources, content = made
    offset = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - offset))
    assert filled(assembly, sources, offset, length) == content[offset : offset + length]


def test_neighbours_in_the_source_are_asked_for_at_once() -> None:
    pieces = tuple(
        Piece(source=0, offset=offset, size=10, target=target)
        for offset, target in ((0, 20), (10, 30), (25, 0))
    )
    pieces = tuple(sorted(pieces, key=lambda piece: piece.target))
    assembly = Assembly(name="x", size_bytes=40, prefix=b"", pieces=pieces, expected=None)
    (read,) = assembly.reads(0, 40)
    assert (read.offset, read.size) == (0, 35)
    assert read.parts == ((0, 20, 20), (25, 10, 0))  # the first two lie side by side in both


def test_distant_pieces_are_asked_for_by_themselves() -> None:
    far = 1 << 30
    pieces = (
        Piece(source=0, offset=far, size=10, target=0),
        Piece(source=0, offset=0, size=10, target=10),
    )
    assembly = Assembly(name="x", size_bytes=20, prefix=b"", pieces=pieces, expected=None)
    assert [(read.offset, read.size) for read in assembly.reads(0, 20)] == [(0, 10), (far, 10)]


def test_a_kept_file_is_read_straight_to_its_place() -> None:
    assembly = whole("x", 0, 3 * CHUNK_BYTES + 1, None)
    assert assembly.chunks == 4
    assert assembly.chunk_bytes(3) == 1
    (read,) = assembly.reads(CHUNK_BYTES, CHUNK_BYTES)
    assert read.is_direct
    assert (read.offset, read.size) == (CHUNK_BYTES, CHUNK_BYTES)
    assert whole("x", 0, 0, None).reads(0, 0) == ()


def test_missing_chunks_are_asked_for_in_runs() -> None:
    assert list(runs([0, 1, 2, 4, 6, 7], 2)) == [(0, 2), (2, 1), (4, 1), (6, 2)]
    assert list(runs([], 2)) == []
