"""The arena's memory, through the native loader: made, or taken over from one that crashed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import brisk_native

from services.common.clock import monotonic_s
from services.common.errors import DataLossError, Reason
from services.common.log import get_logger
from services.storemgr.adapters import NativeJob, our_errors
from services.storemgr.chunks import Piece
from services.storemgr.ports import Job, Span

log = get_logger(__name__)

CHUNK_BYTES: Final = brisk_native.CHUNK_BYTES
_CHUNKS_MAX: Final = 16_384  # a worker may have each of them as a mapping of its own, of 65,530
_WATCHER_S_MAX: Final = 5.0


def chunk_bytes_for(size_bytes: int) -> int:
    """Return the size of the chunks of an arena: as small as their number allows."""
    chunk_bytes = CHUNK_BYTES
    while size_bytes > chunk_bytes * _CHUNKS_MAX:
        chunk_bytes *= 2
    return chunk_bytes


class NativeMemory:
    """Implements ports.ArenaMemory."""

    def __init__(self, pool: brisk_native.Pool, *, kind: str, is_named: bool) -> None:
        """Own `pool`; the file of one that has a name is ours to remove."""
        if pool.path is None:
            raise ValueError("private memory cannot be shared")
        self._pool = pool
        self._is_named = is_named
        self.path = pool.path
        self.kind = kind
        self.size_bytes = pool.size_bytes
        self.huge_pages = False
        self._watcher = threading.Thread(target=self._watch, name="arena", daemon=True)
        self._watcher.start()

    @property
    def populated_bytes(self) -> int:
        """See ports.ArenaMemory."""
        return self._pool.populated

    def in_use(self, pieces: Sequence[Piece]) -> bool:
        """See ports.ArenaMemory."""
        return brisk_native.pieces_in_use(self._pool, _pairs(pieces))

    def read(
        self,
        file: Path,
        pieces: Sequence[Piece],
        span: Span,
        checksums: Sequence[int],
        job: Job,
    ) -> None:
        """See ports.ArenaMemory."""
        with _told_apart(), our_errors():
            brisk_native.read_pieces(
                file,
                self._pool,
                _pairs(pieces),
                first=span.first,
                count=span.count,
                expected_crc32c=checksums,
                cancel=_token(job),
            )

    def checksums(self, pieces: Sequence[Piece], size_bytes: int, job: Job) -> tuple[int, ...]:
        """See ports.ArenaMemory."""
        with our_errors():
            return tuple(
                brisk_native.checksum_pieces(
                    self._pool, _pairs(pieces), size_bytes, cancel=_token(job)
                )
            )

    def close(self) -> None:
        """Give it up; who has some of it mapped keeps that."""
        if self._is_named:
            with suppress(OSError):
                Path(self.path).unlink(missing_ok=True)
        self._pool.close()
        self._watcher.join(_WATCHER_S_MAX)  # it ends now, and holds the memory until then

    def _watch(self) -> None:
        """Find out what it became, once it is faulted in."""
        began_s = monotonic_s()
        try:
            self._pool.wait_populated()
            self.huge_pages = self._pool.huge_pages
            populated = self._pool.populated
        except ValueError:  # closed meanwhile
            return
        facts = {"bytes": populated, "kind": self.kind, "is_huge": self.huge_pages}
        tell = log.info if self.huge_pages else log.warning
        tell("arena faulted in", seconds=monotonic_s() - began_s, **facts)


def _pairs(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    return [(piece.offset, piece.size_bytes) for piece in pieces]


def _token(job: Job) -> brisk_native.CancelToken:
    if not isinstance(job, NativeJob):
        raise TypeError(f"a native job is needed, not {type(job).__name__}")
    return job.token


@contextmanager
def _told_apart() -> Iterator[None]:
    """Say which chunk of a file is damaged."""
    try:
        yield
    except brisk_native.ChecksumError as error:
        file = Path(error.path).name
        raise DataLossError(
            f"{file}: chunk {error.chunk} at offset {error.offset}: {error.detail}",
            reason=Reason.CHECKSUM_MISMATCH,
            metadata={"file": file, "chunk": str(error.chunk)},
        ) from error
