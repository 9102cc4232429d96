"""Whole files into memory, through one queue over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from brisk_native import _implementation
from brisk_native._calibration import settings_for
from brisk_native._implementation import CancelToken, FileBuffer, Pool
from brisk_native._types import ReadResult, ReadSettings


def read_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    order: Sequence[tuple[int, int]] | None = None,
    expected_crc32c: Sequence[Sequence[int] | None] | None = None,
    pool: Pool | None = None,
    settings: ReadSettings | None = None,
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_buffers: Callable[[list[FileBuffer]], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[FileBuffer], ReadResult]:
    """Read whole files into memory; return a buffer for each, in their order, and how they came.

    With a `pool` each file gets a piece of it that begins on a 2 MiB boundary, and nothing is
    faulted in; else fresh memory, which two threads fault in while the first bytes are read.

    `order` lists the chunks that are needed first, as (index of the file, number of the chunk of
    CHUNK_BYTES in it), each once at most; all others follow in the order of the files. Several
    threads read, so chunks end in about that order. `milestones` are rising counts of chunks in
    that order: `on_milestone` gets each of them, once and in their order, as soon as so many
    leading chunks are there and verified. `on_buffers` gets the buffers before anything is read,
    for whoever wants to use the chunks of a milestone at once: what lies behind them is not there.

    `expected_crc32c` has, for each file, the checksum of each chunk or None: those chunks are
    verified by the thread that read them. `settings` say how to read; None: as `calibrate` found
    for the file system, which is asked to measure it if there is 1 GiB or more to read. `progress`
    gets the bytes done so far: 0 first, then about every 20 ms, and all of them at the end. All
    callbacks run on the calling thread; if one raises, so does this call.

    Cancelling ends the call within one read. Whatever is raised, the memory is given back. Raises
    what `read_file` raises; PoolFullError, before anything is read; ValueError for settings beyond
    their limits, an order or milestones that cannot be, or a pool that is closed or attached.
    """
    return _implementation.read_files(
        paths,
        settings=settings_for(paths) if settings is None else settings,
        order=order,
        expected_crc32c=expected_crc32c,
        pool=pool,
        progress=progress,
        milestones=milestones,
        on_milestone=on_milestone,
        on_buffers=on_buffers,
        cancel=cancel,
    )
