"""How the stored form lays a model's tensors out in one safetensors file (ADR 0006).

The header is filled up with spaces so that the tensors' bytes begin at a multiple of 4096, which
direct reads need; each tensor begins at a multiple of 256, which devices like. They come in the
order of execution. What remains between them is declared as small tensors of their own, as the
format allows no holes. Equal tensors give equal bytes, whatever files they came in.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final, TypeAlias

from brisk_native._order import execution_order
from brisk_native._types import (
    FORM,
    FORM_KEY,
    HEADER_BYTES_MAX,
    METADATA_MAX,
    PADDING_PREFIX,
    STORED_ALIGNMENT,
    TENSORS_MAX,
    InvalidCheckpointError,
    TensorInfo,
    shown,
)
from brisk_native._weights import Weights

DATA_ALIGNMENT: Final = 4096
_LENGTH_BYTES: Final = 8

Piece: TypeAlias = tuple[int, int, int, int]
"""Number of the source file, offset in it, size, and offset in the new file; all in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A file of the stored form, before there is one."""

    header: bytes
    """What it begins with, up to the first tensor's bytes."""
    pieces: tuple[Piece, ...]
    """Where the tensors' bytes come from, in the order of the new file; the rest is zeros."""
    file_bytes: int


def plan_layout(weights: Weights) -> Layout:
    """Return the layout of these weights. Raises InvalidCheckpointError if they cannot have it."""
    places = weights.tensors
    numbers = {file.name: number for number, file in enumerate(weights.files)}
    entries: dict[str, object] = {"__metadata__": _metadata(weights)}
    found: list[tuple[int, TensorInfo, int]] = []  # source, tensor, offset from the first byte
    end = padded = 0
    for group in execution_order(places):
        for name in group.tensors:
            file, tensor = places[name]
            _check_name(weights, name)
            if (gap := -end % STORED_ALIGNMENT) and tensor.size_bytes:
                entries[f"{PADDING_PREFIX}{padded}"] = _entry("U8", (gap,), end, end + gap)
                end, padded = end + gap, padded + 1
            entries[name] = _entry(tensor.dtype, tensor.shape, end, end + tensor.size_bytes)
            found.append((numbers[file.name], tensor, end))
            end += tensor.size_bytes
    if len(places) + padded > TENSORS_MAX:
        count = f"{len(places)} tensors and {padded} gaps"
        raise _refusal(weights, f"has {count}, the stored form holds {TENSORS_MAX}")
    header = _header(weights, entries)
    pieces = tuple(
        (source, tensor.offset, tensor.size_bytes, len(header) + offset)
        for source, tensor, offset in found
    )
    return Layout(header=header, pieces=pieces, file_bytes=len(header) + end)


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}


def _metadata(weights: Weights) -> dict[str, str]:
    """Return what all files note; where they disagree, what the first one does."""
    merged: dict[str, str] = {}
    for file in weights.files:
        merged = {**file.header.metadata, **merged}
    merged[FORM_KEY] = FORM
    if len(merged) > METADATA_MAX:
        raise _refusal(weights, f"has more than {METADATA_MAX} entries of metadata")
    return dict(sorted(merged.items()))


def _header(weights: Weights, entries: dict[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % DATA_ALIGNMENT)
    if len(text) > HEADER_BYTES_MAX:
        reason = f"would have a header of {len(text)} bytes, the limit is {HEADER_BYTES_MAX}"
        raise _refusal(weights, reason)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _check_name(weights: Weights, name: str) -> None:
    if name.startswith(PADDING_PREFIX):
        raise _refusal(weights, f"has a tensor {shown(name)}, a name of the stored form's gaps")


def _refusal(weights: Weights, reason: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(os.fspath(weights.files[0].path.parent), reason)
