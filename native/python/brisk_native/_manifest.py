"""brisk.json, which the store writes beside a model: checksums of every chunk of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from brisk_native._types import CHUNK_BYTES, InvalidCheckpointError
from brisk_native._weights import is_plain_name, read_json

MANIFEST: Final = "brisk.json"
_VERSION: Final = 1
_BYTES_MAX: Final = 64 * 1024 * 1024
_CHECKSUM: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)


def read_checksums(folder: Path) -> Mapping[str, tuple[int, ...]] | None:
    """Return the CRC32C of each chunk by file name; None if the folder has no manifest.

    Raises InvalidCheckpointError for one that is damaged or of another version, and OSError.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    document = read_json(path, _BYTES_MAX)
    match document:
        case {"version": int(version), "chunk_bytes": int(chunk_bytes), "files": [*entries]}:
            pass
        case _:
            raise _refusal(path, "lacks version, chunk_bytes or files")
    if version != _VERSION or chunk_bytes != CHUNK_BYTES:
        raise _refusal(path, f"has version {version} with chunks of {chunk_bytes} bytes")
    return dict(_file(path, entry) for entry in entries)


def _file(path: Path, entry: object) -> tuple[str, tuple[int, ...]]:
    match entry:
        case {"name": str(name), "size_bytes": int(size_bytes), "crc32c": [*texts]}:
            pass
        case _:
            raise _refusal(path, "has a file without name, size_bytes or crc32c")
    if not is_plain_name(name):
        raise _refusal(path, f"has a file called {name[:80]!r}")
    if len(texts) != -(-size_bytes // CHUNK_BYTES):
        raise _refusal(path, f"has {len(texts)} checksums for {name[:80]!r}, {size_bytes} bytes")
    return name, tuple(_checksum(path, text) for text in texts)


def _checksum(path: Path, text: object) -> int:
    if isinstance(text, str) and _CHECKSUM.fullmatch(text):
        return int(text, 16)
    raise _refusal(path, "has a checksum that is not 8 hexadecimal digits")


def _refusal(path: Path, reason: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(os.fspath(path), reason)
