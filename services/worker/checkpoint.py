"""What a checkpoint's safetensors files contain and where: parsed without trust, before any read.

A safetensors file is 8 bytes of header length, a JSON header that gives each tensor's type, shape
and byte range, then the bytes. Everything here is checked against the file's real size, so that
whoever holds a `Checkpoint` may slice the file's bytes without looking again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.errors import InvalidArgumentError, Reason
from services.common.names import shorten

HEADER_BYTES_MAX: Final = 100_000_000  # the same as safetensors' own limit
_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_DIMENSIONS_MAX: Final = 16
_WORDS_CHARS_MAX: Final = 300

ELEMENT_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor's place in a file. `start` and `end` count from the file's first byte."""

    name: str
    file: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start

    @property
    def is_aligned(self) -> bool:
        """Whether its elements lie on multiples of their size, given an aligned file buffer."""
        return self.start % ELEMENT_BYTES[self.dtype] == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One safetensors file with the head that its tensors were parsed from."""

    name: str
    path: Path
    size_bytes: int
    head: bytes  # length and JSON header: what the bytes read later must begin with


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model folder's weights, by file and by tensor."""

    folder: Path
    files: tuple[StoredFile, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def file_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def invalid_model(file: str, problem: str, *, tensor: str | None = None) -> InvalidArgumentError:
    """Return the refusal of a model whose `file` is at fault."""
    named = f", tensor {shorten(tensor)}" if tensor is not None else ""
    metadata = {"file": file} if tensor is None else {"file": file, "tensor": shorten(tensor)}
    return InvalidArgumentError(
        f"{file}{named}: {problem}", reason=Reason.INVALID_MODEL, metadata=metadata
    )


def library_words(error: Exception, folder: Path) -> str:
    """Return the beginning of what a library says of a model in `folder`, without its path."""
    lines = str(error).replace(str(folder), "the model").strip().splitlines()
    return lines[0][:_WORDS_CHARS_MAX] if lines else type(error).__name__


def read_checkpoint(folder: Path, names: Sequence[str]) -> Checkpoint:
    """Return what the weight files `names` in `folder` contain. Reads their headers; blocks.

    Raises InvalidArgumentError (INVALID_MODEL) naming file, tensor and reason, and OSError.
    """
    if not names:
        raise invalid_model("*.safetensors", "the model has no weight file")
    files: list[StoredFile] = []
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if name != Path(name).name:
            raise invalid_model(shorten(name), "a weight file must lie in the model's folder")
        file = _read_head(folder / name)
        for tensor in _parse_header(file):
            if (other := tensors.get(tensor.name)) is not None:
                raise invalid_model(name, f"is in {other.file} already", tensor=tensor.name)
            tensors[tensor.name] = tensor
        files.append(file)
    return Checkpoint(folder=folder, files=tuple(files), tensors=tensors)


def _read_head(path: Path) -> StoredFile:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise invalid_model(path.name, f"is truncated: {size_bytes} bytes are no header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > HEADER_BYTES_MAX:
            raise invalid_model(
                path.name,
                f"header must have at most {HEADER_BYTES_MAX} bytes. Given: {header_bytes}",
            )
        if _LENGTH_BYTES + header_bytes > size_bytes:
            raise invalid_model(
                path.name, f"is truncated: {size_bytes} bytes, header of {header_bytes}"
            )
        head = prefix + file.read(header_bytes)
    return StoredFile(name=path.name, path=path, size_bytes=size_bytes, head=head)


def _parse_header(file: StoredFile) -> list[StoredTensor]:
    try:
        header = json.loads(file.head[_LENGTH_BYTES:])
    except (ValueError, RecursionError) as error:
        raise invalid_model(file.name, "header is not JSON") from error
    if not isinstance(header, dict):
        raise invalid_model(file.name, "header is not a JSON object")
    found = [
        _parse_tensor(file, name, entry) for name, entry in header.items() if name != _METADATA
    ]
    found.sort(key=lambda tensor: (tensor.start, tensor.end))
    end = len(file.head)
    for tensor in found:
        if tensor.start != end:
            kind = "overlaps the one before" if tensor.start < end else "leaves a gap before it"
            raise invalid_model(file.name, kind, tensor=tensor.name)
        end = tensor.end
    if end != file.size_bytes:
        raise invalid_model(file.name, f"is {file.size_bytes} bytes long, its tensors end at {end}")
    return found


def _parse_tensor(file: StoredFile, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise invalid_model(file.name, "entry lacks dtype, shape or data_offsets", tensor=name)
    if dtype not in ELEMENT_BYTES:
        raise invalid_model(file.name, f"has type {shorten(dtype)}, not supported", tensor=name)
    if len(shape) > _DIMENSIONS_MAX or not all(type(n) is int and n >= 0 for n in shape):
        raise invalid_model(file.name, "has a shape that is none", tensor=name)
    size_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
    if not 0 <= first <= last or last - first != size_bytes:
        raise invalid_model(file.name, f"needs {size_bytes} bytes, has {last - first}", tensor=name)
    base = len(file.head)
    if base + last > file.size_bytes:
        raise invalid_model(
            file.name, f"ends at byte {base + last} of {file.size_bytes}: truncated", tensor=name
        )
    return StoredTensor(
        name=name,
        file=file.name,
        dtype=dtype,
        shape=tuple(shape),
        start=base + first,
        end=base + last,
    )
