"""Which files of a folder hold its weights, and what is in them: checked before anything is read.

A folder is laid out as transformers does: `model.safetensors`, or shards with
`model.safetensors.index.json`, or PEFT's `adapter_model.safetensors`, or a single file of another
name. Links are followed, as Hugging Face's cache consists of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from brisk_native._implementation import parse_header, parse_header_bytes, parse_index
from brisk_native._types import DTYPE_BITS, Header, InvalidCheckpointError, TensorInfo, shown

if TYPE_CHECKING:
    from typing_extensions import Buffer

SINGLE: Final = ("model.safetensors", "adapter_model.safetensors")
INDEX: Final = "model.safetensors.index.json"
SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One safetensors file of a checkpoint."""

    name: str
    """In its folder."""
    path: Path
    """Absolute, without links."""
    header: Header
    stamp: tuple[int, int, int, int]
    """Device, inode, size and time of change from before the header was read: `stamp_of`. All
    0 of a file whose bytes are in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a folder's weight files contain; every tensor's name is there once."""

    files: tuple[WeightFile, ...]
    """Sorted by name."""

    @property
    def tensors(self) -> dict[str, tuple[WeightFile, TensorInfo]]:
        """Where each tensor is, in the order of the files and of the bytes in them."""
        return {
            tensor.name: (file, tensor) for file in self.files for tensor in file.header.tensors
        }

    @property
    def file_bytes(self) -> int:
        """Size of all weight files, headers included, in bytes."""
        return sum(file.header.file_bytes for file in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(info.size_bytes for file in self.files for info in file.header.tensors)

    @property
    def misaligned_bytes(self) -> int:
        """Bytes of the tensors that do not begin at a multiple of their type's size.

        They cannot be used in place where their file lies in memory as it is.
        """
        return sum(
            info.size_bytes
            for file in self.files
            for info in file.header.tensors
            if info.offset % max(1, DTYPE_BITS[info.dtype] // 8)
        )

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(info.elements for file in self.files for info in file.header.tensors)


def folder_of(source: str | os.PathLike[str]) -> Path:
    """Return `source`, absolute and without links, or the folder of a file. Raises OSError."""
    place = Path(os.path.realpath(source, strict=True))
    return place if place.is_dir() else place.parent


def read_weights(source: str | os.PathLike[str], *, files: Sequence[str] | None = None) -> Weights:
    """Return what the weight files of `source`, a folder or one file, contain.

    `files` names those of a folder, and only they are looked at; None finds them as transformers
    does. Reads headers and the index only.

    Raises InvalidHeaderError naming file, tensor and reason; InvalidCheckpointError if files and
    index do not fit together; OSError.
    """
    place = Path(os.path.realpath(source, strict=True))
    if files is not None:
        return _named(place, files)
    if not place.is_dir():
        return Weights(files=(_open(place.parent, place.name),))
    single = _single(place)
    if single is not None:
        return Weights(files=(_open(place, single),))
    path = place / INDEX
    try:
        index = parse_index(os.path.realpath(path, strict=True))  # a hub's cache consists of links
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(os.fspath(path), error.reason) from None
    shards = tuple(_open_shard(place, name) for name in sorted(index.files))
    found = _check_distinct(path, shards)
    if (wrong := index.misplaced(found)) is not None:
        tensor, name = wrong
        reason = f"puts tensor {shown(tensor)} into {name}, which does not have it"
        raise InvalidCheckpointError(os.fspath(path), reason)
    return Weights(files=shards)


def weights_in(folder: Path, buffers: Mapping[str, Buffer]) -> Weights:
    """Return what the weight files whose bytes `buffers` hold, by name, contain.

    Nothing of `folder` is looked at: it is where the files would be. Raises as `read_weights` does.
    """
    if not buffers:
        raise InvalidCheckpointError(os.fspath(folder), "the model has no weight file")
    files = []
    for name, buffer in sorted(buffers.items()):
        path = folder / name
        with memoryview(buffer) as view:
            header = parse_header_bytes(view, view.nbytes, path)
        files.append(WeightFile(name=name, path=path, header=header, stamp=(0, 0, 0, 0)))
    _check_distinct(folder, tuple(files))
    return Weights(files=tuple(files))


def _named(folder: Path, names: Sequence[str]) -> Weights:
    if not names:
        raise InvalidCheckpointError(os.fspath(folder), "the model has no weight file")
    for name in names:
        if not is_plain_name(name):
            reason = f"a weight file must lie in the model's folder: {shown(name)} does not"
            raise InvalidCheckpointError(os.fspath(folder), reason)
    files = tuple(_open(folder, name) for name in sorted(set(names)))
    _check_distinct(folder, files)
    return Weights(files=files)


def _single(folder: Path) -> str | None:
    """Return the file that holds all weights; None if there is an index to ask."""
    if (folder / SINGLE[0]).exists():
        return SINGLE[0]
    if (folder / INDEX).exists():
        return None
    if (folder / SINGLE[1]).exists():
        return SINGLE[1]
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIX))
    if len(found) != 1:
        raise InvalidCheckpointError(
            os.fspath(folder), f"has {len(found)} {SUFFIX} files and no {INDEX}"
        )
    return found[0]


def _open(folder: Path, name: str) -> WeightFile:
    path = Path(os.path.realpath(folder / name, strict=True))
    stamp = stamp_of(path.stat())
    return WeightFile(name=name, path=path, header=parse_header(path), stamp=stamp)


def _open_shard(folder: Path, name: str) -> WeightFile:
    try:
        return _open(folder, name)
    except FileNotFoundError:
        reason = f"names {name}, which is not in the folder: download it, or mend the index"
        raise InvalidCheckpointError(os.fspath(folder / INDEX), reason) from None


def stamp_of(facts: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells one state of a file from another."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def read_json(path: Path, size_bytes_max: int) -> dict[str, object]:
    """Return the JSON object in a file that others wrote. Raises InvalidCheckpointError."""
    with path.open("rb") as file:
        raw = file.read(size_bytes_max + 1)
    if len(raw) > size_bytes_max:
        raise InvalidCheckpointError(os.fspath(path), f"has more than {size_bytes_max} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidCheckpointError(os.fspath(path), "is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidCheckpointError(os.fspath(path), "holds no JSON object")
    return document


def is_plain_name(name: object) -> bool:
    """Return whether `name` is a file's name that leads nowhere else."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not set("/\\\0") & set(name)


def _check_distinct(path: Path, files: tuple[WeightFile, ...]) -> dict[str, str]:
    """Return the file of each tensor; refuse one that is in two."""
    found: dict[str, str] = {}
    for file in files:
        for tensor in file.header.tensors:
            if (other := found.setdefault(tensor.name, file.name)) != file.name:
                reason = f"tensor {tensor.name[:80]!r} is in both {other} and {file.name}"
                raise InvalidCheckpointError(os.fspath(path), reason)
    return found
