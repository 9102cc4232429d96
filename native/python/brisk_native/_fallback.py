"""The loader in plain Python: the same interface and results, for machines without a compiler.

It reads through the page cache on the calling thread, and its checksum takes about a second per
ten megabytes. This module also documents the interface for both implementations.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, final

from brisk_native._chunks import all_chunks, check_settings
from brisk_native._gather_plan import GatherPlan
from brisk_native._no_devices import (  # noqa: F401 - parts of this implementation
    DeviceBuffer,
    PinnedMemory,
    copy_to_devices,
    device_memory,
    devices,
    read_to_devices,
)
from brisk_native._no_pool import (  # noqa: F401 - parts of this implementation
    Pool,
    checksum_pieces,
    map_pieces,
    pieces_in_use,
    read_pieces,
)
from brisk_native._parsers import (  # noqa: F401 - parts of this implementation
    parse_header,
    parse_header_bytes,
    parse_index,
    parse_index_bytes,
    parse_manifest,
    parse_manifest_bytes,
)
from brisk_native._plain_files import fill, naming, new_file, open_source, write
from brisk_native._types import (
    CHUNK_BYTES,
    THREADS_MAX,
    ChecksumError,
    Counters,
    ReadResult,
    ReadSettings,
)
from brisk_native._walk import Job, Milestones
from brisk_native._weight_index import WeightIndex  # noqa: F401 - part of this implementation

if TYPE_CHECKING:
    from typing_extensions import Buffer

_VALUE_MAX: Final = 2**32 - 1
_POLYNOMIAL: Final = 0x82F63B78  # bit-reversed: the highest bit is the constant term


@final
class CancelToken:
    """Ends the jobs it was given to within one chunk. Any thread may raise it, for good."""

    def __init__(self) -> None:
        self._raised = threading.Event()

    def cancel(self) -> None:
        """End the jobs that hold this token, now and for ever."""
        self._raised.set()

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._raised.is_set()


@final
class FileBuffer(bytearray):
    """The writable bytes of a file, offered by the buffer protocol (format B, one dimension).

    Freed when the last view of it goes; there is nothing to close. The native one is page-aligned
    and can neither grow nor shrink; this one must not.
    """

    @property
    def pool_offset(self) -> int | None:
        """Where it begins in its pool, in bytes; None if it is in none."""
        return None


def read_file(
    path: str | os.PathLike[str],
    *,
    threads: int = 4,
    expected_crc32c: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[FileBuffer, ReadResult]:
    """Read the whole file into fresh memory; return it and how it came.

    `threads` (1 to 64) read at once. `expected_crc32c` holds the checksum of each chunk of
    CHUNK_BYTES, which every chunk must match. `progress` gets the bytes done so far, on the
    calling thread: 0 first, then about every 20 ms, and the size at the end; if it raises, so
    does this call. The size of the file counts as it was at opening.

    Raises OSError with errno and file name (ELOOP if the last component is a symbolic link,
    IsADirectoryError, EINVAL for what is no regular file), ShortReadError if the file shrinks
    meanwhile, ChecksumError, ReadCancelledError, MemoryError, ValueError.
    """
    _check_threads(threads)
    settings = ReadSettings(threads=threads)
    expected = [expected_crc32c]
    (buffer,), result = read_files(
        [path], settings=settings, expected_crc32c=expected, progress=progress, cancel=cancel
    )
    return buffer, result


def read_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    settings: ReadSettings,
    order: Sequence[tuple[int, int]] | None = None,
    expected_crc32c: Sequence[Sequence[int] | None] | None = None,
    pool: Pool | None = None,  # noqa: ARG001 - there is none
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_buffers: Callable[[list[FileBuffer]], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[FileBuffer], ReadResult]:
    """Read whole files; see `brisk_native.read_files`, which chooses the settings."""
    check_settings(settings)
    given = [None] * len(paths) if expected_crc32c is None else list(expected_crc32c)
    if len(given) != len(paths):
        raise ValueError("expected_crc32c must have one entry per file")
    expected = [None if checksums is None else _checked(checksums) for checksums in given]
    begin_s = time.perf_counter()
    with ExitStack() as stack:
        files = [stack.enter_context(open_source(path)) for path in paths]
        for path, (_, size), checksums in zip(paths, files, expected, strict=True):
            if checksums is not None:
                _check_count(path, size, len(checksums))
        sizes = [size for _, size in files]
        places = all_chunks(sizes, order or (), milestones)
        told = Milestones(milestones, on_milestone)
        buffers = [FileBuffer(size) for size in sizes]
        if on_buffers is not None:
            on_buffers(list(buffers))
        views = [stack.enter_context(memoryview(buffer)) for buffer in buffers]
        job = Job(sum(sizes), progress, cancel)
        told.tell(0)
        for done, (file, chunk, offset, length) in enumerate(job.walk(places), start=1):
            target, checksums = views[file][offset : offset + length], expected[file]
            fill(files[file][0], target, offset, paths[file])
            if checksums is not None:
                _verify(target, checksums[chunk], paths[file], chunk)
            told.tell(done)
    return buffers, _result(sizes, expected, time.perf_counter() - begin_s)


def trial_read(
    path: str | os.PathLike[str],
    settings: ReadSettings,
    *,
    first: int,  # noqa: ARG001
    count: int,  # noqa: ARG001
    seconds_max: float,  # noqa: ARG001
) -> tuple[int, float, str, bool]:
    """Measure how fast chunks `first` to `first + count` of a file are read this way.

    Returns bytes, seconds, the engine that really read and whether it read past the page cache,
    after about `seconds_max`. Plain Python reads in one way only: it measures nothing.
    """
    check_settings(settings)
    with open_source(path):
        return 0, 0.0, "pread", False


def counters() -> Counters:
    """Return what this process has read so far, and how."""
    with _counting:
        return Counters(
            direct_bytes=0,
            buffered_bytes=_counted["buffered"],
            uring_bytes=0,
            verified_bytes=_counted["verified"],
            huge_page_bytes=0,
            small_page_bytes=_counted["small"],
        )


def checksum_file(
    path: str | os.PathLike[str],
    *,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[int]:
    """Return the CRC32C of each chunk of CHUNK_BYTES, using one chunk of memory per thread.

    Arguments and errors are those of `read_file`.
    """
    _check_threads(threads)
    checksums = []
    with open_source(path) as (fd, size):
        room = memoryview(bytearray(min(size, CHUNK_BYTES)))
        for _, offset, length in Job(size, progress, cancel).chunks():
            fill(fd, room[:length], offset, path)
            checksums.append(crc32c(room[:length]))
    return checksums


def copy_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[int]:
    """Copy `src` to the new file `dst`; return the CRC32C of each chunk as it was read.

    The contents are on the disk when this returns; the folder's entry is the caller's to make
    durable. The wait for the disk at the end cannot be cancelled.

    Raises what `read_file` raises, FileExistsError if there is anything named `dst`, and OSError
    from writing, such as ENOSPC. Whatever is raised, no `dst` of this call is left.
    """
    checksums = []
    with open_source(src) as (source, size), new_file(dst) as target:
        room = memoryview(bytearray(min(size, CHUNK_BYTES)))
        for _, offset, length in Job(size, progress, cancel).chunks():
            fill(source, room[:length], offset, src)
            checksums.append(crc32c(room[:length]))
            write(target, room[:length], offset, dst)
        with naming(dst):
            os.fsync(target)
    return checksums


def gather_file(
    dst: str | os.PathLike[str],
    *,
    prefix: Buffer,
    pieces: Sequence[tuple[int, int, int, int]],
    sources: Sequence[tuple[str | os.PathLike[str], Sequence[int] | None]],
    size_bytes: int,
    threads: int = 4,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[int], bool]:
    """Put the new file `dst` of `size_bytes` together from ranges of others.

    It begins with `prefix`, holds the `pieces` and zeros elsewhere. A piece is (number of the
    source, offset in it, size, offset in `dst`), in bytes; they are sorted by the last and do not
    overlap. A source is a path and the checksums of its chunks, or None: then it is not verified.

    Returns the CRC32C of each chunk of `dst`, and whether all of it was read and written past the
    page cache. The contents are on the disk then; the folder's entry is the caller's to make
    durable. Raises what `copy_file` raises, ChecksumError naming a source, and ValueError for
    pieces that break the rules. Whatever is raised, no `dst` of this call is left.
    """
    _check_threads(threads)
    for path, expected in sources:
        if expected is not None:
            found = checksum_file(path, cancel=cancel)
            _check_count(path, len(found) * CHUNK_BYTES, len(expected))
            for chunk, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
                _compare(path, chunk, actual, wanted)
    checksums = []
    with ExitStack() as stack:
        opened = [(path, *stack.enter_context(open_source(path))) for path, _ in sources]
        plan = GatherPlan(prefix=bytes(prefix), pieces=pieces, size_bytes=size_bytes)
        plan.check([(path, size) for path, _, size in opened])
        target = stack.enter_context(new_file(dst))
        for _, offset, length in Job(size_bytes, progress, cancel).chunks():
            room = bytearray(length)
            with memoryview(room) as view:
                for source, begin, part, place in plan.parts(offset, length):
                    path, fd, _ = opened[source]
                    fill(fd, view[place : place + part], begin, path)
            if offset < len(plan.prefix):
                own = plan.prefix[offset : offset + length]
                room[: len(own)] = own
            checksums.append(crc32c(room))
            write(target, memoryview(room), offset, dst)
        with naming(dst):
            os.fsync(target)
    return checksums, False


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the CRC32C of `data`, continuing from `value`.

    The checksum of a + b is `crc32c(b, crc32c(a))`. Raises BufferError if the bytes are not
    contiguous, TypeError if `data` has no buffer or `value` is outside 0 to 2**32 - 1.
    """
    _check_value(value)
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("underlying buffer is not C-contiguous")
        state = value ^ _VALUE_MAX
        table = _TABLE
        for byte in view.tobytes():
            state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
        return state ^ _VALUE_MAX


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _make_table()


_counting: Final = threading.Lock()
_counted: Final = {"buffered": 0, "verified": 0, "small": 0}


def _result(
    sizes: Sequence[int], expected: Sequence[list[int] | None], seconds: float
) -> ReadResult:
    total = sum(sizes)
    with _counting:
        _counted["buffered"] += total
        _counted["small"] += total
        _counted["verified"] += sum(
            size for size, checksums in zip(sizes, expected, strict=True) if checksums is not None
        )
    return ReadResult(
        bytes_read=total,
        direct=False,
        huge_pages=False,
        seconds=seconds,
        engine="pread",
        direct_bytes=0,
        buffered_bytes=total,
    )


def _check_threads(threads: int) -> None:
    if not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"threads must be between 1 and {THREADS_MAX}, not {threads}")


def _check_value(value: object) -> None:
    if not isinstance(value, int) or not 0 <= value <= _VALUE_MAX:
        raise TypeError(f"a checksum is an integer between 0 and {_VALUE_MAX}, not {value!r}")


def _checked(checksums: Sequence[int]) -> list[int]:
    values = list(checksums)
    for value in values:
        _check_value(value)
    return values


def _check_count(path: str | os.PathLike[str], size: int, given: int) -> None:
    chunks = -(-size // CHUNK_BYTES)
    if given != chunks:
        first = min(chunks, given)
        detail = f"the file has {chunks} chunks, {given} checksums were given"
        raise ChecksumError(os.fspath(path), first, first * CHUNK_BYTES, detail)


def _verify(chunk: memoryview, expected: int, path: str | os.PathLike[str], number: int) -> None:
    _compare(path, number, crc32c(chunk), expected)


def _compare(path: str | os.PathLike[str], number: int, actual: int, expected: int) -> None:
    if actual != expected:
        detail = f"crc32c is {actual:08x}, expected {expected:08x}"
        raise ChecksumError(os.fspath(path), number, number * CHUNK_BYTES, detail)
