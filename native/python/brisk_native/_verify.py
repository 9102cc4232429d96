"""Whether a folder's weights are sound, without loading them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brisk_native._implementation import CancelToken, checksum_file
from brisk_native._manifest import MANIFEST
from brisk_native._reading import checksums_of
from brisk_native._types import CHUNK_BYTES, ChecksumError, InvalidCheckpointError
from brisk_native._weights import Weights, folder_of, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found sound."""

    weights: Weights
    """Headers and index, checked completely."""
    files_checked: int
    """Files whose bytes match the checksums of the manifest; 0 if there is none."""
    bytes_checked: int
    """Bytes of those files."""


def verify(
    source: str | os.PathLike[str],
    *,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Verification:
    """Check headers and index of `source`, and every file that its brisk.json has checksums of.

    Of a single file, the brisk.json beside it counts, and what that says of this file.

    `threads` (1 to 64) read each file; memory is one chunk for each. `progress` gets the bytes
    done and those there are, on the calling thread, about every 20 ms.

    Raises InvalidHeaderError, InvalidCheckpointError (index or manifest), ChecksumError naming
    file, chunk and offset, ShortReadError, ReadCancelledError and OSError.
    """
    weights = read_weights(source)
    folder = folder_of(source)
    checksums = checksums_of(folder, weights)
    if not Path(source).is_dir():
        checksums = {file.name: checksums[file.name] for file in weights.files if checksums}
    paths = {name: _listed_file(folder, name) for name in checksums}
    total = sum(path.stat().st_size for path in paths.values())
    done = 0
    for name, path in paths.items():
        before = done

        def report(now: int, before: int = before) -> None:
            if progress is not None:
                progress(before + now, total)

        found = checksum_file(path, threads=threads, progress=report, cancel=cancel)
        compare(path, found, checksums[name])
        done = before + path.stat().st_size
    return Verification(weights=weights, files_checked=len(paths), bytes_checked=done)


def check_files(
    folder: Path,
    checksums: Mapping[str, Sequence[int]],
    names: Iterable[str],
    cancel: CancelToken | None = None,
) -> None:
    """Raise ChecksumError for the first chunk of these files that is not as the manifest has it.

    Raises InvalidCheckpointError for one that is not there.
    """
    for name in names:
        if name in checksums:
            path = _listed_file(folder, name)
            compare(path, checksum_file(path, cancel=cancel), checksums[name])


def _listed_file(folder: Path, name: str) -> Path:
    """Return a file that the manifest of `folder` lists, without links."""
    try:
        return Path(os.path.realpath(folder / name, strict=True))
    except FileNotFoundError:
        reason = (
            f"lists {name}, which is not there: bring the file back, or remove {MANIFEST} to load "
            "what is there without checksums"
        )
        raise InvalidCheckpointError(os.fspath(folder / MANIFEST), reason) from None


def compare(path: Path, found: Sequence[int], expected: Sequence[int]) -> None:
    """Raise ChecksumError for the first chunk of `path` that is not as expected."""
    compare_count(path, len(found), expected)
    for chunk, actual in enumerate(found):
        compare_chunk(path, chunk, actual, expected)


def compare_count(path: Path, chunks: int, expected: Sequence[int]) -> None:
    """Raise ChecksumError if a file of so many chunks has another number of checksums."""
    if chunks != len(expected):
        first = min(chunks, len(expected))
        detail = f"the file has {chunks} chunks, {len(expected)} checksums were given"
        raise ChecksumError(os.fspath(path), first, first * CHUNK_BYTES, detail)


def compare_chunk(path: Path, chunk: int, actual: int, expected: Sequence[int]) -> None:
    """Raise ChecksumError if this chunk's checksum is not as expected."""
    if actual != expected[chunk]:
        detail = f"crc32c is {actual:08x}, expected {expected[chunk]:08x}"
        raise ChecksumError(os.fspath(path), chunk, chunk * CHUNK_BYTES, detail)
