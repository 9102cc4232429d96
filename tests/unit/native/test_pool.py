"""Pool's promise: read into without a fault, seen without a copy, given back with its last view."""

from __future__ import annotations

import errno
import gc
import logging
import os
import pydoc
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import brisk_native
import pytest
from brisk_native import CHUNK_BYTES, ChecksumError, FileBuffer, Pool, PoolFullError, ReadSettings
from brisk_native import _notices as notices

from tests.unit.native import loaders
from tests.unit.native.conftest import noise, run_on_disk

MIB = 1024 * 1024
HUGE = 2 * MIB

pytestmark = pytest.mark.skipif(not loaders.is_built(), reason="the extension was not built here")

# Attaches to the pool argv[1] and compares argv[3] bytes at argv[2] with the file argv[4].
ATTACH = """
import pathlib, sys
import brisk_native
pool = brisk_native.Pool.attach(sys.argv[1])
buffer = pool.view(int(sys.argv[2]), int(sys.argv[3]))
view = memoryview(buffer)
print(pool.kind, view.readonly, view == pathlib.Path(sys.argv[4]).read_bytes())
"""

# Makes a pool in the tmpfs at argv[1].
POOL_ON_A_DISK = """
import sys
import brisk_native
pool = brisk_native.Pool(8 * 2**20, kind="tmpfs", folder=sys.argv[1])
assert pool.wait_populated(60)
print(pool.kind, pool.huge_pages, pool.page_bytes, pool.populated)
try:
    brisk_native.Pool(64 * 2**20, kind="tmpfs", folder=sys.argv[1])
except OSError as error:
    print(error.errno)
"""


# Makes a pool in the tmpfs at argv[1] and fills that; then reads the file argv[2] into the pool.
FILLED_DISK = """
import logging, pathlib, sys
import brisk_native
logging.disable()  # that the pool may have small pages
disk, source = map(pathlib.Path, sys.argv[1:])
pool = brisk_native.Pool(8 * 2**20, kind="tmpfs", folder=disk, populate=False)
try:
    (disk / "other").write_bytes(bytes(16 * 2**20))
except OSError as error:
    print(error.errno)
(buffer,), _ = brisk_native.read_files([source], pool=pool)
print(memoryview(buffer) == source.read_bytes())
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(noise(CHUNK_BYTES + 4099))
    return path


@pytest.fixture
def pool() -> Pool:
    return Pool(32 * MIB, kind="private")


def read(pool: Pool, *paths: Path) -> list[FileBuffer]:
    return brisk_native.read_files(paths, pool=pool, settings=ReadSettings())[0]


def test_files_lie_in_the_pool_one_beside_the_other(pool: Pool, file: Path) -> None:
    first, second = read(pool, file, file)
    assert bytes(first) == bytes(second) == file.read_bytes()
    assert (first.pool_offset, second.pool_offset) == (0, 6 * MIB)
    assert pool.free_bytes == 20 * MIB


def test_a_piece_goes_back_with_the_last_view_of_it(pool: Pool, file: Path) -> None:
    (buffer,) = read(pool, file)
    view = memoryview(buffer)[5:10]
    del buffer
    gc.collect()
    assert pool.free_bytes == 26 * MIB
    assert bytes(view) == file.read_bytes()[5:10]
    del view
    gc.collect()
    assert pool.free_bytes == 32 * MIB


def test_views_outlive_a_closed_pool(pool: Pool, file: Path) -> None:
    with pool:
        (buffer,) = read(pool, file)
        part = pool.view(4096, 10)
    assert pool.closed
    assert bytes(buffer) == file.read_bytes()
    assert bytes(part) == file.read_bytes()[4096:4106]
    for use in (lambda: pool.free_bytes, lambda: pool.view(0, 1), lambda: read(pool, file)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_view_costs_no_copy_and_keeps_the_piece(pool: Pool, file: Path) -> None:
    (buffer,) = read(pool, file)
    part = pool.view(CHUNK_BYTES, 100)
    memoryview(buffer)[CHUNK_BYTES] = 1
    assert memoryview(part)[0] == 1
    assert part.pool_offset == CHUNK_BYTES
    del buffer
    gc.collect()
    assert pool.free_bytes == 26 * MIB
    with pytest.raises(ValueError, match="no region in use"):
        pool.view(10 * MIB, 1)


def test_a_full_pool_is_a_memory_error_that_says_what_is_free(pool: Pool, file: Path) -> None:
    kept = read(pool, *[file] * 4)
    with pytest.raises(PoolFullError) as caught:
        read(pool, file, file)
    error = caught.value
    assert isinstance(error, MemoryError)
    # The first of the two had its piece for a moment.
    assert (error.needed_bytes, error.free_bytes, error.largest_bytes) == (HUGE * 3, HUGE, HUGE)
    assert f"{error.free_bytes} are free" in str(error)
    gc.collect()
    assert pool.free_bytes == 8 * MIB
    assert [bytes(buffer) for buffer in kept] == [file.read_bytes()] * 4


def test_a_read_that_fails_or_is_cancelled_gives_its_pieces_back(pool: Pool, file: Path) -> None:
    wrong = [[0] * 2]
    with pytest.raises(ChecksumError):
        brisk_native.read_files([file], pool=pool, expected_crc32c=wrong)
    token = brisk_native.CancelToken()
    token.cancel()
    with pytest.raises(brisk_native.ReadCancelledError):
        brisk_native.read_files([file], pool=pool, cancel=token)
    assert pool.free_bytes == 32 * MIB


@pytest.mark.parametrize("engine", ["pread", "uring"])
def test_reads_into_a_populated_pool_fault_nothing_in(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(noise(16 * MIB))
    pool = Pool(16 * MIB, kind="private")
    assert pool.wait_populated(60)
    settings = ReadSettings(engine="uring" if engine == "uring" else "pread")
    read(pool, path)  # what the library itself touches for the first time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (buffer,), _ = brisk_native.read_files([path], pool=pool, settings=settings)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert len(buffer) == 16 * MIB
    assert faults < 16 * MIB // 4096 // 8  # thread stacks and the like; 4096 without the pool


@pytest.mark.parametrize("kind", ["hugetlb", "tmpfs", "private", "small"])
def test_a_kind_is_what_was_asked_for_or_an_os_error(kind: str) -> None:
    try:
        pool = Pool(4 * MIB + 1, kind=kind)
    except OSError as error:
        if kind in {"private", "small"}:
            raise
        pytest.skip(f"not to be had here: {error}")
    assert pool.wait_populated()
    assert (pool.kind, pool.size_bytes, pool.populated) == (kind, 6 * MIB, 6 * MIB)
    assert (pool.path is None) == (kind == "private")
    assert pool.page_bytes == (HUGE if pool.huge_pages else 4096)
    if kind == "hugetlb":
        assert pool.huge_pages


def test_auto_always_gives_a_pool_and_says_its_kind() -> None:
    pool = Pool(4 * MIB)
    assert pool.kind in {"hugetlb", "tmpfs", "private", "small"}
    assert pool.wait_populated(60)
    assert Pool(MIB, populate=False).populated == 0


def test_what_is_no_kind_or_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be auto, hugetlb"):
        Pool(MIB, kind="large")
    with pytest.raises(ValueError, match="at least 1 byte"):
        Pool(0)
    with pytest.raises(TypeError):
        Pool(-1)
    with pytest.raises(MemoryError):
        Pool(2**63, kind="private")


def test_a_tmpfs_with_huge_pages_is_used_where_the_folder_names_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    printed = run_on_disk("tmpfs", "size=32m,huge=always", disk, POOL_ON_A_DISK, disk)
    assert printed in (
        f"tmpfs True {HUGE} {8 * MIB}\n{errno.ENOSPC}\n",
        f"tmpfs False 4096 {8 * MIB}\n{errno.ENOSPC}\n",  # the kernel had none at that moment
    )


def test_a_tmpfs_that_others_fill_up_has_kept_the_room_of_its_pools(
    tmp_path: Path, file: Path
) -> None:
    disk = tmp_path / "disk"
    printed = run_on_disk("tmpfs", "size=16m", disk, FILLED_DISK, disk, file)
    assert printed == f"{errno.ENOSPC}\nTrue\n"


def test_help_names_every_kind_and_limit() -> None:
    limits = pydoc.plain(pydoc.render_doc(ReadSettings))
    for words in ('"uring"', '"pread"', "1 to 64", "4 MiB), up to four"):
        assert words in limits
    said = pydoc.plain(pydoc.render_doc(Pool))
    for kind in ("auto", "hugetlb", "tmpfs", "private", "small"):
        assert f'"{kind}"' in said
    assert "rounded up to 2 MiB" in said
    for name in ("closed", "kind", "page_bytes", "huge_pages", "size_bytes", "free_bytes", "path"):
        assert getattr(Pool, name).__doc__, name


def test_a_folder_that_is_no_tmpfs_is_refused(tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:  # noqa: S108
        pytest.skip("the folder for tests is a tmpfs itself")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        Pool(MIB, kind="tmpfs", folder=tmp_path)


def test_another_process_sees_the_same_bytes_and_may_only_read(file: Path) -> None:
    pool = Pool(16 * MIB, kind="small")
    (_, buffer) = read(pool, file, file)
    assert pool.path is not None
    arguments = [pool.path, str(buffer.pool_offset), str(len(buffer)), str(file)]
    ran = subprocess.run(
        [sys.executable, "-c", ATTACH, *arguments], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "attached True True\n"


def test_a_pool_that_is_attached_is_only_to_look_into(file: Path) -> None:
    pool = Pool(16 * MIB, kind="small")
    assert pool.path is not None
    attached = Pool.attach(pool.path)
    with pytest.raises(ValueError, match="another process"):
        read(attached, file)
    with pytest.raises(TypeError, match="read-only"):
        memoryview(attached.view(0, 10))[0] = 1
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        Pool.attach(file)


@pytest.mark.parametrize(
    "note",
    [lambda: notices.note_pool({"hugetlb": "no", "tmpfs": "never"}),
     lambda: notices.note_read("f", 0, is_in_pool=True, huge_pages=False)],
)  # fmt: skip
def test_a_pool_of_small_pages_warns_once(
    note: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    with caplog.at_level(logging.WARNING, logger="brisk_native"):
        note()
        note()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("brisk_native", "WARNING")
    assert "4 KiB pages" in record.getMessage()


def test_a_read_into_small_pages_warns(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(8 * MIB, kind="small")
    assert pool.wait_populated(60)
    if pool.huge_pages:
        pytest.skip("this kernel gives memfds huge pages")
    monkeypatch.setattr(notices, "_said", set())
    before = brisk_native.counters().small_page_bytes
    with caplog.at_level(logging.WARNING, logger="brisk_native"):
        read(pool, file)
    assert any("4 KiB pages" in record.getMessage() for record in caplog.records)
    assert brisk_native.counters().small_page_bytes - before == CHUNK_BYTES + 4099
