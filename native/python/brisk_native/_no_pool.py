"""Pools where the compiled loader was not built: there are none. Documents their interface."""

# ruff: noqa: ARG001, ARG002, ARG004 - the arguments are the compiled loader's

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from typing import Self

    from brisk_native._fallback import CancelToken, FileBuffer
    from brisk_native._types import ReadSettings

_NO_POOL: Final = "pools need the compiled loader, which was not built"


@final
class Pool:
    """Memory that is faulted in once and read into often, cut into pieces on 2 MiB boundaries.

    `kind` is "hugetlb" (2 MiB pages that the administrator reserved by vm.nr_hugepages), "tmpfs"
    (mounted huge=always: at `folder`, or else unseen, which takes CAP_SYS_ADMIN), "private"
    (anonymous memory that asks for huge pages; no other process can attach), "small" (a memfd of
    4 KiB pages), or "auto": the first of these that can be had; if that is "small", a warning of
    the logger brisk_native says why. `size_bytes` is rounded up to 2 MiB. With `populate` two
    threads fault the memory in, in the background; what is read into it earlier takes longer. With
    a `name` the memory is a new file of that name in `folder`, a tmpfs that other containers may
    have mounted, too; whoever made it removes it.

    A piece goes back when the last view of it does. Thread-safe. Raises OSError or MemoryError if
    memory of the kind cannot be had, and ValueError for a kind that is none of these or a size
    of 0. Once it is closed, all but `closed`, `kind` and `close` raise ValueError.

    Needs the compiled loader: this one raises RuntimeError.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        kind: str = "auto",
        folder: str | os.PathLike[str] | None = None,
        name: str = "",
        populate: bool = True,
    ) -> None:
        raise RuntimeError(_NO_POOL)

    @staticmethod
    def attach(path: str | os.PathLike[str]) -> Pool:
        """Look into the pool of another process: `path` is what its `path` says.

        It is only to be read, its `kind` is "attached", nothing can be allocated in it, and that
        other process decides how long bytes stay. Raises OSError, EINVAL for what is no pool.
        """
        raise RuntimeError(_NO_POOL)

    @staticmethod
    def adopt(path: str | os.PathLike[str]) -> Pool:
        """Take up the pool that another process left, or still has: to read and to write.

        Its bytes are as they were, and nothing is allocated in it: this is for owners that cut it
        by themselves, as `read_pieces` needs it. Raises as `attach` does.
        """
        raise RuntimeError(_NO_POOL)

    def view(self, offset: int, size_bytes: int) -> FileBuffer:
        """Return a part of the pool without a copy, read-only if the pool is another process's.

        In a pool of this process it must lie within one file that is in use, and keeps that.
        Raises ValueError.
        """
        raise RuntimeError(_NO_POOL)

    def wait_populated(self, timeout: float | None = None) -> bool:
        """Wait until populating ended; return False if it has not within `timeout` seconds."""
        raise RuntimeError(_NO_POOL)

    def close(self) -> None:
        """Let nothing more be allocated; the memory goes with the last view of it."""
        raise RuntimeError(_NO_POOL)

    def __enter__(self) -> Self:
        raise RuntimeError(_NO_POOL)

    def __exit__(self, *error: object) -> None:
        raise RuntimeError(_NO_POOL)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        raise RuntimeError(_NO_POOL)

    @property
    def kind(self) -> str:
        """What it is made of; "attached" if another process made it."""
        raise RuntimeError(_NO_POOL)

    @property
    def size_bytes(self) -> int:
        """Its size, a multiple of 2 MiB."""
        raise RuntimeError(_NO_POOL)

    @property
    def free_bytes(self) -> int:
        """What is free, maybe in several pieces."""
        raise RuntimeError(_NO_POOL)

    @property
    def populated(self) -> int:
        """Bytes that were faulted in so far."""
        raise RuntimeError(_NO_POOL)

    @property
    def huge_pages(self) -> bool:
        """True if at least half of what was faulted in lies in 2 MiB pages.

        It is looked up until all of the pool is faulted in, and remembered from then on.
        """
        raise RuntimeError(_NO_POOL)

    @property
    def page_bytes(self) -> int:
        """Size of its pages, as `huge_pages` says: 2 MiB or 4 KiB."""
        raise RuntimeError(_NO_POOL)

    @property
    def path(self) -> str | None:
        """What `attach` takes, as long as this process has the pool; None if it is private."""
        raise RuntimeError(_NO_POOL)


def map_pieces(
    path: str | os.PathLike[str], pieces: Sequence[tuple[int, int]], size_bytes: int
) -> FileBuffer:
    """Return a file of `size_bytes` that lies in `pieces` of another process's pool, read-only.

    `path` is what that pool's `path` says, and `pieces` are (offset, bytes) in it, multiples of
    CHUNK_BYTES, which hold the file one after another: it is mapped as one range, and nothing is
    copied. As long as a view of it lives, `pieces_in_use` tells so to whoever owns the pool, in
    any process; the death of this one ends it.

    Raises OSError, EINVAL for what is no pool, and ValueError for pieces that are none of it.
    """
    raise RuntimeError(_NO_POOL)


def pieces_in_use(pool: Pool, pieces: Sequence[tuple[int, int]]) -> bool:
    """Return whether any process has some of these pieces of our pool mapped by `map_pieces`."""
    raise RuntimeError(_NO_POOL)


def read_pieces(
    path: str | os.PathLike[str],
    pool: Pool,
    pieces: Sequence[tuple[int, int]],
    *,
    first: int,
    count: int,
    settings: ReadSettings,
    expected_crc32c: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Read `count` chunks of a file, from number `first`, to where they belong in its pieces.

    `brisk_native.read_pieces` says the rest; this one raises RuntimeError.
    """
    raise RuntimeError(_NO_POOL)


def checksum_pieces(
    pool: Pool,
    pieces: Sequence[tuple[int, int]],
    size_bytes: int,
    *,
    cancel: CancelToken | None = None,
) -> list[int]:
    """Return the CRC32C of each chunk of the file of `size_bytes` that lies in these pieces.

    Raises ReadCancelledError, and ValueError as `map_pieces` does.
    """
    raise RuntimeError(_NO_POOL)
