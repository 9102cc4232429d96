"""Put a finished folder in its place, all at once: readers see the old one or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacement_of(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` that takes its place when the block ends.

    If the block raises, or the process dies, `folder` is what it was; what the block left is
    removed in the first case. Raises OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        staged.chmod(0o777 & ~_umask())
        yield staged
        _sync_folder(staged)
        if folder.exists():
            _exchange(staged, folder)
        else:
            staged.rename(folder)
        _sync_folder(folder.parent)
    finally:  # what is there now is the old one, if they were exchanged
        if staged.is_symlink():
            staged.unlink()
        shutil.rmtree(staged, ignore_errors=True)


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a new file; its contents are on the disk when this returns. Raises OSError."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def refuse_strangers(folder: Path, ours: Mapping[str, object]) -> None:
    """Raise FileExistsError if `folder` holds anything else than `ours`, which would be lost."""
    if folder.exists() and (others := {path.name for path in folder.iterdir()} - ours.keys()):
        text = f"holds {min(others)}, which replacing it would remove"
        raise FileExistsError(errno.EEXIST, text, os.fspath(folder))


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(other))


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
