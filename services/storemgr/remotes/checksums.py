"""What a source's own brisk.json promises: the checksum of each chunk of each file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import brisk_native

from services.storemgr.file_names import is_file_name
from services.storemgr.refusal import MalformedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Size and checksums of a file."""

    size_bytes: int
    checksums: tuple[int, ...]  # CRC-32C of each chunk


def promises_in(raw: bytes) -> Mapping[str, Promise]:
    """Return what the brisk.json `raw` says of each file, by name. Raises MalformedError."""
    try:
        manifest = brisk_native.parse_manifest_bytes(raw)
    except brisk_native.InvalidCheckpointError as error:
        raise MalformedError(error.reason) from None
    for file in manifest.files:
        if not is_file_name(file.name):
            raise MalformedError("names a file that no model may have")
    return {
        file.name: Promise(size_bytes=file.size_bytes, checksums=file.crc32c)
        for file in manifest.files
    }


def names_in(raw: bytes) -> frozenset[str]:
    """Return the names of the files that the brisk.json `raw` lists. Raises MalformedError."""
    return frozenset(promises_in(raw))
