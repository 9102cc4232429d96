"""The safetensors header in plain Python: the mirror of src/safetensors_header.cpp.

It accepts what that accepts and refuses the rest in the same words, taking some thirty times as
long; the limits are in brisk_native._types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

from brisk_native._scanner import JsonFault, JsonScanner
from brisk_native._types import (
    DTYPE_BITS,
    FORM,
    FORM_KEY,
    HEADER_BYTES_MAX,
    METADATA_MAX,
    NAME_BYTES_MAX,
    PADDING_PREFIX,
    RANK_MAX,
    STORED_ALIGNMENT,
    TENSORS_MAX,
    Header,
    InvalidHeaderError,
    TensorInfo,
)

LENGTH_BYTES: Final = 8
_INTEGER_MAX: Final = 2**63 - 1  # file offsets are signed
_METADATA: Final = "__metadata__"
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


def json_bytes(path: str, prefix: bytes, file_bytes: int) -> int:
    """Return the length of the JSON in a file that begins with `prefix`."""
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        _refuse(path, f"truncated: {file_bytes} bytes cannot hold a header")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        _refuse(path, f"its header would have {length} bytes, the limit is {HEADER_BYTES_MAX}")
    if length > file_bytes - LENGTH_BYTES:
        _refuse(path, f"truncated: a header of {length} bytes in a file of {file_bytes}")
    return length


def parse(path: str, data: memoryview, file_bytes: int) -> Header:
    """Return the header that the bytes `data`, the beginning of a file of `file_bytes`, hold.

    Raises InvalidHeaderError.
    """
    length = json_bytes(path, bytes(data[:LENGTH_BYTES]), file_bytes)
    raw = bytes(data[LENGTH_BYTES : LENGTH_BYTES + length])
    if len(raw) < length:
        _refuse(path, f"truncated: a header of {length} bytes in {len(data)}")
    return _Parser(path=path, scanner=JsonScanner(raw)).parse(LENGTH_BYTES + length, file_bytes)


def _refuse(path: str, reason: str, tensor: str | None = None) -> NoReturn:
    raise InvalidHeaderError(path, tensor, reason)


@dataclass(slots=True, kw_only=True)
class _Entry:
    """A tensor of which some fields may be unknown yet."""

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    begin: int = 0
    end: int = 0

    def info(self, data_offset: int) -> TensorInfo:
        return TensorInfo(
            name=self.name,
            dtype=self.dtype,
            shape=self.shape,
            offset=data_offset + self.begin,
            size_bytes=self.end - self.begin,
        )


@dataclass(slots=True, kw_only=True)
class _Parser:
    """Fills the parts of a header from its text."""

    path: str
    scanner: JsonScanner
    entries: list[_Entry] = field(default_factory=list)
    metadata: list[tuple[str, str]] | None = None
    tensor: str | None = None  # the one at hand

    def parse(self, data_offset: int, file_bytes: int) -> Header:
        try:
            self._members()
        except JsonFault as fault:
            raise InvalidHeaderError(self.path, self.tensor, str(fault)) from None
        self._refuse_repeated_names()
        self.entries.sort(key=lambda entry: (entry.begin, entry.end))
        self._check_cover(file_bytes - data_offset)
        is_stored_form = (FORM_KEY, FORM) in (self.metadata or ())
        tensors: list[TensorInfo] = []
        padding: list[TensorInfo] = []
        for entry in self.entries:
            is_padding = is_stored_form and entry.name.startswith(PADDING_PREFIX)
            if is_padding:
                self._check_padding(entry)
            (padding if is_padding else tensors).append(entry.info(data_offset))
        return Header(
            data_offset=data_offset,
            file_bytes=file_bytes,
            tensors=tuple(tensors),
            metadata=dict(self.metadata or ()),
            padding=tuple(padding),
        )

    def _members(self) -> None:
        scanner = self.scanner
        scanner.expect(b"{")
        if not scanner.take(b"}"):
            more = True
            while more:
                name = scanner.string()
                scanner.expect(b":")
                if name == _METADATA:
                    self._metadata()
                else:
                    self._tensor(name)
                more = scanner.take(b",")
            scanner.expect(b"}")
        scanner.expect_end()

    def _metadata(self) -> None:
        if self.metadata is not None:
            _refuse(self.path, "has its metadata twice")
        self.metadata = []
        self.scanner.expect(b"{")
        if self.scanner.take(b"}"):
            return
        more = True
        while more:
            if len(self.metadata) == METADATA_MAX:
                _refuse(self.path, f"has more than {METADATA_MAX} entries of metadata")
            key = self.scanner.string()
            self.scanner.expect(b":")
            self.metadata.append((key, self.scanner.string()))
            more = self.scanner.take(b",")
        self.scanner.expect(b"}")

    def _tensor(self, name: str) -> None:
        if len(self.entries) == TENSORS_MAX:
            _refuse(self.path, f"has more than {TENSORS_MAX} tensors")
        name_bytes = len(name.encode())
        if not 1 <= name_bytes <= NAME_BYTES_MAX:
            reason = f"has a tensor name of {name_bytes} bytes, allowed are 1 to {NAME_BYTES_MAX}"
            _refuse(self.path, reason)
        self.tensor = name
        entry = _Entry(name=name)
        self._fields(entry)
        self._check_size(entry)
        self.entries.append(entry)
        self.tensor = None

    def _fields(self, entry: _Entry) -> None:
        seen: set[str] = set()
        self.scanner.expect(b"{")
        more = True
        while more:
            key = self.scanner.string()
            self.scanner.expect(b":")
            if key not in _FIELDS:
                _refuse(self.path, "has a field beside dtype, shape and data_offsets", entry.name)
            if key in seen:
                _refuse(self.path, "has a field twice", entry.name)
            seen.add(key)
            if key == "dtype":
                entry.dtype = self._dtype(entry.name)
            elif key == "shape":
                entry.shape = self._shape(entry.name)
            else:
                entry.begin, entry.end = self._offsets()
            more = self.scanner.take(b",")
        self.scanner.expect(b"}")
        if seen != _FIELDS:
            _refuse(self.path, "lacks dtype, shape or data_offsets", entry.name)

    def _dtype(self, tensor: str) -> str:
        dtype = self.scanner.string()
        if dtype not in DTYPE_BITS:
            _refuse(self.path, "has an unknown type", tensor)
        return dtype

    def _shape(self, tensor: str) -> tuple[int, ...]:
        self.scanner.expect(b"[")
        if self.scanner.take(b"]"):
            return ()
        shape: list[int] = []
        more = True
        while more:
            if len(shape) == RANK_MAX:
                _refuse(self.path, f"has more than {RANK_MAX} dimensions", tensor)
            shape.append(self.scanner.integer(_INTEGER_MAX))
            more = self.scanner.take(b",")
        self.scanner.expect(b"]")
        return tuple(shape)

    def _offsets(self) -> tuple[int, int]:
        self.scanner.expect(b"[")
        begin = self.scanner.integer(_INTEGER_MAX)
        self.scanner.expect(b",")
        end = self.scanner.integer(_INTEGER_MAX)
        self.scanner.expect(b"]")
        return begin, end

    def _check_size(self, entry: _Entry) -> None:
        bits = DTYPE_BITS[entry.dtype]
        for dimension in entry.shape:
            bits *= dimension
            if bits > _INTEGER_MAX:
                _refuse(self.path, "has a shape too large for any file", entry.name)
        if bits % 8:
            _refuse(self.path, "ends within a byte", entry.name)
        if entry.end - entry.begin != bits // 8:
            reason = (
                f"takes {bits // 8} bytes by type and shape, "
                f"but lies at {entry.begin} to {entry.end}"
            )
            _refuse(self.path, reason, entry.name)

    def _check_padding(self, entry: _Entry) -> None:
        is_short = entry.end - entry.begin < STORED_ALIGNMENT
        if entry.dtype != "U8" or len(entry.shape) != 1 or not is_short:
            reason = (
                "is padding, which must be U8 of one dimension and fewer than "
                f"{STORED_ALIGNMENT} bytes"
            )
            _refuse(self.path, reason, entry.name)

    def _refuse_repeated_names(self) -> None:
        names: set[str] = set()
        for entry in self.entries:
            if entry.name in names:
                _refuse(self.path, "is there twice", entry.name)
            names.add(entry.name)
        keys = [key for key, _ in self.metadata or ()]
        if len(set(keys)) != len(keys):
            _refuse(self.path, "has a key of its metadata twice")

    def _check_cover(self, data_bytes: int) -> None:
        reached = 0
        for entry in self.entries:
            if entry.begin != reached:
                fault = "leaves a hole" if entry.begin > reached else "overlaps the one before"
                reason = f"{fault}: begins at {entry.begin}, the one before ends at {reached}"
                _refuse(self.path, reason, entry.name)
            reached = entry.end
        if reached > data_bytes:
            reason = f"truncated: its tensors take {reached} bytes, {data_bytes} are there"
            _refuse(self.path, reason)
        if reached < data_bytes:
            _refuse(self.path, f"has {data_bytes - reached} bytes that belong to no tensor")
