"""Types of the compiled loader. Meanings are documented in brisk_native._fallback."""

import os
from collections.abc import Callable, Sequence
from typing import Final, Self, final

from typing_extensions import Buffer, CapsuleType

from brisk_native._device_types import HOST_BYTES, DeviceInfo, DeviceLoadResult, DevicePiece
from brisk_native._types import Counters, Header, Manifest, ReadResult, ReadSettings

CRC32C_IN_HARDWARE: Final[bool]

@final
class CancelToken:
    def __init__(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

@final
class FileBuffer:
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def pool_offset(self) -> int | None: ...

@final
class WeightIndex:
    def __len__(self) -> int: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    def misplaced(self, file_of: dict[str, str]) -> tuple[str, str] | None: ...

@final
class Pool:
    def __init__(
        self,
        size_bytes: int,
        *,
        kind: str = "auto",
        folder: str | os.PathLike[str] | None = None,
        name: str = "",
        populate: bool = True,
    ) -> None: ...
    @staticmethod
    def attach(path: str | os.PathLike[str]) -> Pool: ...
    @staticmethod
    def adopt(path: str | os.PathLike[str]) -> Pool: ...
    def view(self, offset: int, size_bytes: int) -> FileBuffer: ...
    def wait_populated(self, timeout: float | None = None) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def populated(self) -> int: ...
    @property
    def huge_pages(self) -> bool: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def path(self) -> str | None: ...

def read_file(
    path: str | os.PathLike[str],
    *,
    threads: int = 4,
    expected_crc32c: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[FileBuffer, ReadResult]: ...
def read_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    settings: ReadSettings,
    order: Sequence[tuple[int, int]] | None = None,
    expected_crc32c: Sequence[Sequence[int] | None] | None = None,
    pool: Pool | None = None,
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    on_buffers: Callable[[list[FileBuffer]], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[FileBuffer], ReadResult]: ...
def trial_read(
    path: str | os.PathLike[str],
    settings: ReadSettings,
    *,
    first: int,
    count: int,
    seconds_max: float,
) -> tuple[int, float, str, bool]: ...
def counters() -> Counters: ...
def checksum_file(
    path: str | os.PathLike[str],
    *,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[int]: ...
def copy_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[int]: ...
def gather_file(
    dst: str | os.PathLike[str],
    *,
    prefix: Buffer,
    pieces: Sequence[tuple[int, int, int, int]],
    sources: Sequence[tuple[str | os.PathLike[str], Sequence[int] | None]],
    size_bytes: int,
    threads: int = 4,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[int], bool]: ...
def crc32c(data: Buffer, value: int = 0) -> int: ...
def parse_header(path: str | os.PathLike[str]) -> Header: ...
def parse_header_bytes(
    data: Buffer, file_bytes: int, path: str | os.PathLike[str] = "<memory>"
) -> Header: ...
def parse_index(path: str | os.PathLike[str]) -> WeightIndex: ...
def parse_index_bytes(data: Buffer, path: str | os.PathLike[str] = "<memory>") -> WeightIndex: ...
def parse_manifest(path: str | os.PathLike[str]) -> Manifest: ...
def parse_manifest_bytes(data: Buffer, path: str | os.PathLike[str] = "<memory>") -> Manifest: ...
def devices() -> tuple[DeviceInfo, ...]: ...
def device_memory(ordinal: int) -> tuple[int, int]: ...

@final
class DeviceBuffer:
    def __init__(self, ordinal: int, size_bytes: int) -> None: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def pointer(self) -> int: ...
    def read(self, offset: int = 0, size_bytes: int | None = None) -> bytes: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class PinnedMemory:
    def __init__(self, memory: Buffer, ordinal: int = 0) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    @property
    def size_bytes(self) -> int: ...

def read_to_devices(
    paths: Sequence[str | os.PathLike[str]],
    pieces: Sequence[DevicePiece | tuple[int, int, int, int, int]],
    allocations: Sequence[DeviceBuffer | tuple[int, int]],
    *,
    settings: ReadSettings,
    host_bytes: int = HOST_BYTES,
    streams: int = 2,
    expected_crc32c: Sequence[Sequence[int] | None] | None = None,
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[DeviceBuffer], DeviceLoadResult]: ...
def copy_to_devices(
    sources: Sequence[Buffer],
    pieces: Sequence[DevicePiece | tuple[int, int, int, int, int]],
    allocations: Sequence[DeviceBuffer | tuple[int, int]],
    *,
    host_bytes: int = HOST_BYTES,
    streams: int = 2,
    progress: Callable[[int], None] | None = None,
    milestones: Sequence[int] = (),
    on_milestone: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[DeviceBuffer], DeviceLoadResult]: ...
def map_pieces(
    path: str | os.PathLike[str], pieces: Sequence[tuple[int, int]], size_bytes: int
) -> FileBuffer: ...
def pieces_in_use(pool: Pool, pieces: Sequence[tuple[int, int]]) -> bool: ...
def read_pieces(
    path: str | os.PathLike[str],
    pool: Pool,
    pieces: Sequence[tuple[int, int]],
    *,
    first: int,
    count: int,
    settings: ReadSettings,
    expected_crc32c: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> int: ...
def checksum_pieces(
    pool: Pool,
    pieces: Sequence[tuple[int, int]],
    size_bytes: int,
    *,
    cancel: CancelToken | None = None,
) -> list[int]: ...
