"""Weights as torch tensors: all at once, or one by one.

Tensors lie where they were read, in one buffer per file, and keep it alive; only one whose bytes
are not aligned for its type is copied. torch is imported by the first call, not by the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brisk_native._device_map import parse_device_map
from brisk_native._device_reading import read_tensors_to_devices
from brisk_native._device_types import HOST_BYTES
from brisk_native._implementation import CancelToken, Pool, crc32c, parse_header_bytes
from brisk_native._reading import ReadOptions, checksums_of, read_tensors
from brisk_native._types import (
    CHUNK_BYTES,
    FileChangedError,
    ReadSettings,
    ShortReadError,
    TensorInfo,
)
from brisk_native._verify import compare_chunk, compare_count
from brisk_native._views import octets_of, tensor_in, torch_type
from brisk_native._weights import WeightFile, Weights, folder_of, read_weights, stamp_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer


def load_tensors(
    source: str | os.PathLike[str],
    *,
    device: str | int | torch.device = "cpu",
    pool: Pool | None = None,
    verify: bool = True,
    settings: ReadSettings | None = None,
    host_bytes: int = HOST_BYTES,
    on_layer: Callable[[str, dict[str, torch.Tensor]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, torch.Tensor]:
    """Return all tensors of `source`, a folder or one safetensors file, in the order of the files.

    They are writable, with shapes and types as the files have them; F4 comes as
    float4_e2m1fn_x2 with half as many elements along the last dimension. On the CPU they lie in
    `pool`, or else in fresh memory; those of one file share it, so it goes back with the last of
    them. `device` may name a CUDA device ("cuda", "cuda:1", 1): they then share one allocation
    there, and the bytes pass through a ring of `host_bytes` (from 8 MiB) of host memory.

    `on_layer` gets the tensors of one group after another, in the order in which a model uses
    them and as soon as they are there: `embed`, `layers.0` and so on, `head`. `progress` gets the
    bytes done and those there are, about every 20 ms. Both are called on the calling thread; if
    one raises, so does this call.

    With `verify` each chunk is checked against the folder's brisk.json, where there is one, on
    the thread that read it. `settings` say how to read; None: as was found best. Raising `cancel`
    ends the call within one read. Whatever is raised, the memory of this call is given back.

    Raises InvalidHeaderError and InvalidCheckpointError before anything is read; PoolFullError;
    ChecksumError naming file, chunk and offset; ShortReadError and FileChangedError if a file
    changes meanwhile; UnsupportedTypeError; ReadCancelledError; DeviceError and DeviceMemoryError;
    ValueError for another device, or a pool with one; OSError; MemoryError.
    """
    target = parse_device_map(device)
    weights = read_weights(source)
    checksums = checksums_of(folder_of(source), weights) if verify else {}
    options = ReadOptions(
        pool=pool, settings=settings, progress=progress, cancel=cancel, host_bytes=host_bytes
    )
    if target.is_cpu:
        return read_tensors(weights, checksums, options, on_layer).tensors
    (ordinal,) = target.used
    return read_tensors_to_devices(weights, checksums, options, lambda _: ordinal, on_layer).tensors


def tensors_in(
    buffer: Buffer, path: str | os.PathLike[str] = "<memory>"
) -> dict[str, torch.Tensor]:
    """Return the tensors of the safetensors file whose bytes `buffer` holds, in their order.

    They lie in the buffer and keep it alive; only misaligned ones are copied. This is how a
    process gets at once what another has read into a pool: `Pool.attach(path).view(offset, size)`.
    Tensors in memory that must not be written to must not be written to: torch does not know.

    Takes milliseconds, whatever the size. Raises InvalidHeaderError, naming `path`, and
    UnsupportedTypeError.
    """
    with memoryview(buffer) as view:
        header = parse_header_bytes(view, view.nbytes, path)
    octets = octets_of(buffer)
    return {tensor.name: tensor_in(octets, tensor, tensor.offset) for tensor in header.tensors}


def open_tensors(source: str | os.PathLike[str], *, verify: bool = True) -> LazyTensors:
    """Return the tensors of `source`, a folder or one safetensors file, to be read one by one.

    Reads headers and index. With `verify` the chunks that hold a tensor are checked against the
    folder's brisk.json, where there is one, when they are first needed.

    Raises InvalidHeaderError, InvalidCheckpointError and OSError.
    """
    weights = read_weights(source)
    return LazyTensors(weights, checksums_of(folder_of(source), weights) if verify else {})


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint, in the order of its files; each is read when it is asked for.

    A tensor is fresh memory of its own each time. Holds no file open, may be used from several
    threads, and in a `with` block, which does nothing. Getting one raises KeyError, ChecksumError
    naming file, chunk and offset, FileChangedError if its file is not the one that was opened,
    UnsupportedTypeError, ShortReadError, OSError and MemoryError.
    """

    def __init__(self, weights: Weights, checksums: Mapping[str, Sequence[int]]) -> None:
        """`checksums` has those of each chunk, by file; files that it lacks are not verified."""
        self.weights = weights
        """What the files contain."""
        self._places = weights.tensors
        self._checksums = checksums
        self._sound: set[tuple[str, int]] = set()  # chunks that were verified

    def __enter__(self) -> LazyTensors:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def __getitem__(self, name: str) -> torch.Tensor:
        torch_type(self.info(name))
        return tensor_in(octets_of(self.read_bytes(name)), self.info(name), 0)

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
            self._check_stamp(file, opened.fileno())
            self._verify(file, tensor, opened.fileno())
            target = bytearray(tensor.size_bytes)
            _fill(opened.fileno(), memoryview(target), tensor.offset, file.path)
            self._check_stamp(file, opened.fileno())
        return target

    def _check_stamp(self, file: WeightFile, fd: int) -> None:
        if stamp_of(os.fstat(fd)) != file.stamp:
            raise FileChangedError(os.fspath(file.path), None, "changed since it was opened")

    def _verify(self, file: WeightFile, tensor: TensorInfo, fd: int) -> None:
        """Check the chunks that hold the tensor, each once: its stamp vouches for it from then."""
        expected = self._checksums.get(file.name)
        if expected is None or not tensor.size_bytes:
            return
        compare_count(file.path, -(-file.header.file_bytes // CHUNK_BYTES), expected)
        first, last = tensor.offset, tensor.offset + tensor.size_bytes - 1
        for chunk in range(first // CHUNK_BYTES, last // CHUNK_BYTES + 1):
            if (file.name, chunk) in self._sound:
                continue
            begin = chunk * CHUNK_BYTES
            block = bytearray(min(CHUNK_BYTES, file.header.file_bytes - begin))
            _fill(fd, memoryview(block), begin, file.path)
            compare_chunk(file.path, chunk, crc32c(block), expected)
            self._sound.add((file.name, chunk))


def _fill(fd: int, target: memoryview, offset: int, path: Path) -> None:
    wanted, done = len(target), 0
    while done < wanted:
        got = os.preadv(fd, [target[done:]], offset + done)
        if got == 0:
            raise ShortReadError(
                f"{path}: wanted {wanted} bytes at offset {offset}, the file ends after {done}"
            )
        done += got
