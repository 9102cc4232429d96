"""Which chunks of which files are read in what order, for the loader in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from brisk_native._types import CHUNK_BYTES, THREADS_MAX, ReadSettings

DEPTH_MAX: Final = 64
READ_BYTES_MAX: Final = 4 * CHUNK_BYTES

ChunkPlace: TypeAlias = tuple[int, int, int, int]
"""File, number of the chunk in it, offset and length in bytes."""


def all_chunks(
    sizes: Sequence[int], first: Sequence[tuple[int, int]] = (), milestones: Sequence[int] = ()
) -> list[ChunkPlace]:
    """Return all chunks of files of these sizes: those of `first`, then the others.

    Raises ValueError if `first` names a chunk twice or one that is not there, or if `milestones`
    do not rise up to the number of chunks.
    """
    places = [
        (file, chunk) for file, size in enumerate(sizes) for chunk in range(-(-size // CHUNK_BYTES))
    ]
    known, listed = set(places), set(first)
    if len(listed) != len(first) or not listed <= known:
        raise ValueError("order names a chunk twice, or one that is not there")
    if list(milestones) != sorted(milestones) or any(
        not 0 <= milestone <= len(places) for milestone in milestones
    ):
        raise ValueError(f"milestones must rise up to the number of chunks, {len(places)}")
    ordered = [*first, *(place for place in places if place not in listed)]
    return [
        (file, chunk, chunk * CHUNK_BYTES, min(CHUNK_BYTES, sizes[file] - chunk * CHUNK_BYTES))
        for file, chunk in ordered
    ]


def check_settings(settings: ReadSettings) -> None:
    """Raise ValueError, as the compiled loader does, for settings beyond its limits."""
    if settings.engine not in ("pread", "uring"):
        raise ValueError(f"engine must be pread or uring, not {settings.engine}")
    for name, value, most in (
        ("threads", settings.threads, THREADS_MAX),
        ("depth", settings.depth, DEPTH_MAX),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be between 1 and {most}, not {value}")
    if settings.read_bytes not in range(CHUNK_BYTES, READ_BYTES_MAX + 1, CHUNK_BYTES):
        raise ValueError(
            f"read_bytes must be a multiple of {CHUNK_BYTES} up to {READ_BYTES_MAX}, "
            f"not {settings.read_bytes}"
        )
