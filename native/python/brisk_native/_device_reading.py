"""Read the weight files of a checkpoint to CUDA devices, and hand out its tensors group by group.

As `_reading` does, but that the bytes pass through a small ring of host memory, so that a model may
be larger than that. Each device gets one allocation, in which tensors begin at multiples of
256 bytes, in the order in which they are needed: none is misaligned, whatever the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from brisk_native._device_types import DevicePiece
from brisk_native._devices import read_to_devices
from brisk_native._implementation import DeviceBuffer
from brisk_native._order import execution_order
from brisk_native._reading import (
    LoadReport,
    OnGroup,
    ReadOptions,
    ReadWeights,
    Tensors,
    memory_given_back,
)
from brisk_native._types import FileChangedError
from brisk_native._views import tensor_in, torch_type
from brisk_native._weights import Weights, stamp_of

if TYPE_CHECKING:
    import torch

ALIGNMENT: Final = 256


def torch_device(ordinal: int) -> torch.device:
    """Return what torch calls a CUDA device. Raises DeviceError."""
    return _octets(DeviceBuffer(ordinal, ALIGNMENT)).device


def read_tensors_to_devices(
    weights: Weights,
    checksums: Mapping[str, tuple[int, ...]],
    options: ReadOptions,
    ordinal_of: Callable[[str], int],
    on_group: OnGroup | None = None,
) -> ReadWeights:
    """Return all tensors, each on the device that `ordinal_of` gives for its name. Blocks.

    The callbacks are as `read_tensors` has them; `progress` gets bytes of tensors. Raises what
    `read_to_devices` does, FileChangedError and UnsupportedTypeError.
    """
    if options.pool is not None:
        raise ValueError("a pool is host memory: it takes no tensors of a device")
    with memory_given_back():
        places = weights.tensors
        for _, tensor in places.values():
            torch_type(tensor)
        groups = execution_order(places)
        number_of = {file.name: number for number, file in enumerate(weights.files)}
        ends: dict[int, int] = {}  # by device: bytes of its allocation so far
        where: dict[str, tuple[int, int]] = {}  # device, offset in its allocation
        pieces: list[DevicePiece] = []
        milestones = []
        for group in groups:
            for name in group.tensors:
                file, tensor = places[name]
                ordinal = ordinal_of(name)
                offset = ends.setdefault(ordinal, 0)
                ends[ordinal] += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
                where[name] = ordinal, offset
                pieces.append(
                    DevicePiece(
                        number_of[file.name],
                        tensor.offset,
                        tensor.size_bytes,
                        list(ends).index(ordinal),
                        offset,
                    )
                )
            milestones.append(len(pieces))
        buffers = [DeviceBuffer(ordinal, max(size, 1)) for ordinal, size in ends.items()]
        octets = dict(zip(ends, map(_octets, buffers), strict=True))
        tensors: Tensors = {}
        left = list(zip(groups, milestones, strict=True))[::-1]

        def on_pieces(count: int) -> None:
            while left and left[-1][1] <= count:
                group, _ = left.pop()
                found = {}
                for name in group.tensors:
                    ordinal, offset = where[name]
                    found[name] = tensor_in(octets[ordinal], places[name][1], offset)
                tensors.update(found)
                if on_group is not None:
                    on_group(group.name, found)

        total, progress = weights.tensor_bytes, options.progress
        _check_unchanged(weights)
        _, result = read_to_devices(
            [file.path for file in weights.files],
            pieces,
            buffers,
            settings=options.settings,
            host_bytes=options.host_bytes,
            expected_crc32c=[checksums.get(file.name) for file in weights.files],
            progress=None if progress is None else lambda done: progress(done, total),
            milestones=milestones,
            on_milestone=on_pieces,
            cancel=options.cancel,
        )
        _check_unchanged(weights)
        report = LoadReport(
            files=len(weights.files),
            bytes_read=result.bytes_read,
            copied_bytes=0,
            held_bytes=sum(ends.values()),
            in_pool=False,
            verified=all(file.name in checksums for file in weights.files),
            direct=result.direct_bytes == result.bytes_read,
            huge_pages=False,
            read_s=result.seconds,
        )
        return ReadWeights(tensors={name: tensors[name] for name in places}, report=report)


def _octets(buffer: DeviceBuffer) -> torch.Tensor:
    from torch.utils.dlpack import from_dlpack  # noqa: PLC0415 - slow, and only loading needs it

    octets: torch.Tensor = from_dlpack(buffer)
    return octets


def _check_unchanged(weights: Weights) -> None:
    """Refuse files that were replaced or written to since their headers were read."""
    for file in weights.files:
        if stamp_of(file.path.stat()) != file.stamp:
            reason = "changed while it was read"
            raise FileChangedError(os.fspath(file.path), None, reason)
