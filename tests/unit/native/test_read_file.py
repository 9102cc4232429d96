"""read_file's promise: the exact bytes of the file, or one precise error; never a wrong buffer."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
from pathlib import Path
from types import FrameType

import pytest
from brisk_native import CHUNK_BYTES, ChecksumError, ReadCancelledError, ShortReadError

from tests.unit.native.conftest import LONG_READ_BYTES, noise
from tests.unit.native.loaders import Loader

SIZES = (0, 1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1,
         2 * CHUNK_BYTES - 4097, 2 * CHUNK_BYTES + 4096)  # fmt: skip


class RaisedInTestError(Exception):
    """Raised by a test where the loader calls it."""


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_are_exact_at_every_awkward_size(
    loader: Loader, tmp_path: Path, size: int
) -> None:
    content = noise(size)
    (tmp_path / "f").write_bytes(content)
    buffer, result = loader.read_file(tmp_path / "f")
    assert bytes(buffer) == content
    assert result.bytes_read == size
    assert result.seconds > 0


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    loader: Loader, tmp_path: Path, threads: int
) -> None:
    content = noise(3 * CHUNK_BYTES + 7)
    (tmp_path / "f").write_bytes(content)
    assert bytes(loader.read_file(str(tmp_path / "f"), threads=threads)[0]) == content


def test_right_checksums_pass(loader: Loader, tmp_path: Path) -> None:
    content = noise(CHUNK_BYTES + 4099)
    (tmp_path / "f").write_bytes(content)
    expected = [loader.crc32c(content[:CHUNK_BYTES]), loader.crc32c(content[CHUNK_BYTES:])]
    assert bytes(loader.read_file(tmp_path / "f", expected_crc32c=expected)[0]) == content


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_wrong_checksum_names_file_chunk_and_offset(
    loader: Loader, tmp_path: Path, wrong: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(noise(2 * CHUNK_BYTES + 5))
    expected = loader.checksum_file(path)
    expected[wrong] ^= 1 << 31
    with pytest.raises(ChecksumError) as caught:
        loader.read_file(path, expected_crc32c=expected)
    error = caught.value
    offset = wrong * CHUNK_BYTES
    assert (error.path, error.chunk, error.offset) == (str(path), wrong, offset)
    assert str(error).startswith(f"{path}: chunk {wrong} at offset {offset}: crc32c is ")
    assert f"expected {expected[wrong]:08x}" in str(error)


@pytest.mark.parametrize(("given", "blamed"), [(0, 0), (1, 1), (3, 2)])
def test_too_few_or_too_many_checksums_blame_the_first_chunk_without_a_partner(
    loader: Loader, tmp_path: Path, given: int, blamed: int
) -> None:
    (tmp_path / "f").write_bytes(noise(CHUNK_BYTES + 5))
    with pytest.raises(ChecksumError, match=f"has 2 chunks, {given} checksums") as caught:
        loader.read_file(tmp_path / "f", expected_crc32c=[0] * given)
    assert (caught.value.chunk, caught.value.offset) == (blamed, blamed * CHUNK_BYTES)


@pytest.mark.parametrize("bad", [-1, 2**32, "x", 1.5, None])
def test_what_cannot_be_a_checksum_is_a_type_error(
    loader: Loader, tmp_path: Path, bad: object
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(TypeError):
        loader.read_file(tmp_path / "f", expected_crc32c=[bad])


@pytest.mark.parametrize("threads", [0, -1, 65, 2**40])
def test_a_thread_count_outside_its_limits_is_refused(
    loader: Loader, tmp_path: Path, threads: int
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(ValueError, match="threads must be between 1 and 64"):
        loader.read_file(tmp_path / "f", threads=threads)


def make_hostile(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "link").symlink_to("file")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")


@pytest.mark.parametrize("call", ["read_file", "checksum_file", "copy_file"])
@pytest.mark.parametrize(
    ("name", "code"),
    [("missing", errno.ENOENT), ("link", errno.ELOOP), ("dangling", errno.ELOOP),
     ("folder", errno.EISDIR), ("fifo", errno.EINVAL)],
)  # fmt: skip
def test_what_is_no_regular_file_is_refused_with_errno_and_name(
    loader: Loader, tmp_path: Path, call: str, name: str, code: int
) -> None:
    make_hostile(tmp_path)
    more = [tmp_path / "copy"] if call == "copy_file" else []
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        getattr(loader, call)(tmp_path / name, *more)
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / name)
    assert type(caught.value) is type(OSError(code, ""))
    assert not (tmp_path / "copy").exists()


def test_a_path_that_is_no_path_is_refused_as_by_open(loader: Loader) -> None:
    with pytest.raises(ValueError, match="null"):
        loader.read_file("a\0b")
    with pytest.raises(TypeError):
        loader.read_file(1.5)


def test_a_name_that_is_no_unicode_works_and_comes_back_in_errors(
    loader: Loader, tmp_path: Path
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff\xfe")
    with pytest.raises(FileNotFoundError) as caught:
        loader.read_file(name)
    assert caught.value.filename == name
    Path(name).write_bytes(b"here")
    assert bytes(loader.read_file(name)[0]) == b"here"


def test_a_file_truncated_under_the_reader_is_a_short_read(loader: Loader, long_file: Path) -> None:
    reported = []

    def truncate(done: int) -> None:
        reported.append(done)
        os.truncate(long_file, 4096)

    with pytest.raises(ShortReadError, match="the file ends after"):
        loader.read_file(long_file, progress=truncate)
    assert reported[0] < LONG_READ_BYTES


def test_a_file_that_grows_is_read_up_to_its_size_at_opening(
    loader: Loader, long_file: Path
) -> None:
    def grow(done: int) -> None:
        del done
        with long_file.open("ab") as file:
            file.write(b"more")

    buffer, _ = loader.read_file(long_file, progress=grow)
    with memoryview(buffer) as view:
        assert len(view) == LONG_READ_BYTES


def test_cancelling_from_another_thread_stops_before_the_end(
    loader: Loader, long_file: Path
) -> None:
    token = loader.new_token()

    def cancel(done: int) -> None:
        del done
        other = threading.Thread(target=token.cancel)
        other.start()
        other.join()

    with pytest.raises(ReadCancelledError, match="cancelled after") as caught:
        loader.read_file(long_file, progress=cancel, cancel=token)
    assert token.cancelled
    assert caught.value.bytes_done < LONG_READ_BYTES


@pytest.mark.parametrize("size", [0, 10, 2 * CHUNK_BYTES])
def test_a_token_raised_beforehand_reads_nothing(loader: Loader, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(noise(size))
    token = loader.new_token()
    assert not token.cancelled
    token.cancel()
    with pytest.raises(ReadCancelledError) as caught:
        loader.read_file(tmp_path / "f", cancel=token)
    assert caught.value.bytes_done == 0


def test_progress_rises_from_0_to_the_size_on_the_calling_thread(
    loader: Loader, long_file: Path
) -> None:
    calls = []
    loader.read_file(long_file, progress=lambda done: calls.append((done, threading.get_ident())))
    reported = [done for done, _ in calls]
    assert len(calls) > 1
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0, LONG_READ_BYTES)
    assert {thread for _, thread in calls} == {threading.get_ident()}


def test_progress_that_raises_ends_the_call_with_its_own_error(
    loader: Loader, long_file: Path
) -> None:
    def refuse(done: int) -> None:
        raise RaisedInTestError(done)

    with pytest.raises(RaisedInTestError) as caught:
        loader.read_file(long_file, progress=refuse)
    assert caught.value.args[0] < LONG_READ_BYTES


def test_a_signal_ends_a_job_that_is_running(
    loader: Loader, tmp_path: Path, long_file: Path
) -> None:
    def refuse(number: int, frame: FrameType | None) -> None:
        raise RaisedInTestError

    def copy_under_alarm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        loader.copy_file(long_file, tmp_path / "copy")

    before = signal.signal(signal.SIGALRM, refuse)
    gc.disable()  # what a handler raises within a collection goes nowhere
    try:
        with pytest.raises(RaisedInTestError):
            copy_under_alarm()
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "copy").exists()  # so the handler did not run after the job


def test_views_are_writable_bytes_and_outlive_the_buffer(loader: Loader, tmp_path: Path) -> None:
    content = noise(CHUNK_BYTES)
    (tmp_path / "f").write_bytes(content)
    buffer, _ = loader.read_file(tmp_path / "f")
    view = memoryview(buffer)
    del buffer
    gc.collect()
    assert (view.format, view.ndim, view.readonly) == ("B", 1, False)
    assert view == content
    view[7] = content[7] ^ 1
    assert (tmp_path / "f").read_bytes() == content


def test_failed_calls_leave_no_descriptor_and_no_thread(loader: Loader, tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        own = Path("/proc/self")
        return len(list((own / "fd").iterdir())), len(list((own / "task").iterdir()))

    make_hostile(tmp_path)
    (tmp_path / "big").write_bytes(noise(2 * CHUNK_BYTES))
    before = held()
    for _ in range(20):
        for name in ("missing", "link", "folder", "fifo"):
            with pytest.raises(OSError, match=name):
                loader.read_file(tmp_path / name)
        with pytest.raises(ChecksumError):
            loader.read_file(tmp_path / "file", expected_crc32c=[1])
        loader.read_file(tmp_path / "big")
    assert held() == before


def test_memory_goes_back_with_the_last_view(loader: Loader, tmp_path: Path) -> None:
    def resident_bytes() -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    (tmp_path / "f").write_bytes(noise(8 * CHUNK_BYTES))
    before = resident_bytes()
    for _ in range(10):
        loader.read_file(tmp_path / "f")
    assert resident_bytes() - before < 3 * 8 * CHUNK_BYTES
