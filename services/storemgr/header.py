"""The header of a safetensors file, which comes from anywhere and is not to be believed.

The file is an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes. All
that the safetensors library refuses is refused here too, and more: names, ranks and counts have
bounds, and nothing may be said twice. The tensors must cover the data exactly: a hole could hide
data, an overlap could make one tensor rewrite another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from services.common.names import shorten
from services.storemgr.refusal import MalformedError
from services.storemgr.strict_json import (
    JsonRules,
    described,
    is_integer,
    is_list,
    is_object,
    parse_object,
)

LENGTH_BYTES: Final = 8
HEADER_BYTES_MAX: Final = 100_000_000  # the format's own limit
TENSORS_MAX: Final = 100_000
NAME_BYTES_MAX: Final = 512
RANK_MAX: Final = 16
INTEGER_MAX: Final = 2**63 - 1  # file offsets are signed

_RULES: Final = JsonRules(
    size_bytes_max=HEADER_BYTES_MAX,
    containers_max=4 * TENSORS_MAX,  # three a tensor; the rest for brackets in names and metadata
    values_max=20 * TENSORS_MAX,
)
_METADATA: Final = "__metadata__"
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})

DTYPE_BITS: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a file; its bytes are data[begin:end]."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Return the bytes that it takes in the file."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that has been checked completely against its file's size."""

    data_offset: int  # where the data section begins in the file
    tensors: tuple[Tensor, ...]  # in the order of their bytes


def header_bytes(prefix: bytes, file_bytes: int) -> int:
    """Return the length of the JSON that follows `prefix`, the first 8 bytes of the file.

    Raises MalformedError if no header of that length can be there.
    """
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise MalformedError(f"is truncated: {file_bytes} bytes cannot hold a safetensors header")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise MalformedError(
            f"is not a safetensors file: its header would have {length} bytes, "
            f"the limit is {HEADER_BYTES_MAX}"
        )
    if LENGTH_BYTES + length > file_bytes:
        raise MalformedError(
            f"is truncated: its header has {length} bytes, the whole file {file_bytes}"
        )
    return length


def parse_header(raw: bytes, file_bytes: int) -> Header:
    """Return the header that `raw` holds, for a file of `file_bytes`. Raises MalformedError."""
    data_offset = LENGTH_BYTES + len(raw)
    try:
        members = parse_object(raw, _RULES)
    except MalformedError as error:
        raise MalformedError(f"has a header that {error}") from error
    _check_metadata(members.pop(_METADATA, {}))
    if len(members) > TENSORS_MAX:
        raise MalformedError(f"has {len(members)} tensors, the limit is {TENSORS_MAX}")
    tensors = [_tensor(name, fields) for name, fields in members.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, data_bytes=file_bytes - data_offset)
    return Header(data_offset=data_offset, tensors=tuple(tensors))


def _check_metadata(metadata: object) -> None:
    if not is_object(metadata):
        raise MalformedError(f"has metadata that is {described(metadata)}, not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise MalformedError(
                f"has metadata {shorten(key)} that is {described(value)}, not a string"
            )


def _tensor(name: str, fields: object) -> Tensor:
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise MalformedError(
            f"has a tensor name of {len(name.encode())} bytes, "
            f"allowed are 1 to {NAME_BYTES_MAX}: {shorten(name)}"
        )
    if not is_object(fields) or fields.keys() != _FIELDS:
        raise _fault(name, "is described otherwise than by dtype, shape and data_offsets")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        given = shorten(dtype) if isinstance(dtype, str) else described(dtype)
        raise _fault(name, f"has the unknown type {given}")
    shape = _integers(name, "shape", fields["shape"])
    if len(shape) > RANK_MAX:
        raise _fault(name, f"has {len(shape)} dimensions, the limit is {RANK_MAX}")
    offsets = _integers(name, "data_offsets", fields["data_offsets"])
    if len(offsets) != 2:  # noqa: PLR2004 - a begin and an end
        raise _fault(name, f"has {len(offsets)} offsets instead of two")
    tensor = Tensor(name=name, dtype=dtype, shape=shape, begin=offsets[0], end=offsets[1])
    _check_size(tensor)
    return tensor


def _fault(tensor: str, problem: str) -> MalformedError:
    return MalformedError(f"has a header in which tensor {shorten(tensor)} {problem}")


def _integers(tensor: str, field: str, value: object) -> tuple[int, ...]:
    if not is_list(value):
        raise _fault(tensor, f"has {described(value)} as {field}")
    integers = tuple(member for member in value if is_integer(member))
    if len(integers) != len(value):
        odd = next(member for member in value if not is_integer(member))
        raise _fault(tensor, f"has {described(odd)} in its {field}")
    for integer in integers:
        if not 0 <= integer <= INTEGER_MAX:
            raise _fault(tensor, f"has {integer} in its {field}")
    return integers


def _check_size(tensor: Tensor) -> None:
    """Refuse a tensor whose type and shape do not make up its bytes."""
    bits = DTYPE_BITS[tensor.dtype]
    for dimension in tensor.shape:
        bits *= dimension
        if bits > INTEGER_MAX:
            raise _fault(tensor.name, "has a shape too large for any file")
    if bits % 8:
        raise _fault(tensor.name, "ends within a byte")
    if tensor.size_bytes != bits // 8:
        raise _fault(
            tensor.name,
            f"is {tensor.dtype} {list(tensor.shape)}, which takes {bits // 8} bytes, "
            f"but lies at {tensor.begin} to {tensor.end}",
        )


def _check_cover(tensors: list[Tensor], *, data_bytes: int) -> None:
    """Refuse holes, overlaps, offsets beyond the file and bytes that belong to no tensor."""
    expected = 0
    for tensor in tensors:
        if tensor.begin != expected:
            fault = "a hole" if tensor.begin > expected else "an overlap"
            raise MalformedError(
                f"has {fault} before tensor {shorten(tensor.name)}: "
                f"it begins at {tensor.begin}, the one before ends at {expected}"
            )
        expected = tensor.end
    if expected > data_bytes:
        raise MalformedError(
            f"is truncated: its tensors take {expected} bytes, {data_bytes} are there"
        )
    if expected < data_bytes:
        raise MalformedError(f"has {data_bytes - expected} bytes that belong to no tensor")
