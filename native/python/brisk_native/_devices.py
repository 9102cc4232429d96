"""Pieces of files to devices, through a small ring of pinned memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from brisk_native import _implementation
from brisk_native._calibration import settings_for
from brisk_native._device_types import HOST_BYTES, DeviceLoadResult, DevicePiece
from brisk_native._implementation import CancelToken, DeviceBuffer
from brisk_native._types import ReadSettings


def read_to_devices(
    paths: Sequence[str | os.PathLike[str]],
    pieces: Sequence[DevicePiece | tuple[int, int, int, int, int]],
    allocations: Sequence[DeviceBuffer | tuple[int, int]],
    *,
    host_bytes: int = HOST_BYTES,
    streams: int = 2,
    settings: ReadSettings | None = None,
    expected_crc32c: Sequence[Sequence[int] | None] | None = None,
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[DeviceBuffer], DeviceLoadResult]:
    """Read pieces of files to devices; return a buffer per allocation, and how they came.

    `pieces` are in the order in which they are needed. Each goes to one of the `allocations`: a
    DeviceBuffer, or (number of the device, bytes) for a new one. Only chunks of CHUNK_BYTES that a
    piece touches are read, each once. They pass through a ring of pinned memory of at most
    `host_bytes` (from 8 MiB), whatever the size of the model; a chunk is copied while the next
    ones are read. Every device is fed by threads and `streams` (1 to 16) of its own.

    `expected_crc32c` has, for each file, the checksum of each chunk or None: chunks are verified
    before they are copied. `settings` say how to read; None: as `calibrate` found for the file
    system. Reads are made shorter and fewer until those in flight fit into half of the ring.

    `progress` gets the bytes that are on their devices, of the pieces' sum: 0 first, then about
    every 20 ms, and all at the end. `milestones` are rising counts of pieces; `on_milestone` gets
    each of them, once and in their order, as soon as so many leading pieces are on their devices,
    in buffers that the caller made beforehand. Both run on the calling thread; if one raises, so
    does this call.

    Cancelling ends the call within one read. Whatever is raised, all that this call took on
    devices and the host is given back. Raises what `read_files` raises; DeviceError with the
    driver's own words, DeviceMemoryError; ValueError for pieces beyond their file or allocation,
    and for arguments out of their limits.
    """
    return _implementation.read_to_devices(
        paths,
        pieces,
        allocations,
        settings=settings_for(paths) if settings is None else settings,
        host_bytes=host_bytes,
        streams=streams,
        expected_crc32c=expected_crc32c,
        progress=progress,
        milestones=milestones,
        on_milestone=on_milestone,
        cancel=cancel,
    )
