"""Files through the page cache, on the calling thread: for the loader in plain Python."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brisk_native._types import ShortReadError


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading; give its descriptor and its size."""
    # O_NONBLOCK: opening a FIFO without a writer must fail below, not hang here.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
            raise OSError(code, os.strerror(code), os.fspath(path))
        yield fd, facts.st_size
    finally:
        os.close(fd)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[int]:
    """Create a file for writing; remove it again if the block raises."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    except BaseException:
        Path(path).unlink()
        raise
    finally:
        os.close(fd)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give errors of calls that know a descriptor only the name of the file."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def fill(fd: int, target: memoryview, offset: int, path: str | os.PathLike[str]) -> None:
    """Read all of `target` from `offset`. Raises OSError, and ShortReadError if the file ends."""
    done = 0
    while done < len(target):
        with naming(path):
            got = os.preadv(fd, [target[done:]], offset + done)
        if got == 0:
            raise ShortReadError(
                f"{os.fspath(path)}: wanted {len(target)} bytes at offset {offset}, "
                f"the file ends after {done}"
            )
        done += got


def write(fd: int, source: memoryview, offset: int, path: str | os.PathLike[str]) -> None:
    """Write all of `source` at `offset`. Raises OSError."""
    with naming(path):
        while source:
            put = os.pwrite(fd, source, offset)
            source, offset = source[put:], offset + put
