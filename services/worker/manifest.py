"""The checksums that the node's store manager wrote beside a model's files, if it did.

Only what the worker needs is read, and nothing is trusted: a manifest of a version that we do not
know gives no checksums, one that is damaged ends the load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.common.errors import DataLossError
from services.common.log import get_logger
from services.worker.checkpoint import Checkpoint

log = get_logger(__name__)

MANIFEST: Final = "brisk.json"
CHUNK_BYTES: Final = 4 * 1024 * 1024  # what brisk_native verifies by
_VERSION: Final = 1
_BYTES_MAX: Final = 64 * 1024 * 1024
_CHECKSUM: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)


def read_checksums(folder: Path, checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Return the CRC-32C of each chunk by file name; empty if there is nothing to verify by.

    Blocks. Raises DataLossError if the manifest does not match the weight files, and OSError.
    """
    path = folder / MANIFEST
    if not path.is_file():
        log.info("weights are not verified: no manifest")
        return {}
    if path.stat().st_size > _BYTES_MAX:
        raise _damaged("is too large")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged("is not JSON") from error
    match document:
        case {"version": int(version), "chunk_bytes": int(chunk_bytes), "files": [*entries]}:
            pass
        case _:
            raise _damaged("lacks version, chunk_bytes or files")
    if version != _VERSION or chunk_bytes != CHUNK_BYTES:
        log.warning("weights are not verified: manifest of another version", version=version)
        return {}
    return _by_file(entries, checkpoint)


def _by_file(entries: list[object], checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    stored: dict[str, tuple[int, ...]] = {}
    sizes = {file.name: file.size_bytes for file in checkpoint.files}
    for entry in entries:
        match entry:
            case {"name": str(name), "size_bytes": int(size_bytes), "crc32c": [*texts]}:
                pass
            case _:
                raise _damaged("has a file without name, size_bytes or crc32c")
        if name not in sizes:
            continue
        if size_bytes != sizes[name]:
            raise _damaged(f"says {size_bytes} bytes for {name}, which has {sizes[name]}")
        stored[name] = tuple(_checksum(text) for text in texts)
    if absent := sizes.keys() - stored.keys():
        raise _damaged(f"does not list {min(absent)}")
    return stored


def _checksum(text: object) -> int:
    if isinstance(text, str) and _CHECKSUM.fullmatch(text):
        return int(text, 16)
    raise _damaged("has a checksum that is not 8 hexadecimal digits")


def _damaged(problem: str) -> DataLossError:
    return DataLossError(f"{MANIFEST} {problem}")
