"""Both implementations, files to read, and disks that behave unusually."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import brisk_native
import pytest

from tests.fakes import cuda_driver
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


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda_driver.Driver]:
    """Run on the stand-in, which must be left as clean as it was found."""
    driver = cuda_driver.load()
    if driver is None or not loaders.is_built():
        pytest.skip("there is no compiler here")
    monkeypatch.setenv("BRISK_CUDA_DRIVER", str(driver.path))
    brisk_native.devices()
    driver.reset()
    yield driver
    gc.collect()
    assert driver.is_clean()
    driver.reset()


def noise(size: int) -> bytes:
    """Return bytes without a pattern that a wrong offset could hit by luck."""
    return random.Random(size).randbytes(size)  # noqa: S311  equal sizes shall give equal bytes


def run_on_disk(kind: str, options: str, folder: Path, code: str, *arguments: str | Path) -> str:
    """Run Python `code` with an empty file system mounted on `folder`; return what it prints.

    The mount lives in a namespace of its own, so it needs no root and cannot be left behind.
    Skips the test where even that is not allowed.
    """
    folder.mkdir()
    inside = ["unshare", "--map-root-user", "--mount"]
    mount = ["sh", "-c", 'mount -t "$1" -o "$2" none "$3" || exit 77; shift 3; exec "$@"', "sh"]
    program = [sys.executable, "-c", code, *arguments]
    try:
        ran = subprocess.run(
            [*inside, *mount, kind, options, folder, *program],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare command here")
    if ran.returncode == 77 or ran.stderr.startswith("unshare:"):
        pytest.skip(f"mounting a {kind} is not allowed here: {ran.stderr}")
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout
