"""Which implementation runs: the compiled one, or plain Python where that was not built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from brisk_native._native import (
        CancelToken,
        DeviceBuffer,
        FileBuffer,
        PinnedMemory,
        Pool,
        WeightIndex,
        checksum_file,
        checksum_pieces,
        copy_file,
        copy_to_devices,
        counters,
        crc32c,
        device_memory,
        devices,
        gather_file,
        map_pieces,
        parse_header,
        parse_header_bytes,
        parse_index,
        parse_index_bytes,
        parse_manifest,
        parse_manifest_bytes,
        pieces_in_use,
        read_file,
        read_files,
        read_pieces,
        read_to_devices,
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
    DeviceBuffer = _chosen.DeviceBuffer
    FileBuffer = _chosen.FileBuffer
    PinnedMemory = _chosen.PinnedMemory
    Pool = _chosen.Pool
    WeightIndex = _chosen.WeightIndex
    checksum_file = _chosen.checksum_file
    checksum_pieces = _chosen.checksum_pieces
    copy_file = _chosen.copy_file
    copy_to_devices = _chosen.copy_to_devices
    counters = _chosen.counters
    crc32c = _chosen.crc32c
    device_memory = _chosen.device_memory
    devices = _chosen.devices
    gather_file = _chosen.gather_file
    map_pieces = _chosen.map_pieces
    parse_header = _chosen.parse_header
    parse_header_bytes = _chosen.parse_header_bytes
    parse_index = _chosen.parse_index
    parse_index_bytes = _chosen.parse_index_bytes
    parse_manifest = _chosen.parse_manifest
    parse_manifest_bytes = _chosen.parse_manifest_bytes
    pieces_in_use = _chosen.pieces_in_use
    read_file = _chosen.read_file
    read_files = _chosen.read_files
    read_pieces = _chosen.read_pieces
    read_to_devices = _chosen.read_to_devices
    trial_read = _chosen.trial_read

__all__ = [
    "IMPLEMENTATION",
    "CancelToken",
    "DeviceBuffer",
    "FileBuffer",
    "PinnedMemory",
    "Pool",
    "WeightIndex",
    "checksum_file",
    "checksum_pieces",
    "copy_file",
    "copy_to_devices",
    "counters",
    "crc32c",
    "device_memory",
    "devices",
    "gather_file",
    "map_pieces",
    "parse_header",
    "parse_header_bytes",
    "parse_index",
    "parse_index_bytes",
    "parse_manifest",
    "parse_manifest_bytes",
    "pieces_in_use",
    "read_file",
    "read_files",
    "read_pieces",
    "read_to_devices",
    "trial_read",
]
