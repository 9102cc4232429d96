"""What the manifest says that a folder brings along: its files are imported as that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import brisk_native

from services.common.errors import DataLossError, Reason
from services.storemgr.folder import FileKind, ModelFile
from services.storemgr.manifest import MANIFEST
from services.storemgr.refusal import blaming, invalid_model

Checksums: TypeAlias = Mapping[str, Sequence[int]]
"""CRC-32C of each chunk, by file name."""


def checksums_of(folder: Path, files: Sequence[ModelFile]) -> Checksums:
    """Return what the manifest of `folder` says; empty if it has none.

    Raises InvalidArgumentError (INVALID_MODEL) for one that is damaged or lacks one of the weights
    among `files`, and OSError.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():  # a dangling link is damage
        return {}
    try:
        with blaming(MANIFEST):
            found = brisk_native.parse_manifest(path.resolve(strict=True))
    except brisk_native.InvalidCheckpointError as error:
        raise invalid_model(MANIFEST, error.reason) from error
    except brisk_native.ShortReadError as error:
        raise invalid_model(MANIFEST, "shrank while it was read") from error
    checksums = {file.name: file.crc32c for file in found.files}
    for file in files:
        if file.kind is FileKind.WEIGHTS and file.name not in checksums:
            raise invalid_model(MANIFEST, f"does not list {file.name}")
    return checksums


def damaged(name: str, chunk: int) -> DataLossError:
    """Return the refusal of the file `name` with a wrong chunk."""
    return DataLossError(
        f"{name} is not what the {MANIFEST} beside it says, from chunk {chunk} on",
        reason=Reason.CHECKSUM_MISMATCH,
        metadata={"file": name, "chunk": str(chunk)},
    )


def compare(name: str, found: Sequence[int], expected: Sequence[int] | None) -> None:
    """Raise DataLossError if a file has not the checksums that its folder brings along."""
    if expected is None or tuple(found) == tuple(expected):
        return
    pairs = enumerate(zip(found, expected, strict=False))
    differing = (chunk for chunk, (one, other) in pairs if one != other)
    raise damaged(name, next(differing, min(len(found), len(expected))))
