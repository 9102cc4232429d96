"""What files say of themselves, parsed in plain Python. Documents the parsers' interface."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from brisk_native import _manifest_text, _weight_index_text
from brisk_native._header import LENGTH_BYTES, json_bytes, parse
from brisk_native._plain_files import fill, open_source
from brisk_native._types import Header, Manifest
from brisk_native._weight_index import WeightIndex

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


def parse_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of a safetensors file, checked completely against the file's size.

    No more than the header is read. Raises InvalidHeaderError naming file, tensor and reason, and
    OSError and ShortReadError as `read_file` does.
    """
    with open_source(path) as (fd, size):
        head = bytearray(min(size, LENGTH_BYTES))
        with memoryview(head) as view:
            fill(fd, view, 0, path)
        raw = bytearray(json_bytes(os.fspath(path), bytes(head), size))
        with memoryview(raw) as view:
            fill(fd, view, LENGTH_BYTES, path)
    return parse_header_bytes(head + raw, size, path)


def parse_header_bytes(
    data: Buffer, file_bytes: int, path: str | os.PathLike[str] = "<memory>"
) -> Header:
    """Return the header that `data`, the beginning of a file of `file_bytes`, holds.

    `path` names the file in errors. Raises InvalidHeaderError, also if `data` ends before the
    header does; BufferError if the bytes are not contiguous; TypeError if no file has that size.
    """
    _check_size(file_bytes)
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("underlying buffer is not C-contiguous")
        with view.cast("B") as octets:
            return parse(os.fspath(path), octets, file_bytes)


def parse_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return what a manifest (brisk.json) says of the files beside it, checked by itself.

    Raises InvalidCheckpointError naming file and reason, and OSError and ShortReadError as
    `read_file` does.
    """
    return _manifest_text.parse_text(os.fspath(path), _read(path, _manifest_text.check_bytes))


def parse_manifest_bytes(data: Buffer, path: str | os.PathLike[str] = "<memory>") -> Manifest:
    """Return what the text of a manifest says; `path` names the file in errors.

    Raises InvalidCheckpointError, and BufferError if the bytes are not contiguous.
    """
    return _manifest_text.parse_text(os.fspath(path), _contiguous(data))


def parse_index(path: str | os.PathLike[str]) -> WeightIndex:
    """Return what an index (model.safetensors.index.json) says, checked by itself.

    Raises InvalidCheckpointError naming file and reason, and OSError and ShortReadError as
    `read_file` does.
    """
    return _weight_index_text.parse_text(
        os.fspath(path), _read(path, _weight_index_text.check_bytes)
    )


def parse_index_bytes(data: Buffer, path: str | os.PathLike[str] = "<memory>") -> WeightIndex:
    """Return what the text of an index says; `path` names the file in errors.

    Raises InvalidCheckpointError, and BufferError if the bytes are not contiguous.
    """
    return _weight_index_text.parse_text(os.fspath(path), _contiguous(data))


def _read(path: str | os.PathLike[str], check_bytes: Callable[[str, int], None]) -> bytes:
    with open_source(path) as (fd, size):
        check_bytes(os.fspath(path), size)
        text = bytearray(size)
        with memoryview(text) as view:
            fill(fd, view, 0, path)
    return bytes(text)


def _contiguous(data: Buffer) -> bytes:
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("underlying buffer is not C-contiguous")
        return view.tobytes()


def _check_size(value: object) -> None:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(f"a file has 0 to {2**63 - 1} bytes, not {value!r}")
