"""Bring a checkpoint's files into memory: each once, past the page cache, verified on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import brisk_native

from services.common.errors import (
    BriskError,
    DataLossError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.log import get_logger
from services.worker.checkpoint import Checkpoint, StoredFile
from services.worker.manifest import read_checksums

log = get_logger(__name__)

READ_THREADS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """A file in memory, which lives as long as anything refers to the buffer."""

    buffer: memoryview  # writable
    is_direct: bool  # read past the page cache
    is_huge: bool  # in huge pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A checkpoint's files in memory."""

    files: Mapping[str, ReadFile]

    @property
    def buffers(self) -> Mapping[str, memoryview]:
        """The files' bytes by name."""
        return {name: file.buffer for name, file in self.files.items()}

    @property
    def bytes_read(self) -> int:
        """Bytes of all files."""
        return sum(len(file.buffer) for file in self.files.values())


class GivenUpError(Exception):
    """`WeightRead.give_up` was called."""


class WeightRead:
    """One reading of a checkpoint; `run` it once, on an executor's thread."""

    def __init__(self, checkpoint: Checkpoint, progress: Callable[[int], None]) -> None:
        """`progress` gets the bytes of all files so far, on the thread that runs."""
        self._checkpoint = checkpoint
        self._progress = progress
        self._cancel = brisk_native.CancelToken()

    def give_up(self) -> None:
        """End `run` within one chunk. From any thread."""
        self._cancel.cancel()

    def run(self) -> Weights:
        """Return all files. Blocks.

        Raises DataLossError (CHECKSUM_MISMATCH) naming file and chunk, UnavailableError
        (STORE_UNREACHABLE) if a file cannot be read, ResourceExhaustedError (INSUFFICIENT_MEMORY)
        if the host has no memory, GivenUpError.
        """
        try:
            return self._read_all()
        except brisk_native.ReadCancelledError as error:
            raise GivenUpError from error
        except BriskError:
            raise
        except MemoryError as error:
            needed = self._checkpoint.file_bytes
            raise ResourceExhaustedError(
                f"the host has no memory left for {needed} bytes of weights",
                reason=Reason.INSUFFICIENT_MEMORY,
                metadata={"needed_bytes": str(needed)},
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"the weights cannot be read: {error.strerror}", reason=Reason.STORE_UNREACHABLE
            ) from error

    def _read_all(self) -> Weights:
        checksums = read_checksums(self._checkpoint.folder, self._checkpoint)
        files: dict[str, ReadFile] = {}
        before = 0
        for file in self._checkpoint.files:
            files[file.name] = self._read(file, checksums.get(file.name), before)
            before += file.size_bytes
        return Weights(files=files)

    def _read(self, file: StoredFile, expected: tuple[int, ...] | None, before: int) -> ReadFile:
        log.info("reading", file=file.name, bytes=file.size_bytes, is_verified=expected is not None)
        try:
            buffer, result = brisk_native.read_file(
                file.path,
                threads=READ_THREADS,
                expected_crc32c=expected,
                progress=lambda done: self._progress(before + done),
                cancel=self._cancel,
            )
        except brisk_native.ChecksumError as error:
            raise DataLossError(
                f"{file.name}: chunk {error.chunk} at offset {error.offset}: {error.detail}",
                reason=Reason.CHECKSUM_MISMATCH,
                metadata={"file": file.name, "chunk": str(error.chunk)},
            ) from error
        except brisk_native.ShortReadError as error:
            raise DataLossError(f"{file.name}: the file shrank while it was read") from error
        view = memoryview(buffer)
        if len(view) != file.size_bytes or view[: len(file.head)] != file.head:
            raise DataLossError(f"{file.name}: the file changed while it was read")
        log.info(
            "read",
            file=file.name,
            seconds=result.seconds,
            is_direct=result.direct,
            is_huge=result.huge_pages,
            implementation=brisk_native.IMPLEMENTATION,
        )
        return ReadFile(buffer=view, is_direct=result.direct, is_huge=result.huge_pages)
