"""Devices where the compiled loader was not built: there are none. Documents their interface."""

# ruff: noqa: ARG001, ARG002 - the arguments are the compiled loader's

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, final

from brisk_native._device_types import (
    HOST_BYTES,
    DeviceError,
    DeviceInfo,
    DeviceLoadResult,
    DevicePiece,
)

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer, CapsuleType

    from brisk_native._fallback import CancelToken
    from brisk_native._types import ReadSettings


def _refuse() -> NoReturn:
    raise DeviceError("import", 0, "", "devices need the compiled loader, which was not built")


def devices() -> tuple[DeviceInfo, ...]:
    """Return the CUDA devices of this machine; () if it has no driver or no device.

    The driver's library is opened at the first call: the one that the environment's
    BRISK_CUDA_DRIVER names, else libcuda.so.1. Uses no memory of a device. Raises DeviceError for
    a driver that is there and does not work.
    """
    return ()


def device_memory(ordinal: int) -> tuple[int, int]:
    """Return a device's free memory and all it has, in bytes, as its driver counts them now.

    Raises DeviceError, which says why if there is no such device or no driver.
    """
    _refuse()


@final
class DeviceBuffer:
    """Memory on a device with undefined contents, 256-byte aligned, in its primary context.

    Goes back with this object and the last tensor that uses it. `torch.from_dlpack` makes it a
    tensor of its bytes without a copy. Raises DeviceMemoryError and DeviceError.
    """

    def __init__(self, ordinal: int, size_bytes: int) -> None:
        _refuse()

    @property
    def ordinal(self) -> int:
        """The device's number."""
        _refuse()

    @property
    def size_bytes(self) -> int:
        """What was asked for; may be 0."""
        _refuse()

    @property
    def pointer(self) -> int:
        """The address on the device, for libraries that take one; 0 if the size is 0."""
        _refuse()

    def read(self, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Copy bytes back to the host, by default all from `offset` on.

        Waits for no work but its own. Raises IndexError beyond the end, DeviceError.
        """
        _refuse()

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        _refuse()

    def __dlpack_device__(self) -> tuple[int, int]:
        _refuse()


@final
class PinnedMemory:
    """Host memory that devices copy from directly, until `close` or the end of a `with` block.

    Keeps `memory` in place and holds it once per machine, whichever device is `ordinal`. Pinning
    takes a while, so what is used often, such as a pool, is pinned once. Raises DeviceError where
    the system does not let so much be pinned, or memory that is only to be read.
    """

    def __init__(self, memory: Buffer, ordinal: int = 0) -> None:
        _refuse()

    def close(self) -> None:
        """Give the pinning back. May be called twice."""
        _refuse()

    def __enter__(self) -> Self:
        _refuse()

    def __exit__(self, *error: object) -> None:
        _refuse()

    @property
    def size_bytes(self) -> int:
        """How much is pinned."""
        _refuse()


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
) -> tuple[list[DeviceBuffer], DeviceLoadResult]:
    """Read pieces of files; see `brisk_native.read_to_devices`, which chooses the settings."""
    _refuse()


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
) -> tuple[list[DeviceBuffer], DeviceLoadResult]:
    """Copy pieces of host memory to devices; return a buffer per allocation, and how they came.

    The sources are anything with bytes in one piece, and must not change meanwhile. What is
    pinned, or can be for the time of the call, the devices copy from directly; all else passes
    through a ring of at most `host_bytes`. All other arguments, and what is raised, are as in
    `brisk_native.read_to_devices`.
    """
    _refuse()
