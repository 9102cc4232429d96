"""Parts of files into a pool whose owner cuts it into chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from brisk_native import _implementation
from brisk_native._calibration import settings_for
from brisk_native._implementation import CancelToken, Pool
from brisk_native._types import ReadSettings


def read_pieces(
    path: str | os.PathLike[str],
    pool: Pool,
    pieces: Sequence[tuple[int, int]],
    *,
    first: int,
    count: int,
    settings: ReadSettings | None = None,
    expected_crc32c: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> int:
    """Read `count` chunks of a file, from number `first`, to where they belong; return the bytes.

    The file lies in `pieces` of the pool, (offset, bytes) that are multiples of CHUNK_BYTES, one
    after another. The pool must be this process's, and nothing may be allocated in it. The rest is
    as `read_files` has it: `expected_crc32c` has one checksum for each chunk of the whole file.

    Raises what `read_files` raises, and ValueError if the file does not fit the pieces.
    """
    return _implementation.read_pieces(
        path,
        pool,
        pieces,
        first=first,
        count=count,
        settings=settings_for([path]) if settings is None else settings,
        expected_crc32c=expected_crc32c,
        progress=progress,
        cancel=cancel,
    )
