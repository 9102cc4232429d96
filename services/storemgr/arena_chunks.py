"""The arena's chunks, and who may not get them: the ledger and the kernel's knowledge as one.

A chunk that is given back while a process still has it mapped is an orphan: nobody gets it until
that mapping is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.storemgr.chunks import ChunkLedger, Piece
from services.storemgr.ports import ArenaMemory


class ArenaChunks:
    """Gives chunks of a memory to models. One owner: the event loop."""

    def __init__(self, memory: ArenaMemory, chunk_bytes: int) -> None:
        self._memory = memory
        self._ledger = ChunkLedger(memory.size_bytes, chunk_bytes)
        self._orphans: list[Piece] = []

    @property
    def chunk_bytes(self) -> int:
        """The size of each."""
        return self._ledger.chunk_bytes

    @property
    def size_bytes(self) -> int:
        """All of them."""
        return self._ledger.size_bytes

    @property
    def free_bytes(self) -> int:
        """What can be taken now."""
        return self._ledger.free_bytes

    @property
    def orphan_bytes(self) -> int:
        """What belongs to no model, but is still mapped."""
        return sum(piece.size_bytes for piece in self._orphans)

    def needed(self, sizes: Sequence[int]) -> int:
        """Return what files of these sizes take."""
        return sum(self._ledger.rounded(size) for size in sizes)

    def take(self, size_bytes: int) -> tuple[Piece, ...]:
        """Take chunks for a file, which must fit. Raises RuntimeError if it does not."""
        pieces = self._ledger.take(size_bytes)
        if pieces is None:
            raise RuntimeError(f"{size_bytes} bytes taken, {self.free_bytes} free")
        return pieces

    def claim(self, pieces: Sequence[Piece]) -> None:
        """Take exactly these. Raises ValueError, and takes none, if some are not free."""
        taken: list[Piece] = []
        try:
            for piece in pieces:
                self._ledger.claim((piece,))
                taken.append(piece)
        except ValueError:
            self._ledger.give_back(taken)
            raise

    def give_back(self, pieces: Sequence[Piece]) -> None:
        """Free what was taken; what is mapped only when it no longer is."""
        self._orphans += pieces
        self.reclaim()

    def reclaim(self) -> None:
        """Free the orphans that nobody has mapped any more."""
        left: list[Piece] = []
        for piece in self._orphans:
            if self.in_use((piece,)):
                left.append(piece)
            else:
                self._ledger.give_back((piece,))
        self._orphans = left

    def orphan_mapped(self) -> None:
        """Take what is free, but mapped: a predecessor gave it to someone who still has it."""
        pieces, found = list(self._ledger.free_pieces()), []
        while pieces:  # by halving
            piece = pieces.pop()
            if not self.in_use((piece,)):
                continue
            if piece.size_bytes == self.chunk_bytes:
                found.append(piece)
                continue
            half = piece.size_bytes // self.chunk_bytes // 2 * self.chunk_bytes
            pieces.append(Piece(offset=piece.offset, size_bytes=half))
            pieces.append(Piece(offset=piece.offset + half, size_bytes=piece.size_bytes - half))
        self._ledger.claim(found)
        self._orphans += found

    def in_use(self, pieces: Sequence[Piece]) -> bool:
        """Return whether any process has some of these mapped."""
        return self._memory.in_use(pieces)
