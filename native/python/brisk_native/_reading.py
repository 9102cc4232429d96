"""Read the weight files of a checkpoint, each once, and hand out its tensors group by group.

A group is what a model needs together (`_order`): the embedding, one layer, the head. The chunks
are read in the order in which the groups are needed, whatever the files and the order of the
tensors in them. Tensors lie where they were read, in one buffer per file, and keep it alive.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from brisk_native._device_types import HOST_BYTES
from brisk_native._files import read_files
from brisk_native._implementation import CancelToken, FileBuffer, Pool, parse_header_bytes
from brisk_native._manifest import MANIFEST, read_checksums
from brisk_native._order import LayerGroup, execution_order
from brisk_native._types import (
    CHUNK_BYTES,
    FileChangedError,
    InvalidCheckpointError,
    InvalidHeaderError,
    ReadCancelledError,
    ReadResult,
    ReadSettings,
    TensorInfo,
)
from brisk_native._views import octets_of, tensor_in, torch_type
from brisk_native._weights import WeightFile, Weights, stamp_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

Tensors: TypeAlias = "dict[str, torch.Tensor]"
OnGroup: TypeAlias = "Callable[[str, Tensors], None]"
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How a checkpoint came into memory."""

    files: int
    """Weight files."""
    bytes_read: int
    """Size of all weight files, headers included; 0 if their bytes were in memory already."""
    copied_bytes: int
    """Bytes of the tensors that could not be used where they were read: misaligned, or of another
    type than the model computes in, or merged and split."""
    held_bytes: int
    """Memory that the weights take: what was read, and the copies."""
    in_pool: bool
    """True if it lies in a pool."""
    verified: bool
    """True if every chunk was checked against brisk.json meanwhile."""
    direct: bool
    """True if every file was read past the page cache."""
    huge_pages: bool
    """True if at least half of the host memory they lie in is in huge pages."""
    read_s: float
    """Wall time from opening to the last verified byte."""
    mapped_bytes: int = 0
    """What is used in the memory of another process, and takes none of this one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to read; what it means, `load_tensors` says."""

    pool: Pool | None = None
    settings: ReadSettings | None = None
    progress: Progress | None = None
    cancel: CancelToken | None = None
    host_bytes: int = HOST_BYTES
    """Of the ring that bytes for devices pass through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWeights:
    """A checkpoint in memory."""

    tensors: Tensors
    """In the order of the files."""
    report: LoadReport


def checksums_of(folder: Path, weights: Weights) -> Mapping[str, tuple[int, ...]]:
    """Return the checksums of the weight files; empty if there is nothing to verify by.

    Raises InvalidCheckpointError if the manifest is damaged or lacks a file, and OSError.
    """
    return listed(folder, read_checksums(folder), weights)


def listed(
    folder: Path, checksums: Mapping[str, tuple[int, ...]] | None, weights: Weights
) -> Mapping[str, tuple[int, ...]]:
    """Return `checksums`, those of the manifest of `folder`; empty if it has none.

    Raises InvalidCheckpointError if a weight file is not among them.
    """
    if checksums is None:
        return {}
    for file in weights.files:
        if file.name not in checksums:
            reason = f"does not list {file.name}"
            raise InvalidCheckpointError(os.fspath(folder / MANIFEST), reason)
    return checksums


def read_tensors(
    weights: Weights,
    checksums: Mapping[str, tuple[int, ...]],
    options: ReadOptions,
    on_group: OnGroup | None = None,
) -> ReadWeights:
    """Return all tensors; blocks until all bytes are there.

    `on_group` gets the name of each group and its tensors when the last of its bytes has come,
    in the order of execution; it and `progress` are called on the calling thread, and what they
    raise ends the read. Raises what `load_tensors` does.
    """
    with memory_given_back():
        for file in weights.files:
            for tensor in file.header.tensors:
                torch_type(tensor)
        groups = execution_order(weights.tensors)
        plan = read_plan(weights, groups)
        handout = _Handout(weights, weights.tensors, groups, plan.milestones, on_group)
        total = weights.file_bytes
        progress = options.progress
        _, result = read_files(
            [file.path for file in weights.files],
            order=plan.order,
            expected_crc32c=[checksums.get(file.name) for file in weights.files],
            pool=options.pool,
            settings=options.settings,
            progress=None if progress is None else lambda done: progress(done, total),
            milestones=plan.milestones,
            on_milestone=handout.on_chunks,
            on_buffers=handout.on_buffers,
            cancel=options.cancel,
        )
        is_verified = all(file.name in checksums for file in weights.files)
        return handout.result(result, is_verified=is_verified, is_in_pool=options.pool is not None)


def take_tensors(
    weights: Weights,
    buffers: Mapping[str, Buffer],
    options: ReadOptions,
    on_group: OnGroup | None = None,
) -> ReadWeights:
    """Return all tensors of weight files whose bytes `buffers` hold, by name: they lie there.

    Takes milliseconds, whatever the size. The callbacks are as `read_tensors` has them. Raises
    UnsupportedTypeError and ReadCancelledError.
    """
    with memory_given_back():
        began_s = time.perf_counter()
        if options.cancel is not None and options.cancel.cancelled:
            raise ReadCancelledError(0)
        groups = execution_order(weights.tensors)
        handout = _Handout(weights, weights.tensors, groups, [0] * len(groups), on_group)
        tensors = handout.take(buffers)
        total = weights.file_bytes
        if options.progress is not None:
            options.progress(total, total)
        report = LoadReport(
            files=len(weights.files),
            bytes_read=0,
            copied_bytes=handout.copied_bytes,
            held_bytes=handout.copied_bytes,
            in_pool=False,
            verified=False,
            direct=False,
            huge_pages=False,
            read_s=time.perf_counter() - began_s,
            mapped_bytes=total,
        )
        return ReadWeights(tensors=tensors, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """Which chunks of which files are needed when."""

    order: Sequence[tuple[int, int]]
    """File and chunk, each once, in the order of need. Chunks that no tensor lies in are left
    out: they come last."""
    milestones: Sequence[int]
    """For each group, how many of these chunks it and all groups before it need."""


def read_plan(weights: Weights, groups: Sequence[LayerGroup]) -> ReadPlan:
    """Return the plan that brings the groups one after another.

    A file's header is read before its first tensor: it tells whether the file is still the same.
    """
    places = weights.tensors
    number_of = {file.name: number for number, file in enumerate(weights.files)}
    order: dict[tuple[int, int], None] = {}
    milestones = []
    seen: set[int] = set()
    for group in groups:
        needed: set[tuple[int, int]] = set()
        for name in group.tensors:
            file, tensor = places[name]
            number = number_of[file.name]
            if number not in seen:
                seen.add(number)
                needed.update((number, chunk) for chunk in _chunks(0, file.header.data_offset))
            needed.update((number, chunk) for chunk in _chunks(tensor.offset, tensor.size_bytes))
        # Neighbours become one read, so within a group the order is that of the files.
        order.update(dict.fromkeys(sorted(needed)))
        milestones.append(len(order))
    return ReadPlan(order=tuple(order), milestones=tuple(milestones))


def _chunks(offset: int, size: int) -> range:
    return range(offset // CHUNK_BYTES, -(-(offset + size) // CHUNK_BYTES) if size else 0)


@dataclass(slots=True, repr=False)
class _Handout:
    """Makes tensors of the bytes that are there, and hands them out."""

    weights: Weights
    places: Mapping[str, tuple[WeightFile, TensorInfo]]
    groups: Sequence[LayerGroup]
    milestones: Sequence[int]
    on_group: OnGroup | None
    tensors: Tensors = field(default_factory=dict)
    copied_bytes: int = 0
    _buffers: dict[str, FileBuffer] = field(default_factory=dict)  # by file
    _octets: dict[str, torch.Tensor] = field(default_factory=dict)  # views of them
    _checked: set[str] = field(default_factory=set)  # files
    _done: int = 0  # groups

    def on_buffers(self, buffers: Sequence[FileBuffer]) -> None:
        """Learn where the files will lie."""
        for file, buffer in zip(self.weights.files, buffers, strict=True):
            self._buffers[file.name] = buffer
            self._octets[file.name] = octets_of(buffer)

    def take(self, buffers: Mapping[str, Buffer]) -> Tensors:
        """Hand out all groups of files whose bytes are there, and were when their headers were."""
        for name, buffer in buffers.items():
            self._octets[name] = octets_of(buffer)
            self._checked.add(name)
        self.on_chunks(self.milestones[-1] if self.milestones else 0)
        return {name: self.tensors[name] for name in self.weights.tensors}

    def on_chunks(self, chunks: int) -> None:
        """Hand out the groups that need no more than the first `chunks` of the plan."""
        while self._done < len(self.groups) and self.milestones[self._done] <= chunks:
            group = self.groups[self._done]
            self._done += 1
            found = {name: self._tensor(*self.places[name]) for name in group.tensors}
            self.tensors.update(found)
            if self.on_group is not None:
                self.on_group(group.name, found)

    def result(self, read: ReadResult, *, is_verified: bool, is_in_pool: bool) -> ReadWeights:
        """Return all of it, once the read is over."""
        for file in self.weights.files:  # of those without a tensor, too
            self._check(file)
            # Written to in place, or replaced by one with an equal header: parts may be of both.
            if not file.path.exists() or stamp_of(file.path.stat()) != file.stamp:
                raise FileChangedError(os.fspath(file.path), None, "changed while it was read")
        total = self.weights.file_bytes
        report = LoadReport(
            files=len(self.weights.files),
            bytes_read=total,
            copied_bytes=self.copied_bytes,
            held_bytes=total + self.copied_bytes,
            in_pool=is_in_pool,
            verified=is_verified,
            direct=read.direct,
            huge_pages=read.huge_pages,
            read_s=read.seconds,
        )
        in_order = {name: self.tensors[name] for name in self.weights.tensors}
        return ReadWeights(tensors=in_order, report=report)

    def _tensor(self, file: WeightFile, tensor: TensorInfo) -> torch.Tensor:
        self._check(file)
        octets = self._octets[file.name]
        found = tensor_in(octets, tensor, tensor.offset)
        if tensor.size_bytes and found.data_ptr() != octets.data_ptr() + tensor.offset:
            self.copied_bytes += tensor.size_bytes
        return found

    def _check(self, file: WeightFile) -> None:
        """Refuse a file that was replaced between the reading of its header and of its bytes."""
        if file.name in self._checked:
            return
        self._checked.add(file.name)
        path, reason = os.fspath(file.path), "changed while it was read"
        with memoryview(self._buffers[file.name]) as view:
            try:
                found = parse_header_bytes(view[: file.header.data_offset], view.nbytes, path)
            except InvalidHeaderError as error:
                raise FileChangedError(path, error.tensor, f"{reason}: {error.reason}") from None
        if found != file.header:
            raise FileChangedError(path, None, reason)


@contextmanager
def memory_given_back() -> Iterator[None]:
    """When the block raises, drop what its finished calls of this package still refer to.

    Whoever keeps the error, or a log that shows it, would keep gigabytes alive otherwise.
    """
    try:
        yield
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if str(frame.f_globals.get("__name__")).partition(".")[0] == "brisk_native":
                with suppress(RuntimeError):  # this one still runs
                    frame.clear()
        raise
