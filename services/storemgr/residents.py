"""What lies in the arena, or is on its way there, and claims on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.common.clock import monotonic_s, wall_clock
from services.common.errors import BriskError
from services.common.model import ModelRef
from services.storemgr.chunks import Piece
from services.storemgr.io_queue import IoJob, IoPriority

PROGRESS_S: Final = 0.1  # between two reports


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFile:
    """A weight file in the arena."""

    name: str
    size_bytes: int
    pieces: tuple[Piece, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """A model in the arena. One owner: the event loop."""

    ref: ModelRef
    files: tuple[ArenaFile, ...]
    priority: IoPriority
    bytes_done: int = 0
    is_on_demand: bool = True  # comes for whoever has a claim: without one it need not
    is_stuck: bool = False  # a thread could not be stopped: its chunks are lost
    is_ready: bool = False  # all is there, and verified
    error: BriskError | None = None  # why it never will be
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # either of the two
    holders: int = 0  # claims on it
    job: IoJob | None = None
    work: asyncio.Task[None] | None = None
    arrived_s: float = field(default_factory=monotonic_s)
    used_at: datetime = field(default_factory=wall_clock)

    @property
    def bytes_total(self) -> int:
        """The size of its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All that it lies in."""
        return tuple(piece for file in self.files for piece in file.pieces)

    @property
    def size_bytes(self) -> int:
        """What it takes of the arena."""
        return sum(piece.size_bytes for piece in self.pieces)

    def hurry(self, priority: IoPriority) -> None:
        """Come at least so urgently from now on."""
        self.priority = min(self.priority, priority)
        if self.job is not None:
            self.job.hurry(priority)

    def settle(self, error: BriskError | None = None) -> None:
        """Be ready, or never."""
        self.is_ready, self.error = error is None, error
        self.settled.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a model has come."""

    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """Where a model's weights lie in memory."""

    path: str
    files: tuple[ArenaFile, ...]


class Claim:
    """A model that stays in the arena, or on its way there, for as long as the claim is held."""

    def __init__(self, resident: Resident, path: str) -> None:
        self._resident = resident
        self.was_ready = resident.is_ready
        self.mapping = Mapping(path=path, files=resident.files)
        """Where it is, once `progress` has ended."""

    async def progress(self) -> AsyncGenerator[Progress]:
        """Yield how far it is, about every PROGRESS_S, until all is there.

        Raises DataLossError (CHECKSUM_MISMATCH) and UnavailableError if it will never be.
        """
        resident = self._resident
        while not resident.settled.is_set():
            yield Progress(bytes_done=resident.bytes_done, bytes_total=resident.bytes_total)
            try:
                async with asyncio.timeout(PROGRESS_S):
                    await resident.settled.wait()
            except TimeoutError:
                continue
        if resident.error is not None:
            raise resident.error
        yield Progress(bytes_done=resident.bytes_total, bytes_total=resident.bytes_total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A model in the arena as others may know it."""

    size_bytes: int  # of its files
    in_use: bool
    used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFacts:
    """The arena as others may know it."""

    size_bytes: int
    free_bytes: int
    in_use_bytes: int
    chunk_bytes: int
    populated_bytes: int
    kind: str
    huge_pages: bool
