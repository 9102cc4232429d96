"""What the weights of a folder become in the stored form: one file, laid out for loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import brisk_native

from services.common.errors import AbortedError, Reason
from services.common.log import get_logger
from services.storemgr.folder import SINGLE, FileKind, ModelFile

log = get_logger(__name__)

STORED_NAME = SINGLE
_CHANGED = (
    FileNotFoundError,
    brisk_native.InvalidCheckpointError,
    brisk_native.InvalidHeaderError,
    brisk_native.ShortReadError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Weights, and the size of the file that they become."""

    weights: brisk_native.Weights
    size_bytes: int


def plan_conversion(folder: Path, files: Sequence[ModelFile]) -> Conversion | None:
    """Return what the weights among `files`, found sound in `folder`, become.

    None if they cannot have the stored form: they have too many tensors for one file. Raises
    AbortedError if they have changed since they were found, and OSError.
    """
    names = [file.name for file in files if file.kind is FileKind.WEIGHTS]
    try:
        weights = brisk_native.inspect(folder, files=names)
    except _CHANGED as error:
        raise AbortedError(
            "the folder changed while it was read: import it again", reason=Reason.SOURCE_CHANGED
        ) from error
    try:
        return Conversion(weights=weights, size_bytes=brisk_native.stored_bytes(weights))
    except brisk_native.InvalidCheckpointError as error:
        log.info("weights are kept as they are", cause=error.reason)
        return None
