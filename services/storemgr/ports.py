"""What the store manager needs from the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from brisk_native import Weights

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

    def convert(self, weights: Weights, target: Path, progress: Progress) -> tuple[int, ...]:
        """Write weights to the new file `target` in the stored form, on the disk on return.

        Returns the CRC-32C of each chunk as it was written. Raises InvalidArgumentError
        (INVALID_MODEL) naming a file that has changed since `weights` were found, and what
        `checksum` raises; then leaves no `target`.
        """


class Disk(Protocol):
    """The disk that the store lies on."""

    def new_job(self) -> Job:
        """Return a job that has not begun."""

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that can still be written under `folder`. Raises OSError."""
