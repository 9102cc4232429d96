"""Put a finished folder in its place, all at once: readers see the old one or the new one.

It is put together under another name beside its place, made durable and moved there by one rename;
where there is a folder already, the two change places. Its maker holds a lock on what it makes,
which ends with it however it ends: what is there without a lock is a dead one's debris.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_TRIES_MAX: Final = 16
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacement_of(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` that takes its place when the block ends.

    What is put there must be durable already. If the block raises, or the process dies, `folder` is
    what it was; what the block left is removed at once in the first case, by the next replacement
    of `folder` in the second. Raises OSError; EINVAL where the file system cannot exchange folders.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged, lock = _claim(folder)
    try:
        yield staged
        _sync_folder(staged)
        if folder.exists():
            _exchange(staged, folder)
        else:
            staged.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        _name_final(error, staged, folder)
        raise
    finally:  # what is there now is the old one, if they were exchanged
        os.close(lock)
        _remove(staged)


def _name_final(error: OSError, staged: Path, folder: Path) -> None:
    """Let an error name the place that its file was meant for: nobody knows the temporary one."""
    if isinstance(error.filename, str) and Path(error.filename).is_relative_to(staged):
        error.filename = os.fspath(folder / Path(error.filename).relative_to(staged))


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


def _prefix(folder: Path) -> str:
    """Return how the names of folders begin that are to become `folder`."""
    digest = hashlib.sha256(os.fsencode(folder.name)).hexdigest()
    return f".brisk-{digest[:16]}-"


def _claim(folder: Path) -> tuple[Path, int]:
    """Make an empty folder beside `folder`; return it and the descriptor that locks it."""
    for _ in range(_TRIES_MAX):
        staged = folder.parent / (_prefix(folder) + secrets.token_hex(4))
        staged.mkdir()
        lock = _lock(staged)
        if lock is not None and staged.exists():
            return staged, lock
        if lock is not None:  # another one took it for debris before it was locked
            os.close(lock)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), os.fspath(folder))


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock; None if it is gone or another has it."""
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(folder: Path) -> None:
    """Remove what makers that died have left."""
    with os.scandir(folder.parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(_prefix(folder))]
    for path in found:
        with suppress(OSError):  # nothing that a maker leaves, or another one sweeps, too
            if (lock := _lock(path)) is not None:
                _remove(path)
                os.close(lock)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # what was there before was a link to a folder
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(other))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, _OPEN_FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
