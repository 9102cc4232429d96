"""The ledger's promise: chunks never overlap, all come back, and neighbours stay together."""

from __future__ import annotations

import random

import pytest

from services.storemgr.chunks import ChunkLedger, Piece

UNIT = 4 << 20


def piece(first: int, count: int = 1) -> Piece:
    return Piece(offset=first * UNIT, size_bytes=count * UNIT)


def ledger(chunks: int = 8) -> ChunkLedger:
    return ChunkLedger(chunks * UNIT + 5, UNIT)


def test_a_file_takes_whole_chunks_in_one_piece() -> None:
    free = ledger()
    assert free.size_bytes == free.free_bytes == 8 * UNIT
    assert free.take(UNIT + 1) == (piece(0, 2),)
    assert free.take(1) == (piece(2),)
    assert free.take(0) == ()
    assert free.free_bytes == 5 * UNIT


def test_a_file_fits_whenever_enough_chunks_are_free_wherever_they_lie() -> None:
    free = ledger()
    pieces = [free.take(UNIT) for _ in range(8)]
    for index in (1, 2, 5, 7):
        free.give_back(pieces[index] or ())
    assert free.take(4 * UNIT + 1) is None
    assert free.free_bytes == 4 * UNIT
    assert free.take(4 * UNIT) == (piece(1, 2), piece(5), piece(7))


def test_the_smallest_run_that_fits_is_taken() -> None:
    free = ledger()
    free.claim((piece(2), piece(5)))
    assert free.take(2 * UNIT) == (piece(0, 2),)
    assert free.take(UNIT) == (piece(3),)


def test_what_comes_back_is_one_run_again() -> None:
    free = ledger()
    pieces = [free.take(UNIT) or () for _ in range(8)]
    random.Random(7).shuffle(pieces)  # noqa: S311 - repeatable
    for each in pieces:
        free.give_back(each)
    assert list(free.free_pieces()) == [piece(0, 8)]


def test_exactly_these_can_be_claimed_once() -> None:
    free = ledger()
    free.claim((piece(3, 2), piece(0)))
    assert list(free.free_pieces()) == [piece(1, 2), piece(5, 3)]
    for taken in (piece(0), piece(2, 2), piece(4, 2), piece(7, 2)):
        with pytest.raises(ValueError, match=r"piece|free"):
            free.claim((taken,))
    assert free.free_bytes == 5 * UNIT


@pytest.mark.parametrize(
    "wrong",
    [
        piece(0),
        piece(2, 2),
        piece(8),
        Piece(offset=1, size_bytes=UNIT),
        Piece(offset=0, size_bytes=0),
    ],
)
def test_what_was_not_taken_does_not_come_back(wrong: Piece) -> None:
    free = ledger()
    free.claim((piece(3, 2),))
    with pytest.raises(ValueError, match="Piece"):
        free.give_back((wrong,))


def test_any_sequence_keeps_the_books() -> None:
    free, chance = ledger(64), random.Random(11)  # noqa: S311 - repeatable
    held: list[tuple[Piece, ...]] = []
    for _ in range(3000):
        if held and chance.random() < 0.5:
            free.give_back(held.pop(chance.randrange(len(held))))
        elif (taken := free.take(chance.randrange(1, 9 * UNIT))) is not None:
            held.append(taken)
        used = [
            chunk
            for pieces in held
            for each in pieces
            for chunk in range(each.offset // UNIT, (each.offset + each.size_bytes) // UNIT)
        ]
        assert len(used) == len(set(used))
        assert free.free_bytes == (64 - len(used)) * UNIT
