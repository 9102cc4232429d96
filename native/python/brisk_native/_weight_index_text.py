"""The index of shards in plain Python: the mirror of src/weight_index.cpp, fault by fault."""

from __future__ import annotations

from typing import Final, NoReturn

from brisk_native._scanner import JsonFault, JsonScanner
from brisk_native._types import (
    FILE_NAME_BYTES_MAX,
    INDEX_BYTES_MAX,
    INDEX_FILES_MAX,
    INDEX_TENSORS_MAX,
    NAME_BYTES_MAX,
    InvalidCheckpointError,
)
from brisk_native._weight_index import WeightIndex

_SUFFIX: Final = ".safetensors"
_SPECIAL: Final = frozenset("/\\\0")


def check_bytes(path: str, size_bytes: int) -> None:
    """Raise InvalidCheckpointError if no index may have that many bytes."""
    if size_bytes > INDEX_BYTES_MAX:
        _refuse(path, f"has {size_bytes} bytes, the limit is {INDEX_BYTES_MAX}")


def parse_text(path: str, text: bytes) -> WeightIndex:
    """Return the index that `text` holds. Raises InvalidCheckpointError."""
    check_bytes(path, len(text))
    scanner = JsonScanner(text)
    entries: list[tuple[str, str]] = []
    try:
        for name in scanner.members():
            if name == "weight_map":
                _parse_map(path, scanner, entries)
            else:
                scanner.skip(1)
        scanner.expect_end()
    except JsonFault as fault:
        _refuse(path, str(fault))
    if not entries:
        _refuse(path, "has no weight_map")
    file_of = dict(entries)
    if len(file_of) != len(entries):
        _refuse(path, "names one tensor twice")
    return WeightIndex(file_of)


def _parse_map(path: str, scanner: JsonScanner, entries: list[tuple[str, str]]) -> None:
    files: set[str] = set()
    scanner.expect(b"{")
    if scanner.take(b"}"):
        return
    more = True
    while more:
        if len(entries) == INDEX_TENSORS_MAX:
            _refuse(path, f"names more than {INDEX_TENSORS_MAX} tensors")
        tensor = scanner.string()
        size = len(tensor.encode())
        if not 1 <= size <= NAME_BYTES_MAX:
            allowed = f"allowed are 1 to {NAME_BYTES_MAX}"
            _refuse(path, f"has a tensor name of {size} bytes, {allowed}")
        scanner.expect(b":")
        file = scanner.string()
        if file not in files:
            _check_file(path, file)
            if len(files) == INDEX_FILES_MAX:
                _refuse(path, f"names more than {INDEX_FILES_MAX} files")
            files.add(file)
        entries.append((tensor, file))
        more = scanner.take(b",")
    scanner.expect(b"}")


def _check_file(path: str, name: str) -> None:
    is_plain = name not in {"", ".", ".."} and not _SPECIAL & set(name)
    is_short = len(name.encode()) <= FILE_NAME_BYTES_MAX
    if not is_plain or not is_short or not name.endswith(_SUFFIX):
        _refuse(path, f"names a file that is no {_SUFFIX} file in its folder")


def _refuse(path: str, reason: str) -> NoReturn:
    raise InvalidCheckpointError(path, reason)
