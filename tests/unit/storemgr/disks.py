"""A disk for tests: the real one, with faults and pauses where a test wants them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from brisk_native import Weights

from services.storemgr.adapters import NativeDisk
from services.storemgr.ports import Job, Progress
from services.storemgr.remotes.fetch import FetchLimits
from services.storemgr.remotes.fetcher import Fetcher
from services.storemgr.remotes.pace import Backoff, Pace
from services.storemgr.remotes.permits import parse_permits
from services.storemgr.remotes.sources import SourceRules
from services.storemgr.remotes.workplaces import Workplaces

Hook = Callable[[Path], None]


def nothing(_: Path) -> None:
    """Be an ordinary disk."""


def fail_on(name: str, code: int) -> Hook:
    """Fail with errno `code` when the file called `name` is worked on."""

    def hook(path: Path) -> None:
        if path.name == name:
            raise OSError(code, os.strerror(code), str(path))

    return hook


def full_on(name: str) -> Hook:
    """Have no room left when the file called `name` is worked on."""
    return fail_on(name, errno.ENOSPC)


class HookedDisk:
    """Runs `before` and `after` around the work on each file of the store."""

    def __init__(self, *, before: Hook = nothing, after: Hook = nothing) -> None:
        self.before = before
        self.after = after
        self.free: int | None = None  # None: what is really free
        self.jobs: list[Job] = []
        self._real = NativeDisk()

    def new_job(self) -> Job:
        self.jobs.append(HookedJob(self, self._real.new_job()))
        return self.jobs[-1]

    def free_bytes(self, folder: Path) -> int:
        return self._real.free_bytes(folder) if self.free is None else self.free


class HookedJob:
    def __init__(self, disk: HookedDisk, real: Job) -> None:
        self._disk = disk
        self._real = real

    @property
    def is_stopped(self) -> bool:
        return self._real.is_stopped

    def stop(self) -> None:
        self._real.stop()

    def checksum(self, path: Path, progress: Progress) -> tuple[int, ...]:
        self._disk.before(path)
        checksums = self._real.checksum(path, progress)
        self._disk.after(path)
        return checksums

    def copy(self, source: Path, target: Path, progress: Progress) -> tuple[int, ...]:
        self._disk.before(target)
        checksums = self._real.copy(source, target, progress)
        self._disk.after(target)
        return checksums

    def convert(
        self,
        weights: Weights,
        target: Path,
        progress: Progress,
        expected: Mapping[str, Sequence[int]],
    ) -> tuple[int, ...]:
        self._disk.before(target)
        checksums = self._real.convert(weights, target, progress, expected)
        self._disk.after(target)
        return checksums


class Barrier:
    """Holds the working thread at the file called `name` until the test lets it go."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, path: Path) -> None:
        if path.name == self._name:
            self.reached.set()
            assert self.go_on.wait(30)


def fetcher_in(root: Path) -> Fetcher:
    """Return what an importer fetches remote sources with; folders of this host are allowed."""
    backoff = Backoff(tries_max=1, first_s=0.0, pause_s_max=0.0)
    rules = SourceRules(
        permits=parse_permits("file"),
        limits=FetchLimits(streams=1, backoff=backoff),
        pace=Pace(None),
        stall_s=1.0,
    )
    return Fetcher(rules, Workplaces(root / "fetches", keep_s=60.0))
