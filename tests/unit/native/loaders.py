"""The implementations of brisk_native under one type, so that each test runs on both."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from brisk_native import Counters, Header, Manifest, ReadResult

if TYPE_CHECKING:
    from typing_extensions import Buffer

MODULES = {"native": "brisk_native._native", "python": "brisk_native._fallback"}


class Token(Protocol):
    """What any CancelToken does."""

    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...


class Index(Protocol):
    """What any WeightIndex does."""

    def __len__(self) -> int: ...
    def misplaced(self, file_of: dict[str, str]) -> tuple[str, str] | None: ...
    @property
    def files(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One implementation. The calls are checked against the interface by test_interface.py."""

    name: str
    new_token: Callable[[], Token]
    read_file: Callable[..., tuple[Buffer, ReadResult]]
    read_files: Callable[..., tuple[list[Buffer], ReadResult]]
    counters: Callable[[], Counters]
    checksum_file: Callable[..., list[int]]
    copy_file: Callable[..., list[int]]
    gather_file: Callable[..., tuple[list[int], bool]]
    crc32c: Callable[..., int]
    parse_header: Callable[..., Header]
    parse_header_bytes: Callable[..., Header]
    parse_manifest: Callable[..., Manifest]
    parse_manifest_bytes: Callable[..., Manifest]
    parse_index: Callable[..., Index]
    parse_index_bytes: Callable[..., Index]


def is_built() -> bool:
    """Return whether the compiled implementation is installed."""
    return importlib.util.find_spec(MODULES["native"]) is not None


def find(name: str) -> Loader:
    """Return the implementation `name`. Raises ModuleNotFoundError if it was not built."""
    module = importlib.import_module(MODULES[name])
    return Loader(
        name=name,
        new_token=module.CancelToken,
        read_file=module.read_file,
        read_files=module.read_files,
        counters=module.counters,
        checksum_file=module.checksum_file,
        copy_file=module.copy_file,
        gather_file=module.gather_file,
        crc32c=module.crc32c,
        parse_header=module.parse_header,
        parse_header_bytes=module.parse_header_bytes,
        parse_manifest=module.parse_manifest,
        parse_manifest_bytes=module.parse_manifest_bytes,
        parse_index=module.parse_index,
        parse_index_bytes=module.parse_index_bytes,
    )
