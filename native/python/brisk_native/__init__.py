"""Read, checksum and copy model files at the speed of the disk.

`read_file` brings a whole file into fresh page-aligned memory past the page cache, verifying it
on the way; `checksum_file` and `copy_file` compute the checksums to verify against later. All of
them release the GIL while they work, block the calling thread until they are done, and report
progress on it: services call them on executor threads. Cancelling is a `CancelToken`, which any
thread may raise; the call then ends within one chunk with `ReadCancelledError`.

The compiled library does this; where it was not built, `IMPLEMENTATION` says "python" and a
slower module of the same interface takes its place. A library that was built but does not load
is an error: speed must not vanish silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from brisk_native._types import (
    CHUNK_BYTES,
    ChecksumError,
    Header,
    InvalidHeaderError,
    ReadCancelledError,
    ReadResult,
    ShortReadError,
    TensorInfo,
)

if TYPE_CHECKING:
    from brisk_native._native import (
        CancelToken,
        FileBuffer,
        checksum_file,
        copy_file,
        crc32c,
        parse_header,
        parse_header_bytes,
        read_file,
    )

    IMPLEMENTATION: Literal["native", "python"]
else:
    try:
        import brisk_native._native as _chosen

        IMPLEMENTATION = "native"
    except ModuleNotFoundError:
        from brisk_native import _fallback as _chosen

        IMPLEMENTATION = "python"
    CancelToken = _chosen.CancelToken
    FileBuffer = _chosen.FileBuffer
    checksum_file = _chosen.checksum_file
    copy_file = _chosen.copy_file
    crc32c = _chosen.crc32c
    parse_header = _chosen.parse_header
    parse_header_bytes = _chosen.parse_header_bytes
    read_file = _chosen.read_file

__all__ = [
    "CHUNK_BYTES",
    "IMPLEMENTATION",
    "CancelToken",
    "ChecksumError",
    "FileBuffer",
    "Header",
    "InvalidHeaderError",
    "ReadCancelledError",
    "ReadResult",
    "ShortReadError",
    "TensorInfo",
    "checksum_file",
    "copy_file",
    "crc32c",
    "parse_header",
    "parse_header_bytes",
    "read_file",
]
