"""How fast this machine brings a checkpoint into memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brisk_native._implementation import read_file
from brisk_native._manifest import read_checksums
from brisk_native._weights import WeightFile, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What several reads of a checkpoint took."""

    file_bytes: int
    """Read in each run."""
    seconds: tuple[float, ...]
    """Wall time of each run."""
    cpu_seconds: tuple[float, ...]
    """User and system time of this process in each run."""
    direct: bool
    """True if every file was read past the page cache."""
    huge_pages: bool
    """True if every file lay in huge pages for at least its half."""
    verified: bool
    """True if every file was checked against brisk.json meanwhile."""

    @property
    def median_s(self) -> float:
        """Median wall time."""
        return statistics.median(self.seconds)

    @property
    def gb_per_s(self) -> float:
        """Bytes by the median time, in 1e9 bytes a second."""
        return self.file_bytes / 1e9 / self.median_s

    @property
    def cpu_s_per_gb(self) -> float:
        """Median processor seconds per 1e9 bytes."""
        return statistics.median(self.cpu_seconds) / max(1, self.file_bytes) * 1e9


def measure(
    source: str | os.PathLike[str],
    *,
    runs: int,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Speed:
    """Read all weight files of `source` into fresh memory, `runs` times; return what it took.

    What the page cache holds of the files is dropped before each run, as far as this process may.
    `progress` gets the bytes of all runs done so far, and those there are. Raises what
    `load_tensors` raises.
    """
    weights = read_weights(source)
    folder = Path(os.path.realpath(source))
    checksums = (read_checksums(folder) if folder.is_dir() else None) or {}
    total = weights.file_bytes * runs
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    direct = huge_pages = True
    for run in range(runs):
        for file in weights.files:
            _drop_from_cache(file)
        done = weights.file_bytes * run
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        kept = []
        for file in weights.files:

            def report(now: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + now, total)

            kept.append(
                read_file(
                    file.path,
                    threads=threads,
                    expected_crc32c=checksums.get(file.name),
                    progress=report,
                )
            )
            result = kept[-1][1]
            done += result.bytes_read
            direct, huge_pages = direct and result.direct, huge_pages and result.huge_pages
        seconds.append(time.perf_counter() - begin_s)
        cpu_seconds.append(time.process_time() - begin_cpu_s)
        kept.clear()  # outside of the times: giving gigabytes back takes a while
    return Speed(
        file_bytes=weights.file_bytes,
        seconds=tuple(seconds),
        cpu_seconds=tuple(cpu_seconds),
        direct=direct,
        huge_pages=huge_pages,
        verified=all(file.name in checksums for file in weights.files),
    )


def _drop_from_cache(file: WeightFile) -> None:
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
