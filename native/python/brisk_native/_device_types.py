"""What calls about devices take, return and raise, whichever implementation runs.

Exception
└── DeviceError                            there is no driver, or one of its calls failed
    └── DeviceMemoryError (a MemoryError)  the device has too little memory free
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

HOST_BYTES: Final = 128 * 1024 * 1024
"""Of the ring of host memory that bytes pass through, unless a call says otherwise."""


class DeviceError(Exception):
    """A call of the CUDA driver failed, or the driver cannot be used at all."""

    def __init__(self, call: str, code: int, name: str, text: str) -> None:
        super().__init__(call, code, name, text)
        self.call = call
        """What failed, such as "cuMemcpyHtoDAsync_v2"; "dlopen" if there is no driver library."""
        self.code = code
        """The driver's number of the error; 0 if there was no driver to ask."""
        self.name = name
        """The driver's name of the error, such as "CUDA_ERROR_ILLEGAL_ADDRESS"; "" without one."""
        self.text = text
        """The driver's words, or the dynamic linker's."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.call, self.name, self.text) if part)


class DeviceMemoryError(DeviceError, MemoryError):
    """A device has too little memory free for an allocation."""

    def __init__(  # noqa: PLR0917 - made by the compiled loader, in this order
        self,
        call: str,
        code: int,
        name: str,
        text: str,
        ordinal: int,
        wanted_bytes: int,
        free_bytes: int,
    ) -> None:
        super().__init__(call, code, name, text)
        self.args = (call, code, name, text, ordinal, wanted_bytes, free_bytes)
        self.ordinal = ordinal
        """The device's number, from 0."""
        self.wanted_bytes = wanted_bytes
        """What was asked for."""
        self.free_bytes = free_bytes
        """What the driver counted as free after the failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A CUDA device of this machine."""

    ordinal: int
    """Its number, from 0, as in "cuda:0"."""
    name: str
    """The driver's name of it."""
    total_bytes: int
    """All of its memory, used or free."""


class DevicePiece(NamedTuple):
    """A run of bytes of a source, and where it goes on a device."""

    source: int
    """Index of the file or buffer."""
    offset: int
    """In the source, in bytes."""
    size_bytes: int
    """May be 0."""
    allocation: int
    """Index of the allocation. Pieces must not overlap there."""
    allocation_offset: int
    """In the allocation, in bytes; tensors want multiples of their alignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoadResult:
    """How bytes came to devices."""

    bytes_read: int
    """Read from files: the chunks that pieces touch. 0 if they came from host memory."""
    direct_bytes: int
    """Of `bytes_read`, past the page cache."""
    bytes_copied: int
    """To devices: the pieces."""
    host_bytes: int
    """Size of the ring they passed through; 0 if they needed none."""
    pinned: bool
    """True if the devices copied from pinned memory only. Else it took longer."""
    seconds: float
    """Wall time of the call."""
