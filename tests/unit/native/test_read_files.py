"""read_files' promise: exact bytes of many files in the order asked for, or one precise error."""

from __future__ import annotations

import os
from pathlib import Path

import brisk_native
import pytest
from brisk_native import CHUNK_BYTES, ChecksumError, ReadCancelledError, ReadSettings

from tests.unit.native import loaders
from tests.unit.native.conftest import LONG_READ_BYTES, noise, run_on_disk
from tests.unit.native.loaders import MODULES, Loader

SIZES = (2 * CHUNK_BYTES + 5, 0, 1, CHUNK_BYTES)
CHUNKS = 5

# Reads twice from the disk argv[2], which refuses direct reads; what it logs goes to stdout.
WARN_ON_A_DISK = """
import logging, pathlib, sys
import brisk_native
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
path = pathlib.Path(sys.argv[2], "file")
path.write_bytes(b"x" * 5000)
before = brisk_native.counters()
for _ in range(2):
    _, result = brisk_native.read_files([path])
after = brisk_native.counters()
print(result.direct, result.direct_bytes, result.buffered_bytes)
print(after.buffered_bytes - before.buffered_bytes, after.direct_bytes - before.direct_bytes)
"""


class RaisedInTestError(Exception):
    """Raised by a test where the loader calls it."""


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / str(number) for number in range(len(SIZES))]
    for path, size in zip(made, SIZES, strict=True):
        path.write_bytes(noise(size))
    return made


SETTINGS = (
    ReadSettings(),
    ReadSettings(threads=1, read_bytes=2 * CHUNK_BYTES),
    ReadSettings(engine="uring", threads=1, depth=8),
    ReadSettings(engine="uring", threads=2, depth=2, read_bytes=4 * CHUNK_BYTES),
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_all_files_come_whole_whatever_the_settings(
    loader: Loader, paths: list[Path], settings: ReadSettings
) -> None:
    expected = [loader.checksum_file(paths[0]), None, None, loader.checksum_file(paths[3])]
    buffers, result = loader.read_files(paths, settings=settings, expected_crc32c=expected)
    assert [bytes(buffer) for buffer in buffers] == [noise(size) for size in SIZES]
    assert result.bytes_read == sum(SIZES) == result.direct_bytes + result.buffered_bytes
    assert result.seconds > 0
    assert result.engine in {"pread", settings.engine}
    assert all(buffer.pool_offset is None for buffer in buffers)  # type: ignore[attr-defined]


def test_no_files_are_no_exception(loader: Loader) -> None:
    buffers, result = loader.read_files([], settings=ReadSettings())
    assert (buffers, result.bytes_read) == ([], 0)


def test_the_public_call_chooses_settings_and_reads(paths: list[Path]) -> None:
    buffers, _ = brisk_native.read_files(paths)
    assert [bytes(buffer) for buffer in buffers] == [noise(size) for size in SIZES]


def test_a_wrong_checksum_names_file_chunk_and_offset(loader: Loader, paths: list[Path]) -> None:
    wrong = loader.checksum_file(paths[0])
    wrong[1] ^= 1
    with pytest.raises(ChecksumError) as caught:
        loader.read_files(paths, settings=ReadSettings(), expected_crc32c=[wrong, None, None, None])
    assert (caught.value.path, caught.value.chunk) == (str(paths[0]), 1)
    assert caught.value.offset == CHUNK_BYTES


def test_every_file_needs_its_entry_of_checksums(loader: Loader, paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="one entry per file"):
        loader.read_files(paths, settings=ReadSettings(), expected_crc32c=[None])
    with pytest.raises(ChecksumError, match="has 1 chunks, 0 checksums"):
        loader.read_files([paths[2]], settings=ReadSettings(), expected_crc32c=[[]])


def test_milestones_are_told_in_order_and_once(loader: Loader, paths: list[Path]) -> None:
    told: list[int] = []
    buffers, _ = loader.read_files(
        paths,
        settings=ReadSettings(threads=2),
        order=[(3, 0), (0, 2)],
        milestones=[0, 1, 2, 2, CHUNKS],
        on_milestone=told.append,
    )
    assert told == [0, 1, 2, 2, CHUNKS]
    assert [bytes(buffer) for buffer in buffers] == [noise(size) for size in SIZES]


def test_what_a_milestone_raises_comes_out(loader: Loader, paths: list[Path]) -> None:
    def stop(_: int) -> None:
        raise RaisedInTestError

    with pytest.raises(RaisedInTestError):
        loader.read_files(paths, settings=ReadSettings(), milestones=[2], on_milestone=stop)


def test_buffers_are_had_before_anything_is_read_and_hold_what_a_milestone_tells(
    loader: Loader, paths: list[Path]
) -> None:
    shown: list[memoryview] = []
    seen: list[bytes] = []

    def on_buffers(buffers: list[bytes]) -> None:
        assert not seen
        shown.extend(map(memoryview, buffers))

    buffers, _ = loader.read_files(
        paths,
        settings=ReadSettings(),
        order=[(3, 0)],
        milestones=[1],
        on_milestone=lambda _: seen.append(bytes(shown[3])),
        on_buffers=on_buffers,
    )
    assert seen == [paths[3].read_bytes()]
    shown[3][0] ^= 1  # the same memory
    assert memoryview(buffers[3])[0] == shown[3][0]


@pytest.mark.parametrize(
    ("order", "milestones"),
    [([(4, 0)], []), ([(1, 0)], []), ([(0, 3)], []), ([(0, 1), (0, 1)], []),
     ([], [CHUNKS + 1]), ([], [2, 1])],
)  # fmt: skip
def test_an_order_or_milestones_that_cannot_be_are_refused(
    loader: Loader, paths: list[Path], order: list[tuple[int, int]], milestones: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"order|milestones"):
        loader.read_files(paths, settings=ReadSettings(), order=order, milestones=milestones)


@pytest.mark.parametrize(
    ("settings", "message"),
    [(ReadSettings(engine="aio"), "engine must be pread or uring, not aio"),  # type: ignore[arg-type]
     (ReadSettings(threads=0), "threads must be between 1 and 64, not 0"),
     (ReadSettings(threads=65), "threads must be between 1 and 64, not 65"),
     (ReadSettings(engine="uring", depth=0), "depth must be between 1 and 64, not 0"),
     (ReadSettings(depth=65), "depth must be between 1 and 64, not 65"),
     (ReadSettings(read_bytes=0), "read_bytes must be a multiple of 4194304 up to 16777216"),
     (ReadSettings(read_bytes=CHUNK_BYTES + 1), "read_bytes must be a multiple"),
     (ReadSettings(read_bytes=8 * CHUNK_BYTES), "read_bytes must be a multiple")],
)  # fmt: skip
def test_settings_beyond_their_limits_are_refused_by_limit_and_value(
    loader: Loader, paths: list[Path], settings: ReadSettings, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loader.read_files(paths, settings=settings)


def test_a_missing_file_is_named_before_anything_is_read(loader: Loader, paths: list[Path]) -> None:
    before = loader.counters()
    with pytest.raises(FileNotFoundError) as caught:
        loader.read_files([*paths, paths[0].parent / "none"], settings=ReadSettings())
    assert caught.value.filename == str(paths[0].parent / "none")
    assert loader.counters() == before


def test_progress_covers_all_files_and_cancelling_says_how_far_it_was(
    loader: Loader, paths: list[Path]
) -> None:
    seen: list[int] = []
    loader.read_files(paths, settings=ReadSettings(), progress=seen.append)
    assert seen[0] == 0
    assert seen[-1] == sum(SIZES)
    assert seen == sorted(seen)
    token = loader.new_token()
    token.cancel()
    with pytest.raises(ReadCancelledError) as caught:
        loader.read_files(paths, settings=ReadSettings(), cancel=token)
    assert caught.value.bytes_done == 0


@pytest.mark.parametrize("settings", SETTINGS[::2])
def test_cancelling_in_the_middle_ends_the_call(
    loader: Loader, long_file: Path, settings: ReadSettings
) -> None:
    token = loader.new_token()

    def cancel_on_the_way(done: int) -> None:
        if done:
            token.cancel()

    with pytest.raises(ReadCancelledError) as caught:
        loader.read_files([long_file], settings=settings, progress=cancel_on_the_way, cancel=token)
    assert 0 < caught.value.bytes_done < LONG_READ_BYTES


def test_the_counters_grow_by_what_was_read(loader: Loader, paths: list[Path]) -> None:
    before = loader.counters()
    expected = [loader.checksum_file(paths[0]), None, None, None]
    between = loader.counters()
    loader.read_files(paths, settings=ReadSettings(), expected_crc32c=expected)
    after = loader.counters()
    read = after.direct_bytes + after.buffered_bytes
    assert read - between.direct_bytes - between.buffered_bytes == sum(SIZES)
    assert after.verified_bytes - before.verified_bytes == SIZES[0]
    in_pages = after.huge_page_bytes + after.small_page_bytes
    assert in_pages - between.huge_page_bytes - between.small_page_bytes == sum(SIZES)


def test_the_first_read_through_the_page_cache_warns_and_all_are_counted(tmp_path: Path) -> None:
    if not loaders.is_built():
        pytest.skip("the extension was not built on this machine")
    disk = tmp_path / "disk"
    arguments = (MODULES["native"], disk)
    printed = run_on_disk("ramfs", "mode=0755", disk, WARN_ON_A_DISK, *arguments).splitlines()
    assert len(printed) == 3
    assert printed[0].startswith(f"brisk_native WARNING the file system of {disk}/file refuses")
    assert printed[1:] == ["False 0 5000", "10000 0"]


def test_a_kernel_that_refuses_io_uring_is_no_error(paths: list[Path]) -> None:
    if not loaders.is_built():
        pytest.skip("the extension was not built on this machine")
    settings = ReadSettings(engine="uring", threads=1, depth=4)
    _, result = brisk_native.read_files(paths, settings=settings)
    disabled = Path("/proc/sys/kernel/io_uring_disabled")
    if disabled.exists() and disabled.read_text(encoding="ascii").strip() == "0":
        assert result.engine in {"pread", "uring"}
    elif disabled.exists() and os.geteuid() != 0:
        assert result.engine == "pread"
