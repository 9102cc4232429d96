"""Read the weight files of a checkpoint, each once, and hand out its tensors group by group.

A group is what a model needs together (`_order`): the embedding, one layer, the head. Tensors lie
where they were read, in one buffer per file, and keep it alive.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from brisk_native._implementation import CancelToken, parse_header_bytes, read_file
from brisk_native._manifest import MANIFEST, read_checksums
from brisk_native._order import execution_order
from brisk_native._types import FileChangedError, InvalidCheckpointError, InvalidHeaderError
from brisk_native._views import element_bytes, tensor_in, torch_type
from brisk_native._weights import WeightFile, Weights

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
    """Size of all weight files, headers included."""
    copied_bytes: int
    """Bytes of the tensors that could not be used where they were read: misaligned, or of another
    type than the model computes in, or merged and split."""
    held_bytes: int
    """Memory that the weights take: what was read, and the copies."""
    direct: bool
    """True if every file was read past the page cache."""
    huge_pages: bool
    """True if every file lies in huge pages for at least its half."""
    verified: bool
    """True if every chunk was checked against brisk.json meanwhile."""
    read_s: float
    """Wall time from the first read to the last verified byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWeights:
    """A checkpoint in memory."""

    tensors: Tensors
    report: LoadReport


def checksums_of(folder: Path, weights: Weights) -> Mapping[str, tuple[int, ...]]:
    """Return the checksums of the weight files; empty if there is nothing to verify by.

    Raises InvalidCheckpointError if the manifest is damaged or lacks a file, and OSError.
    """
    checksums = read_checksums(folder)
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
    *,
    threads: int,
    on_group: OnGroup | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> ReadWeights:
    """Return all tensors, in the order of the files; blocks until all bytes are there.

    `on_group` gets the name of each group and its tensors when the last of its bytes has come,
    in the order of execution; it and `progress` are called on the calling thread, and what they
    raise ends the read. Raises what `load_tensors` does.
    """
    with memory_given_back():
        return _read(
            weights,
            checksums,
            threads=threads,
            on_group=on_group,
            progress=progress,
            cancel=cancel,
        )


def _read(
    weights: Weights,
    checksums: Mapping[str, tuple[int, ...]],
    *,
    threads: int,
    on_group: OnGroup | None,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> ReadWeights:
    for file in weights.files:
        for tensor in file.header.tensors:
            torch_type(tensor)
    total, done, copied, read_s = weights.file_bytes, 0, 0, 0.0
    groups = _Groups(weights, on_group)
    direct = huge_pages = True
    for file in weights.files:
        before = done

        def report(now: int, before: int = before) -> None:
            if progress is not None:
                progress(before + now, total)

        buffer, result = read_file(
            file.path,
            threads=threads,
            expected_crc32c=checksums.get(file.name),
            progress=report,
            cancel=cancel,
        )
        _check_unchanged(file, buffer)
        copied += sum(t.size_bytes for t in file.header.tensors if t.offset % element_bytes(t))
        groups.add({t.name: tensor_in(buffer, t, t.offset) for t in file.header.tensors})
        done += file.header.file_bytes
        direct, huge_pages = direct and result.direct, huge_pages and result.huge_pages
        read_s += result.seconds
    report_ = LoadReport(
        files=len(weights.files),
        bytes_read=total,
        copied_bytes=copied,
        held_bytes=total + copied,
        direct=direct,
        huge_pages=huge_pages,
        verified=all(file.name in checksums for file in weights.files),
        read_s=read_s,
    )
    return ReadWeights(tensors=groups.tensors, report=report_)


class _Groups:
    """The tensors that are there, handed out in the order of execution."""

    def __init__(self, weights: Weights, on_group: OnGroup | None) -> None:
        self.tensors: Tensors = {}
        self._on_group = on_group
        self._left = list(reversed(execution_order(weights.tensors)))

    def add(self, tensors: Tensors) -> None:
        self.tensors.update(tensors)
        while self._left and all(name in self.tensors for name in self._left[-1].tensors):
            group = self._left.pop()
            if self._on_group is not None:
                self._on_group(group.name, {name: self.tensors[name] for name in group.tensors})


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


def _check_unchanged(file: WeightFile, buffer: Buffer) -> None:
    """Refuse a file that was replaced between the reading of its header and of its bytes."""
    path, reason = os.fspath(file.path), "changed while it was read"
    with memoryview(buffer) as view:
        try:
            found = parse_header_bytes(view, view.nbytes, file.path)
        except InvalidHeaderError as error:
            raise FileChangedError(path, error.tensor, f"{reason}: {error.reason}") from None
    if found != file.header:
        raise FileChangedError(path, None, reason)
