"""At start: how large the arena is, where its memory comes from, and what is in it already."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import brisk_native

from services.common.errors import ConfigError
from services.common.log import get_logger
from services.common.memory import memory_available_bytes, memory_limit_bytes
from services.common.names import new_id
from services.storemgr.arena_index import (
    ArenaIndex,
    Indexed,
    boot_id,
    find_memory,
    identity_of,
    read_index,
    write_index,
)
from services.storemgr.arena_memory import CHUNK_BYTES, NativeMemory

log = get_logger(__name__)

_DEFAULT_SHARE: Final = 4  # of the memory that we may use: a quarter
_AVAILABLE_SHARE: Final = 2  # and of what nobody uses now: half
_SIZE_BYTES_MIN: Final = 64 << 20  # by default, less is not worth it
_RESERVED: Final = "hugetlb"  # pages that the administrator took from the rest already
_KINDS: Final = (_RESERVED, "tmpfs", "small")
_PROCESSES: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaSettings:
    """What an operator says of the arena."""

    size_bytes: int | None  # None: we decide
    folder: Path | None  # of a tmpfs; None: no other container need find it
    size_setting: str
    folder_setting: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedArena:
    """Memory, and what a predecessor left in it."""

    memory: NativeMemory
    is_adopted: bool
    found: tuple[Indexed, ...]


class IndexFile:
    """Writes the index of one arena. Blocks."""

    def __init__(self, folder: Path, memory: NativeMemory) -> None:
        self._folder = folder
        device, inode = identity_of(memory.path)
        self._empty = ArenaIndex(
            boot_id=boot_id(),
            path=memory.path,
            device=device,
            inode=inode,
            size_bytes=memory.size_bytes,
            kind=memory.kind,
        )

    def write(self, models: tuple[Indexed, ...]) -> None:
        """Say what is in it. What cannot be written is only missed after a crash: it is logged."""
        empty = self._empty
        index = ArenaIndex(
            boot_id=empty.boot_id,
            path=empty.path,
            device=empty.device,
            inode=empty.inode,
            size_bytes=empty.size_bytes,
            kind=empty.kind,
            models=models,
        )
        try:
            write_index(self._folder, index)
        except OSError as error:
            log.warning("arena index not written", error=error.strerror)


def open_arena(
    settings: ArenaSettings,
    store: Path,
    *,
    limit: Callable[[], int] = memory_limit_bytes,
    available: Callable[[], int] = memory_available_bytes,
) -> OpenedArena | None:
    """Return the arena, faulted in in the background; None if there is to be none. Blocks.

    Raises ConfigError naming the setting if what was asked for cannot be had.
    """
    if settings.size_bytes == 0:
        return None
    if brisk_native.IMPLEMENTATION != "native":
        _do_without(settings, "needs the compiled loader, which was not built")
        return None
    if (adopted := _adopt(settings, store)) is not None:
        return adopted
    size = settings.size_bytes
    if size is None:
        size = min(limit() // _DEFAULT_SHARE, available() // _AVAILABLE_SHARE)
        if settings.folder is not None:
            size = min(size, _room_in(settings.folder))
        if size < _SIZE_BYTES_MIN:
            _do_without(settings, f"{size} bytes of memory are too few")
            return None
    size = _rounded(size)
    try:
        if settings.folder is None:
            memory = _make(size, settings, available)
        else:
            memory = _make_in(settings.folder, size, settings)
    except ConfigError as error:
        if settings.folder is None:
            _do_without(settings, error.problem)  # raises if somebody asked for it
            return None
        raise
    IndexFile(store, memory).write(())  # an older one is void
    return OpenedArena(memory=memory, is_adopted=False, found=())


def _adopt(settings: ArenaSettings, store: Path) -> OpenedArena | None:
    """Return the memory that a predecessor left, if it still is what is wanted."""
    index = read_index(store)
    if index is None:
        return None
    place = find_memory(index)
    if place is None:
        return None
    named = settings.folder is not None and place.parent == settings.folder
    wanted = settings.size_bytes
    is_wanted = wanted is None or _rounded(wanted) == index.size_bytes
    if is_wanted and (settings.folder is not None) == named:
        return _take_over(index, place, is_named=named)
    if not place.is_relative_to(_PROCESSES):
        place.unlink(missing_ok=True)  # who has some of it mapped keeps that
    return None


def _take_over(index: ArenaIndex, place: Path, *, is_named: bool) -> OpenedArena | None:
    try:
        pool = brisk_native.Pool.adopt(place)
    except (OSError, MemoryError) as error:
        log.warning("arena of the predecessor cannot be taken over", error=str(error))
        return None
    memory = NativeMemory(pool, kind=index.kind, is_named=is_named)
    return OpenedArena(memory=memory, is_adopted=True, found=index.models)


def _room_in(folder: Path) -> int:
    """Return whole chunks that a folder's file system has room for; 0 if it cannot be told."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize // CHUNK_BYTES * CHUNK_BYTES


def _rounded(size: int) -> int:
    return -(-size // CHUNK_BYTES) * CHUNK_BYTES


def _make_in(folder: Path, size: int, settings: ArenaSettings) -> NativeMemory:
    """Return memory in a folder that other containers share."""
    name = new_id("brisk-arena")
    try:
        pool = brisk_native.Pool(size, kind="tmpfs", folder=folder, name=name)
    except (OSError, MemoryError) as error:
        (folder / name).unlink(missing_ok=True)
        raise ConfigError(
            settings.folder_setting,
            f"an arena of {size} bytes cannot be there: {_words(error)}; it must be a tmpfs "
            f"with so much room, or {settings.size_setting} less",
        ) from error
    return NativeMemory(pool, kind="tmpfs", is_named=True)


def _make(size: int, settings: ArenaSettings, available: Callable[[], int]) -> NativeMemory:
    """Return the best memory that can be had."""
    refusals = []
    for kind in _KINDS:
        free = available()
        if kind != _RESERVED and size > free:
            raise ConfigError(
                settings.size_setting,
                f"an arena of {size} bytes does not fit: {free} bytes of memory are available. "
                "0 turns it off",
            )
        try:
            pool = brisk_native.Pool(size, kind=kind)
        except (OSError, MemoryError) as error:
            refusals.append(f"{kind}: {_words(error)}")
            continue
        return NativeMemory(pool, kind=kind, is_named=False)
    raise ConfigError(
        settings.size_setting, f"{size} bytes of memory cannot be had: {'; '.join(refusals)}"
    )


def _do_without(settings: ArenaSettings, problem: str) -> None:
    """Do without an arena if nobody asked for one. Raises ConfigError otherwise."""
    if settings.size_bytes is not None:
        raise ConfigError(settings.size_setting, problem)
    log.warning("no arena", problem=problem)


def _words(error: OSError | MemoryError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "no memory"
