"""What both implementations return and raise, so that callers need not know which one runs.

Exception
├── ShortReadError (an EOFError)   the file ended before its size at opening said
├── ChecksumError                  a chunk's bytes are not the expected ones
└── ReadCancelledError             a CancelToken was raised before the last chunk was done

The kernel's own errors are OSError with errno and file name, memory that cannot be had is
MemoryError, and misuse is ValueError or TypeError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 4 * 1024 * 1024
"""How files are cut: the unit of reading, verifying and cancelling, in bytes."""

THREADS_MAX: Final = 64
"""The most reading threads that one job may ask for."""


class ShortReadError(EOFError):
    """The file ended before its size at opening said: truncated meanwhile. Names the file."""


class ChecksumError(Exception):
    """A chunk is damaged, or missing, or there is one chunk more than there are checksums."""

    def __init__(self, path: str, chunk: int, offset: int, detail: str) -> None:
        super().__init__(path, chunk, offset, detail)
        self.path = path
        """The file, as it was named in the call."""
        self.chunk = chunk
        """Number of the chunk, from 0."""
        self.offset = offset
        """Where the chunk begins in the file, in bytes."""
        self.detail = detail
        """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.path}: chunk {self.chunk} at offset {self.offset}: {self.detail}"


class ReadCancelledError(Exception):
    """The job stopped because its CancelToken was raised; nothing it made is left."""

    def __init__(self, bytes_done: int) -> None:
        super().__init__(bytes_done)
        self.bytes_done = bytes_done
        """Bytes in the chunks that were done before."""

    def __str__(self) -> str:
        return f"cancelled after {self.bytes_done} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """How a whole file came into memory."""

    bytes_read: int
    """Size of the file at the time of opening, in bytes."""
    direct: bool
    """True if O_DIRECT was used, False after the fallback to reads through the page cache."""
    huge_pages: bool
    """True if at least half of the memory came in huge pages."""
    seconds: float
    """Wall time of the call, from opening to the last verified byte."""
