"""What the store manager needs from the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from brisk_native import Weights

from services.storemgr.chunks import Piece

Progress = Callable[[int], None]  # gets the bytes of the file done so far


class JobStoppedError(Exception):
    """A job ended because it was told to stop."""


class Job(Protocol):
    """Work on whole files: reads, checksums, copies. Blocks; `stop` comes from another thread."""

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""

    def stop(self) -> None:
        """End the work within one chunk, now and for ever."""

    def checksum(self, path: Path, progress: Progress) -> tuple[int, ...]:
        """Return the CRC-32C of each chunk of the regular file `path`.

        Raises OSError, MalformedError if the file shrinks meanwhile, and JobStoppedError.
        """

    def copy(self, source: Path, target: Path, progress: Progress) -> tuple[int, ...]:
        """Copy a regular file to the new file `target`, on the disk when this returns.

        Returns the CRC-32C of each chunk as it was read. Raises what `checksum` raises, and then
        leaves no `target`.
        """

    def convert(
        self,
        weights: Weights,
        target: Path,
        progress: Progress,
        expected: Mapping[str, Sequence[int]],
    ) -> tuple[int, ...]:
        """Write weights to the new file `target` in the stored form, on the disk on return.

        `expected` has the CRC-32C of each chunk of their files, by name, as far as it is known.

        Returns the CRC-32C of each chunk as it was written. Raises InvalidArgumentError
        (INVALID_MODEL) naming a file that has changed since `weights` were found, DataLossError
        (CHECKSUM_MISMATCH) naming one that is not as expected, and what `checksum` raises; then
        leaves no `target`.
        """


class Disk(Protocol):
    """The disk that the store lies on."""

    def new_job(self) -> Job:
        """Return a job that has not begun."""

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that can still be written under `folder`. Raises OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Some chunks of a file, as its checksums cut it."""

    first: int
    count: int


class ArenaMemory(Protocol):
    """Memory that all processes of the node can map. Its methods may be called from any thread."""

    @property
    def path(self) -> str:
        """What another process opens to map it."""

    @property
    def size_bytes(self) -> int:
        """All of it."""

    @property
    def kind(self) -> str:
        """What it is made of: hugetlb, tmpfs or small."""

    @property
    def populated_bytes(self) -> int:
        """What was faulted in so far."""

    @property
    def huge_pages(self) -> bool:
        """Whether it lies in huge pages, as was found when it had been faulted in."""

    def in_use(self, pieces: Sequence[Piece]) -> bool:
        """Return whether any process has some of these pieces mapped. Does not block."""

    def read(
        self,
        file: Path,
        pieces: Sequence[Piece],
        span: Span,
        checksums: Sequence[int],
        job: Job,
    ) -> None:
        """Read a part of `file` to where it belongs in `pieces`, and verify it. Blocks.

        `checksums` are those of the whole file. Raises DataLossError (CHECKSUM_MISMATCH), OSError,
        MalformedError if the file has shrunk, and JobStoppedError.
        """

    def checksums(self, pieces: Sequence[Piece], size_bytes: int, job: Job) -> tuple[int, ...]:
        """Return the CRC-32C of each chunk of what lies in `pieces`. Blocks.

        Raises JobStoppedError.
        """
