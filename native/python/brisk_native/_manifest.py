"""brisk.json, which is written beside a model: checksums of every chunk of its files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from brisk_native._implementation import parse_manifest
from brisk_native._types import CHUNK_BYTES, InvalidCheckpointError, ManifestFile

MANIFEST: Final = "brisk.json"
VERSION: Final = 2
STORED_FORM: Final = 1


def read_checksums(
    folder: Path, *, is_required: bool = False
) -> Mapping[str, tuple[int, ...]] | None:
    """Return the CRC32C of each chunk by file name; None if the folder has no manifest.

    Raises InvalidCheckpointError for one that is damaged or of another version, or that is missing
    though it is required, and OSError.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():  # a dangling link is damage
        if is_required:
            reason = "is missing: nothing says what the files' bytes should be"
            raise InvalidCheckpointError(os.fspath(path), reason)
        return None
    found = parse_manifest(os.path.realpath(path, strict=True))  # a hub's cache consists of links
    return {file.name: file.crc32c for file in found.files}


def manifest_text(files: Sequence[ManifestFile], source: Mapping[str, object]) -> bytes:
    """Return the text of a manifest of the stored form; `source` says what it was made of."""
    document = {
        "version": VERSION,
        "form": STORED_FORM,
        "chunk_bytes": CHUNK_BYTES,
        "files": [
            {
                "name": file.name,
                "size_bytes": file.size_bytes,
                "crc32c": [f"{checksum:08x}" for checksum in file.crc32c],
            }
            for file in files
        ],
        "source": source,
    }
    return json.dumps(document, indent=1).encode() + b"\n"
