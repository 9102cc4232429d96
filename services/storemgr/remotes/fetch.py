"""Fetch one file: many ranges at once, each verified, written to its place and recorded.

Threads take runs of missing chunks in order. A run that fails is tried again after a pause; one
that fails for good, or too often, ends the others. Everything here blocks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from brisk_native import CHUNK_BYTES, crc32c

from services.storemgr.remotes.assembly import Assembly, runs
from services.storemgr.remotes.journal import Journal
from services.storemgr.remotes.pace import Backoff
from services.storemgr.remotes.patience import Patience
from services.storemgr.remotes.refusals import PassingError, mismatch

RUN_CHUNKS: Final = 2
_SYNC_BYTES: Final = 256 << 20  # written back in between, so that the end does not wait for all

Arrived = Callable[[int, bool], None]  # bytes more that are there; whether they were fetched now


class Supply(Protocol):
    """Where a file's bytes come from."""

    def fill(self, assembly: Assembly, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the file's bytes from `offset` on. Called by several threads.

        Raises PassingError, BriskError, OSError and JobStoppedError.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """How hard to try."""

    streams: int  # reads at once
    backoff: Backoff


class Fetch:
    """The making of one file, as far as it has come."""

    def __init__(
        self,
        assembly: Assembly,
        supply: Supply,
        limits: FetchLimits,
        *,
        is_stopped: Callable[[], bool],
        arrived: Arrived,
    ) -> None:
        self._assembly = assembly
        self._supply = supply
        self._streams = limits.streams
        self._arrived = arrived
        self._over = threading.Event()
        self._patience = Patience(backoff=limits.backoff, is_stopped=is_stopped, over=self._over)
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._checksums: dict[int, int] = {}
        self._unsynced = 0

    def run(self, path: Path, journal_path: Path) -> tuple[int, ...]:
        """Make the file `path` whole and durable and return its chunks' checksums.

        What `path` and `journal_path` hold of an earlier run is verified and not fetched again.
        Raises BriskError, OSError and JobStoppedError; both are kept then, for the next run.
        """
        with Journal(journal_path) as journal, _opened(path, self._assembly.size_bytes) as file:
            for chunk, checksum in journal.read(self._assembly.chunks).items():
                self._patience.check()
                if self._is_there(file, chunk, checksum):
                    self._checksums[chunk] = checksum
                    self._arrived(self._assembly.chunk_bytes(chunk), False)  # noqa: FBT003
            journal.restart(self._checksums)
            missing = (n for n in range(self._assembly.chunks) if n not in self._checksums)
            self._fetch(tuple(runs(missing, RUN_CHUNKS)), file, journal)
            os.fsync(file)
        return tuple(self._checksums[chunk] for chunk in range(self._assembly.chunks))

    def _fetch(self, work: tuple[tuple[int, int], ...], file: int, journal: Journal) -> None:
        left = iter(work)
        threads = [
            threading.Thread(
                target=self._work, args=(left, file, journal), name=f"storemgr-fetch-{number}"
            )
            for number in range(min(self._streams, len(work)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed is not None:
            raise self._failed

    def _work(self, left: Iterator[tuple[int, int]], file: int, journal: Journal) -> None:
        buffer = memoryview(bytearray(RUN_CHUNKS * CHUNK_BYTES))
        try:
            while (run := self._next(left)) is not None:
                first, count = run
                offset = first * CHUNK_BYTES
                part = buffer[: min(count * CHUNK_BYTES, self._assembly.size_bytes - offset)]
                checksums = self._bring(first, part)
                _write(file, part, offset)
                journal.add(first, checksums)
                self._note(first, checksums, len(part), file)
        except BaseException as error:  # noqa: BLE001 - the thread that waits for us raises it
            with self._lock:
                self._failed = self._failed or error
            self._over.set()

    def _next(self, left: Iterator[tuple[int, int]]) -> tuple[int, int] | None:
        with self._lock:
            if self._over.is_set():
                return None
            self._patience.check()
            return next(left, None)

    def _bring(self, first: int, buffer: memoryview) -> list[int]:
        """Fill `buffer` with chunks from `first` on and return their checksums."""

        def attempt(is_last: bool) -> list[int]:  # noqa: FBT001
            self._supply.fill(self._assembly, first * CHUNK_BYTES, buffer)
            return self._verified(first, buffer, is_last=is_last)

        return self._patience.run(self._assembly.name, attempt)

    def _verified(self, first: int, buffer: memoryview, *, is_last: bool) -> list[int]:
        parts = range(0, len(buffer), CHUNK_BYTES)
        checksums = [crc32c(buffer[at : at + CHUNK_BYTES]) for at in parts]
        for number, checksum in enumerate(checksums, first):
            if not self._is_expected(number, checksum):
                if is_last:
                    raise mismatch(self._assembly.name, number)
                raise PassingError("a chunk arrived damaged")
        return checksums

    def _note(self, first: int, checksums: Iterable[int], size: int, file: int) -> None:
        with self._lock:
            self._checksums.update(enumerate(checksums, first))
            self._unsynced += size
            is_due = self._unsynced >= _SYNC_BYTES
            if is_due:
                self._unsynced = 0
            self._arrived(size, True)  # noqa: FBT003
        if is_due:
            os.fdatasync(file)

    def _is_there(self, file: int, chunk: int, checksum: int) -> bool:
        size = self._assembly.chunk_bytes(chunk)
        raw = os.pread(file, size, chunk * CHUNK_BYTES)
        return len(raw) == size and crc32c(raw) == checksum and self._is_expected(chunk, checksum)

    def _is_expected(self, chunk: int, checksum: int) -> bool:
        expected = self._assembly.expected
        return expected is None or expected[chunk] == checksum


@contextmanager
def _opened(path: Path, size_bytes: int) -> Iterator[int]:
    """Open the file to fill, made with its final size if it is not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
