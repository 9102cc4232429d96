"""Weights as torch tensors: all at once, or one by one.

Tensors lie where they were read, in one buffer per file, and keep it alive; only one whose bytes
are not aligned for its type is copied. torch is imported by the first call, not by the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brisk_native._implementation import CancelToken
from brisk_native._reading import checksums_of, read_tensors
from brisk_native._types import FileChangedError, ShortReadError, TensorInfo
from brisk_native._views import tensor_in, torch_type
from brisk_native._weights import Weights, folder_of, read_weights, stamp_of

if TYPE_CHECKING:
    import torch


def load_tensors(
    source: str | os.PathLike[str],
    *,
    verify: bool = True,
    threads: int = 4,
    on_layer: Callable[[str, dict[str, torch.Tensor]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, torch.Tensor]:
    """Return all tensors of `source`, a folder or one safetensors file, in the order of the files.

    They are on the CPU, writable, with shapes and types as the files have them; F4 comes as
    float4_e2m1fn_x2 with half as many elements along the last dimension. Tensors of one file
    share its memory, so it goes back to the system with the last of them.

    `on_layer` gets the tensors of one group after another, in the order in which a model uses
    them and as soon as they are there: `embed`, `layers.0` and so on, `head`. It is called on the
    calling thread; if it raises, so does this call.

    With `verify` each chunk is checked against the folder's brisk.json, where there is one, on
    the thread that read it. `threads` (1 to 64) read each file. `progress` gets the bytes done
    and those there are, on the calling thread, about every 20 ms; if it raises, so does this
    call. Whatever is raised, the memory of this call is given back.

    Raises InvalidHeaderError and InvalidCheckpointError before anything is read; ChecksumError
    naming file, chunk and offset; ShortReadError and FileChangedError if a file changes
    meanwhile; UnsupportedTypeError; ReadCancelledError; OSError; MemoryError.
    """
    weights = read_weights(source)
    checksums = checksums_of(folder_of(source), weights) if verify else {}
    return read_tensors(
        weights,
        checksums,
        threads=threads,
        on_group=on_layer,
        progress=progress,
        cancel=cancel,
    ).tensors


def open_tensors(source: str | os.PathLike[str]) -> LazyTensors:
    """Return the tensors of `source`, a folder or one safetensors file, to be read one by one.

    Reads headers and index. Raises InvalidHeaderError, InvalidCheckpointError and OSError.
    """
    return LazyTensors(read_weights(source))


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint, in the order of its files; each is read when it is asked for.

    A tensor is fresh memory of its own each time. Holds no file open, may be used from several
    threads. Getting one raises KeyError, FileChangedError if its file is not the one that was
    opened, UnsupportedTypeError, ShortReadError, OSError and MemoryError.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        """What the files contain."""
        self._places = weights.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        torch_type(self.info(name))
        return tensor_in(self.read_bytes(name), self.info(name), 0)

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
                raise FileChangedError(os.fspath(file.path), None, "changed since it was opened")
            target = bytearray(tensor.size_bytes)
            _fill(opened.fileno(), memoryview(target), tensor.offset, file.path)
        return target


def _fill(fd: int, target: memoryview, offset: int, path: Path) -> None:
    wanted, done = len(target), 0
    while done < wanted:
        got = os.preadv(fd, [target[done:]], offset + done)
        if got == 0:
            raise ShortReadError(
                f"{path}: wanted {wanted} bytes at offset {offset}, the file ends after {done}"
            )
        done += got
