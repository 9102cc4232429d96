"""What of a file was fetched and verified already, so that an interrupted import goes on there.

One record a chunk, appended after the chunk was written. Nothing in it is believed: a chunk counts
only if what lies in the file still has the recorded checksum, so a torn record, lost pages and
another version of the source all mean no more than that the chunk is fetched again.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_RECORD: Final = struct.Struct("<II")  # chunk, its CRC-32C


class Journal:
    """The records of one file. For use as a context."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Open it, made if it is not there. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def read(self, chunks: int) -> dict[int, int]:
        """Return the recorded checksums of a file of so many chunks, by chunk; the last counts."""
        size = os.fstat(self._descriptor).st_size
        size = min(size - size % _RECORD.size, 4 * chunks * _RECORD.size)
        raw = os.pread(self._descriptor, size, 0)
        found = dict(_RECORD.iter_unpack(raw[: len(raw) - len(raw) % _RECORD.size]))
        return {chunk: checksum for chunk, checksum in found.items() if chunk < chunks}

    def restart(self, records: dict[int, int]) -> None:
        """Hold these records and no others: what comes next begins at a whole record."""
        os.ftruncate(self._descriptor, 0)
        self._append(b"".join(_RECORD.pack(*each) for each in sorted(records.items())))

    def add(self, first: int, checksums: list[int]) -> None:
        """Record chunks that were written. May be called by any thread."""
        self._append(
            b"".join(_RECORD.pack(first + number, each) for number, each in enumerate(checksums))
        )

    def _append(self, raw: bytes) -> None:
        with self._lock:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
