"""Which implementation runs: the compiled one, or plain Python where that was not built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from brisk_native._native import (
        CancelToken,
        FileBuffer,
        Pool,
        checksum_file,
        copy_file,
        counters,
        crc32c,
        gather_file,
        parse_header,
        parse_header_bytes,
        parse_manifest,
        parse_manifest_bytes,
        read_file,
        read_files,
        trial_read,
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
    Pool = _chosen.Pool
    checksum_file = _chosen.checksum_file
    copy_file = _chosen.copy_file
    counters = _chosen.counters
    crc32c = _chosen.crc32c
    gather_file = _chosen.gather_file
    parse_header = _chosen.parse_header
    parse_header_bytes = _chosen.parse_header_bytes
    parse_manifest = _chosen.parse_manifest
    parse_manifest_bytes = _chosen.parse_manifest_bytes
    read_file = _chosen.read_file
    read_files = _chosen.read_files
    trial_read = _chosen.trial_read

__all__ = [
    "IMPLEMENTATION",
    "CancelToken",
    "FileBuffer",
    "Pool",
    "checksum_file",
    "copy_file",
    "counters",
    "crc32c",
    "gather_file",
    "parse_header",
    "parse_header_bytes",
    "parse_manifest",
    "parse_manifest_bytes",
    "read_file",
    "read_files",
    "trial_read",
]
