"""Weights as torch tensors: all at once, or one by one.

Tensors lie where they were read, in one buffer per file, and keep it alive; only one whose bytes
are not aligned for its type is copied. torch is imported by the first call, not by the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from brisk_native._implementation import CancelToken, parse_header_bytes, read_file
from brisk_native._manifest import MANIFEST, read_checksums
from brisk_native._types import (
    DTYPE_BITS,
    InvalidCheckpointError,
    InvalidHeaderError,
    ShortReadError,
    TensorInfo,
    UnsupportedTypeError,
)
from brisk_native._weights import WeightFile, Weights, read_weights, stamp_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

# The names of torch's types; F6_E2M3 and F6_E3M2 have none.
_TORCH_TYPES: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",  # two elements a byte
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
}


def load_tensors(
    source: str | os.PathLike[str],
    *,
    verify: bool = True,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, torch.Tensor]:
    """Return all tensors of `source`, a folder or one safetensors file, in the order of the files.

    They are on the CPU, writable, with shapes and types as the files have them; F4 comes as
    float4_e2m1fn_x2 with half as many elements along the last dimension. Tensors of one file
    share its memory, so it goes back to the system with the last of them.

    With `verify` each chunk is checked against the folder's brisk.json, where there is one, on
    the thread that read it. `threads` (1 to 64) read each file. `progress` gets the bytes done
    and those there are, on the calling thread, about every 20 ms; if it raises, so does this
    call. Whatever is raised, the memory of this call is given back.

    Raises InvalidHeaderError and InvalidCheckpointError before anything is read; ChecksumError
    naming file, chunk and offset; ShortReadError and InvalidHeaderError if a file changes
    meanwhile; UnsupportedTypeError; ReadCancelledError; OSError; MemoryError.
    """
    weights = read_weights(source)
    for file in weights.files:
        for tensor in file.header.tensors:
            _torch_type(tensor)
    checksums = _checksums(source, weights) if verify else {}
    total = weights.file_bytes
    done = 0
    tensors: dict[str, torch.Tensor] = {}
    for file in weights.files:
        before = done

        def report(now: int, before: int = before) -> None:
            if progress is not None:
                progress(before + now, total)

        buffer, _ = read_file(
            file.path,
            threads=threads,
            expected_crc32c=checksums.get(file.name),
            progress=report,
            cancel=cancel,
        )
        _check_unchanged(file, buffer)
        for tensor in file.header.tensors:
            tensors[tensor.name] = _tensor_in(buffer, tensor, tensor.offset)
        done += file.header.file_bytes
    return tensors


def open_tensors(source: str | os.PathLike[str]) -> LazyTensors:
    """Return the tensors of `source`, a folder or one safetensors file, to be read one by one.

    Reads headers and index. Raises InvalidHeaderError, InvalidCheckpointError and OSError.
    """
    return LazyTensors(read_weights(source))


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint, in the order of its files; each is read when it is asked for.

    A tensor is fresh memory of its own each time. Holds no file open, may be used from several
    threads. Getting one raises KeyError, InvalidHeaderError if its file is not the one that was
    opened, UnsupportedTypeError, ShortReadError, OSError and MemoryError.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        """What the files contain."""
        self._places = weights.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        _torch_type(self.info(name))
        return _tensor_in(self.read_bytes(name), self.info(name), 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._places

    def info(self, name: str) -> TensorInfo:
        """Return type, shape and place of a tensor. Raises KeyError."""
        return self._places[name][1]

    def read_bytes(self, name: str) -> bytearray:
        """Return a tensor's bytes as the file has them: of any type, known to torch or not."""
        file, tensor = self._places[name]
        with file.path.open("rb", buffering=0) as opened:
            if stamp_of(os.fstat(opened.fileno())) != file.stamp:
                raise InvalidHeaderError(os.fspath(file.path), None, "changed since it was opened")
            target = bytearray(tensor.size_bytes)
            _fill(opened.fileno(), memoryview(target), tensor.offset, file.path)
        return target


def _checksums(source: str | os.PathLike[str], weights: Weights) -> Mapping[str, tuple[int, ...]]:
    """Return the checksums of the weight files; empty if there is nothing to verify by."""
    folder = Path(os.path.realpath(source))
    folder = folder if folder.is_dir() else folder.parent
    checksums = read_checksums(folder)
    if checksums is None:
        return {}
    for file in weights.files:
        if file.name not in checksums:
            reason = f"does not list {file.name}"
            raise InvalidCheckpointError(os.fspath(folder / MANIFEST), reason)
    return checksums


def _check_unchanged(file: WeightFile, buffer: Buffer) -> None:
    """Refuse a file that was replaced between the reading of its header and of its bytes."""
    with memoryview(buffer) as view:
        found = parse_header_bytes(view, view.nbytes, file.path)
    if found != file.header:
        raise InvalidHeaderError(os.fspath(file.path), None, "changed while it was read")


def _fill(fd: int, target: memoryview, offset: int, path: Path) -> None:
    wanted, done = len(target), 0
    while done < wanted:
        got = os.preadv(fd, [target[done:]], offset + done)
        if got == 0:
            raise ShortReadError(
                f"{path}: wanted {wanted} bytes at offset {offset}, the file ends after {done}"
            )
        done += got


def _torch_type(tensor: TensorInfo) -> torch.dtype:
    import torch  # noqa: PLC0415 - slow, and only loading needs it

    found = getattr(torch, _TORCH_TYPES.get(tensor.dtype, ""), None)
    packs_evenly = tensor.dtype != "F4" or (bool(tensor.shape) and tensor.shape[-1] % 2 == 0)
    if not isinstance(found, torch.dtype) or not packs_evenly:
        raise UnsupportedTypeError(tensor.name, tensor.dtype)
    return found


def _tensor_in(buffer: Buffer, tensor: TensorInfo, offset: int) -> torch.Tensor:
    """Return the tensor whose bytes begin at `offset` of `buffer`, which it keeps alive."""
    import torch  # noqa: PLC0415

    dtype, shape = _torch_type(tensor), tensor.shape
    if tensor.dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    if tensor.size_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    octets = torch.frombuffer(buffer, dtype=torch.uint8, count=tensor.size_bytes, offset=offset)
    if octets.data_ptr() % max(1, DTYPE_BITS[tensor.dtype] // 8):
        octets = octets.clone()
    return octets.view(dtype).view(shape)
