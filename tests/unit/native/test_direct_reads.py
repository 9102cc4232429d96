"""The native reader says the truth about O_DIRECT, aligns its memory and lets Python run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from brisk_native import CHUNK_BYTES

from tests.unit.native import loaders
from tests.unit.native.conftest import noise, run_on_disk
from tests.unit.native.loaders import MODULES, Loader

# An ordinary file with its true size that any user may read, on a file system without O_DIRECT.
SYSFS_FILE = Path("/sys/kernel/btf/vmlinux")

# Reads a copy of argv[2] on the disk argv[3]; prints whether it is the same and was read directly.
READ_FROM_A_DISK = """
import importlib, logging, pathlib, sys
logging.disable()
loader = importlib.import_module(sys.argv[1])
content, path = pathlib.Path(sys.argv[2]).read_bytes(), pathlib.Path(sys.argv[3], "file")
path.write_bytes(content)
buffer, result = loader.read_file(path, expected_crc32c=loader.checksum_file(path))
print(bytes(buffer) == content, result.direct)
"""


@pytest.fixture
def native() -> Loader:
    if not loaders.is_built():
        pytest.skip("the extension was not built on this machine")
    return loaders.find("native")


def test_direct_is_what_the_file_system_grants(native: Loader, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(noise(5000))
    try:
        os.close(os.open(tmp_path / "f", os.O_RDONLY | os.O_DIRECT))
        granted = True
    except OSError:
        granted = False
    assert native.read_file(tmp_path / "f")[1].direct is granted


def test_a_file_system_without_direct_reads_is_read_all_the_same(
    loader: Loader, tmp_path: Path
) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    source.write_bytes(noise(CHUNK_BYTES + 4097))
    arguments = (MODULES[loader.name], source, disk)
    assert run_on_disk("ramfs", "mode=0755", disk, READ_FROM_A_DISK, *arguments) == "True False\n"


def test_a_kernel_file_that_gives_a_page_at_a_time_is_read_whole(loader: Loader) -> None:
    if not SYSFS_FILE.exists():
        pytest.skip(f"this kernel has no {SYSFS_FILE}")
    buffer, result = loader.read_file(SYSFS_FILE)
    assert bytes(buffer) == SYSFS_FILE.read_bytes()
    assert result.direct is False


def test_the_python_reader_never_claims_direct_reads(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(noise(5000))
    result = loaders.find("python").read_file(tmp_path / "f")[1]
    assert (result.direct, result.huge_pages) == (False, False)


def test_memory_too_small_for_a_huge_page_is_not_called_one(native: Loader, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(noise(1 << 20))
    assert native.read_file(tmp_path / "f")[1].huge_pages is False


def test_a_direct_read_leaves_the_page_cache_alone(native: Loader, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(noise(4 * CHUNK_BYTES))
    with path.open("rb") as file:
        for _ in range(5):  # pages that the kernel has in hand stay
            os.sync()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not native.read_file(path)[1].direct or not hasattr(os, "RWF_NOWAIT"):
            pytest.skip("no direct reads here, or no way to look into the page cache")
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(4096)], CHUNK_BYTES, os.RWF_NOWAIT)


def test_other_python_threads_run_while_a_file_is_read(native: Loader, long_file: Path) -> None:
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = ticks
    _, result = native.read_file(long_file, threads=1)
    during = ticks - before
    done.set()
    ticker.join()
    # A tick takes a little over a millisecond; a loader that kept the lock would allow one or two.
    assert during > max(3, result.seconds * 1000 / 20)
