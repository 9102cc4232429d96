"""How a model gets into the arena: read slice by slice through the disk's queue, or found there.

Only this module moves bytes; which chunks they go to, and what had to leave for them, is decided
before by `Arena`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from services.common.errors import DataLossError, Reason, UnavailableError
from services.storemgr import metrics
from services.storemgr.chunks import Piece
from services.storemgr.io_queue import SLICE_BYTES, IoQueue
from services.storemgr.manifest import CHUNK_BYTES, Manifest, StoredFile
from services.storemgr.ports import ArenaMemory, Job, Span
from services.storemgr.refusal import MalformedError
from services.storemgr.residents import Resident
from services.storemgr.threads import begin, finish


class Filler:
    """Brings models into the arena's memory."""

    def __init__(self, memory: ArenaMemory, queue: IoQueue, threads: Executor) -> None:
        self.memory = memory
        self.queue = queue
        self._threads = threads

    async def read(self, resident: Resident, folder: Path, manifest: Manifest, job: Job) -> None:
        """Read the weights from `folder` to their pieces. Cancelling ends it within one chunk.

        Raises DataLossError (CHECKSUM_MISMATCH) and UnavailableError (STORE_UNREACHABLE).
        """
        with self.queue.job(resident.priority, resident.bytes_total) as resident.job:
            for file, placed in zip(manifest.weights, resident.files, strict=True):
                for span in _spans(file.size_bytes):
                    size = min(span.count * CHUNK_BYTES, file.size_bytes - span.first * CHUNK_BYTES)
                    async with resident.job.slice(size):
                        reading = self._begin(folder, file, placed.pieces, span, job)
                        await self._finish(resident, file, reading, job)
                    resident.bytes_done += size
                    metrics.ARENA_READ_BYTES.inc(size)

    async def check(self, resident: Resident, manifest: Manifest, job: Job) -> None:
        """Compare what lies in a model's pieces with its checksums.

        Raises DataLossError (CHECKSUM_MISMATCH) if it is not what it was.
        """
        for file, placed in zip(manifest.weights, resident.files, strict=True):
            checking = begin(
                self._threads, self.memory.checksums, placed.pieces, file.size_bytes, job
            )
            if await finish(checking, stop=job.stop) != file.checksums:
                raise DataLossError(
                    f'{file.name} of "{manifest.name}" was changed in memory',
                    reason=Reason.CHECKSUM_MISMATCH,
                )
            resident.bytes_done += file.size_bytes

    def _begin(
        self, folder: Path, file: StoredFile, pieces: Sequence[Piece], span: Span, job: Job
    ) -> asyncio.Future[None]:
        path = folder / file.name
        return begin(self._threads, self.memory.read, path, pieces, span, file.checksums, job)

    async def _finish(
        self, resident: Resident, file: StoredFile, reading: asyncio.Future[None], job: Job
    ) -> None:
        try:
            await finish(reading, stop=job.stop)
        except asyncio.CancelledError:
            resident.is_stuck = not reading.done()
            raise
        except MalformedError as error:
            raise DataLossError(f"{file.name} {error}", reason=Reason.CHECKSUM_MISMATCH) from error
        except OSError as error:
            raise UnavailableError(
                f"{file.name} cannot be read: {error.strerror}", reason=Reason.STORE_UNREACHABLE
            ) from error


def _spans(size_bytes: int) -> Iterator[Span]:
    chunks, most = -(-size_bytes // CHUNK_BYTES), SLICE_BYTES // CHUNK_BYTES
    for first in range(0, chunks, most):
        yield Span(first=first, count=min(most, chunks - first))
