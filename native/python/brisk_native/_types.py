"""What both implementations return and raise, so that callers need not know which one runs.

Exception
├── ShortReadError (an EOFError)   the file ended before its size at opening said
├── ChecksumError                  a chunk's bytes are not the expected ones
├── ReadCancelledError             a CancelToken was raised before the last chunk was done
├── InvalidHeaderError (a ValueError)   a safetensors header that is not to be believed
│   └── FileChangedError       the file is not the one that its header was read from
├── InvalidCheckpointError (a ValueError)   a folder's index or manifest is wrong, or no weights
├── InvalidAdapterError (a ValueError)   a folder holds no LoRA adapter that can be used
├── InvalidModelError (a ValueError)   config and weights do not make up a model
└── UnsupportedTypeError (a TypeError)  a tensor of a type that torch does not have

The kernel's own errors are OSError with errno and file name, memory that cannot be had is
MemoryError (PoolFullError if a pool has too little of it), and misuse is ValueError or TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

CHUNK_BYTES: Final = 4 * 1024 * 1024
"""How files are cut: the unit of reading, verifying and cancelling, in bytes."""

THREADS_MAX: Final = 64
"""The most reading threads that one job may ask for."""


HEADER_BYTES_MAX: Final = 8 * 1024 * 1024
"""The most bytes of JSON that the header of a safetensors file may have."""

TENSORS_MAX: Final = 65_536
"""The most tensors that one safetensors file may hold."""

NAME_BYTES_MAX: Final = 512
"""The most bytes that a tensor's name may have in UTF-8; it has at least one."""

RANK_MAX: Final = 16
"""The most dimensions that a tensor may have."""

METADATA_MAX: Final = 10_000
"""The most entries that a header's metadata may have."""

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BF16": 16, "F16": 16, "F32": 32, "F64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I8": 8, "I16": 16, "I32": 32, "I64": 64,
    "U8": 8, "U16": 16, "U32": 32, "U64": 64,
    "BOOL": 8, "C64": 64,
}  # fmt: skip
"""Bits of one element by type, as safetensors 0.8 spells them; those of 4 and 6 are packed."""

PADDING_PREFIX: Final = "__brisk_padding__."
"""How the names of the tensors begin that fill the gaps of the stored form; no model has them."""

STORED_ALIGNMENT: Final = 256
"""Tensors of the stored form begin at multiples of this, in bytes; a gap has fewer."""

FORM_KEY: Final = "brisk_form"
"""The key in a header's metadata that says that the file is of the stored form."""

FORM: Final = "1"
"""Its value."""

MANIFEST_BYTES_MAX: Final = 64 * 1024 * 1024
"""The most bytes that a manifest may have."""

MANIFEST_FILES_MAX: Final = 2048
"""The most files that a manifest may list."""

FILE_NAME_BYTES_MAX: Final = 255
"""The most bytes that the name of a file may have in a manifest or an index."""

INDEX_BYTES_MAX: Final = 16 * 1024 * 1024
"""The most bytes that the index of shards may have."""

INDEX_TENSORS_MAX: Final = 196_608
"""The most tensors that it may name."""

INDEX_FILES_MAX: Final = 1024
"""The most files that it may name."""

_SHOWN_CHARS_MAX: Final = 80


def shown(text: str) -> str:
    """Return `text` of a stranger for a message: quoted, printable, at most about 80 characters."""
    return repr(text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 3] + "...")


class ShortReadError(EOFError):
    """The file ended before its size at opening said: truncated meanwhile. Names the file."""


class ChecksumError(Exception):
    """A chunk is damaged, or missing, or there is one chunk more than there are checksums."""

    def __init__(self, path: str, chunk: int, offset: int, detail: str) -> None:
        super().__init__(path, chunk, offset, detail)
        self.path = path
        """The file, as it was named in the call."""
        self.chunk = chunk
        """Number of the chunk, from 0."""
        self.offset = offset
        """Where the chunk begins in the file, in bytes."""
        self.detail = detail
        """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.path}: chunk {self.chunk} at offset {self.offset}: {self.detail}"


class ReadCancelledError(Exception):
    """The job stopped because its CancelToken was raised; nothing it made is left."""

    def __init__(self, bytes_done: int) -> None:
        super().__init__(bytes_done)
        self.bytes_done = bytes_done
        """Bytes in the chunks that were done before."""

    def __str__(self) -> str:
        return f"cancelled after {self.bytes_done} bytes"


class PoolFullError(MemoryError):
    """A pool has no free piece that is large enough; nothing was read."""

    def __init__(self, needed_bytes: int, free_bytes: int, largest_bytes: int) -> None:
        super().__init__(needed_bytes, free_bytes, largest_bytes)
        self.needed_bytes = needed_bytes
        """What was asked for, in one piece."""
        self.free_bytes = free_bytes
        """All that is free."""
        self.largest_bytes = largest_bytes
        """The largest free piece."""

    def __str__(self) -> str:
        return (
            f"the pool has no {self.needed_bytes} bytes in one piece: "
            f"{self.free_bytes} are free, the largest piece has {self.largest_bytes}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How files are read.

    engine      "uring": io_uring; "pread": threads that read one thing at a time
    threads     1 to 64
    depth       reads in flight per thread, 1 to 64; counts for "uring" only
    read_bytes  of one read: a multiple of CHUNK_BYTES (4 MiB), up to four of them

    Limits are checked by the call that takes them, with ValueError.
    """

    engine: Literal["pread", "uring"] = "uring"
    """Threads that read one thing at a time, or io_uring, where `depth` reads are in flight per
    thread. Where the kernel refuses io_uring, up to 16 threads read; ReadResult.engine tells."""
    threads: int = 2
    """1 to 64."""
    depth: int = 16
    """1 to 64; counts for io_uring only."""
    read_bytes: int = CHUNK_BYTES
    """Size of one read: a multiple of CHUNK_BYTES up to four of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What this process has read since it began, and how; all in bytes."""

    direct_bytes: int
    """Read past the page cache."""
    buffered_bytes: int
    """Read through the page cache, because a file system refused direct reads."""
    uring_bytes: int
    """Of both, those that io_uring read."""
    verified_bytes: int
    """Of both, those whose checksum was compared."""
    huge_page_bytes: int
    """Whole files that were read into memory of 2 MiB pages."""
    small_page_bytes: int
    """Whole files that were read into memory of 4 KiB pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """How whole files came into memory."""

    bytes_read: int
    """Size of the files at the time of opening, in bytes."""
    direct: bool
    """True if O_DIRECT was used for all, False after a fallback to reads through the page cache."""
    huge_pages: bool
    """True if at least half of the memory came in huge pages."""
    seconds: float
    """Wall time of the call, from opening to the last verified byte."""
    engine: Literal["pread", "uring"]
    """What really read: "pread" also where the kernel refused io_uring."""
    direct_bytes: int
    """Size of the files that were read past the page cache."""
    buffered_bytes: int
    """Size of those that were read through it."""


class _UnbelievedError(ValueError):
    """What a file says of its tensors is not to be believed, or does not fit."""

    def __init__(self, path: str, tensor: str | None, reason: str) -> None:
        super().__init__(path, tensor, reason)
        self.path = path
        """The file, as it was named in the call."""
        self.tensor = tensor
        """The tensor at fault; None if the fault lies in none."""
        self.reason = reason
        """What is wrong."""

    def __str__(self) -> str:
        if self.tensor is None:
            return f"{self.path}: {self.reason}"
        return f"{self.path}: tensor {shown(self.tensor)}: {self.reason}"


class InvalidHeaderError(_UnbelievedError):
    """A file's safetensors header is damaged, lies, or is beyond the limits of this module."""


class FileChangedError(InvalidHeaderError):
    """A weight file was replaced or written to between two looks at it."""


class InvalidCheckpointError(ValueError):
    """A folder's weights, index or manifest do not make up a checkpoint."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        """The folder or file at fault."""
        self.reason = reason
        """What is wrong."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class InvalidAdapterError(_UnbelievedError):
    """A folder's config and weights do not make up a LoRA adapter."""


class InvalidModelError(ValueError):
    """A folder's config and weights do not make up a model that can be run."""

    def __init__(
        self,
        file: str,
        tensor: str | None,
        reason: str,
        *,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(file, tensor, reason)
        self.file = file
        """Name of the file at fault, or of those that something is missing from."""
        self.tensor = tensor
        """The tensor at fault; None if the fault lies in none."""
        self.reason = reason
        """What is wrong, in words."""
        self.expected = expected
        """Shape or type that the model needs, where that is the difference."""
        self.found = found
        """Shape or type that is stored; None if nothing is."""

    def __str__(self) -> str:
        if self.tensor is None:
            return f"{self.file}: {self.reason}"
        return f"{self.file}: tensor {shown(self.tensor)}: {self.reason}"


class UnsupportedTypeError(TypeError):
    """torch has no type for this tensor's elements; its bytes can be had all the same."""

    def __init__(self, tensor: str, dtype: str) -> None:
        super().__init__(tensor, dtype)
        self.tensor = tensor
        """Name of the tensor."""
        self.dtype = dtype
        """Its type, as safetensors spells it."""

    def __str__(self) -> str:
        return f"tensor {self.tensor!r}: torch has no type for {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """As safetensors spells it: a key of DTYPE_BITS."""
    shape: tuple[int, ...]
    """Elements along each dimension; () for a single one."""
    offset: int
    """Where its bytes begin in the file, in bytes."""
    size_bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that was checked completely: tensors and padding cover the file's data exactly."""

    data_offset: int
    """Where the tensors' bytes begin in the file, in bytes."""
    file_bytes: int
    """Size of the file that the header was checked against."""
    tensors: tuple[TensorInfo, ...]
    """The model's tensors in the order of their bytes; those without bytes in the order of the
    header. What fills the gaps of the stored form is not among them."""
    metadata: Mapping[str, str]
    """What the writer noted, in the order of the header."""
    padding: tuple[TensorInfo, ...] = ()
    """What fills the gaps of the stored form; empty for files of any other form."""

    @property
    def is_stored_form(self) -> bool:
        """True if the file says that it is of the stored form."""
        return self.metadata.get(FORM_KEY) == FORM


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of a manifest."""

    name: str
    """Of a file in the manifest's own folder."""
    size_bytes: int
    crc32c: tuple[int, ...]
    """The checksum of each chunk of CHUNK_BYTES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest that was checked completely by itself; whether the files are so, `verify` says."""

    version: int
    """1 or 2: what was written before there was a stored form has 1."""
    form: int
    """0: the weights are as they came; 1: they are in the stored form."""
    files: tuple[ManifestFile, ...]
    """In the order of the manifest; each name is there once."""
