"""Both implementations, files to read, and places where the kernel behaves unusually."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.native import loaders

# Big enough to take longer than the 20 ms between two progress calls on any machine, and made of
# holes, so that it costs no disk.
LONG_READ_BYTES = 768 * 1024 * 1024


@pytest.fixture(params=["native", "python"])
def loader(request: pytest.FixtureRequest) -> loaders.Loader:
    """Each implementation in turn."""
    if request.param == "native" and not loaders.is_built():
        pytest.skip("the extension was not built on this machine")
    return loaders.find(request.param)


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    """Make a file that takes a while to read."""
    path = tmp_path / "long"
    path.touch()
    os.truncate(path, LONG_READ_BYTES)
    return path


def noise(size: int) -> bytes:
    """Return bytes without a pattern that a wrong offset could hit by luck."""
    return random.Random(size).randbytes(size)  # noqa: S311  equal sizes shall give equal bytes


def mounted(kind: str, options: str, folder: Path) -> Iterator[Path]:
    """Yield `folder` with an empty file system on it; skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", kind, "-o", options, "none", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip(f"mounting a {kind} is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 6 MiB."""
    yield from mounted("tmpfs", "size=6m", tmp_path / "disk")


@pytest.fixture
def disk_without_direct(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that refuses O_DIRECT."""
    yield from mounted("ramfs", "mode=0755", tmp_path / "disk")
