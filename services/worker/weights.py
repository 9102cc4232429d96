"""Bring a checkpoint's weights into a model: read once, verified on the way, used in place.

What the store manager has in memory is not even read: it is mapped, read-only, and is the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import brisk_native

from services.common.log import get_logger
from services.worker.checkpoint import refusals
from services.worker.ports import Mapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)

Buffers: TypeAlias = "dict[str, brisk_native.FileBuffer]"


def map_weights(mapping: Mapping) -> Buffers:
    """Return the bytes of weight files in shared memory, by name. Blocks for about a millisecond.

    They are read-only, and stay as they are for as long as a view of them lives. Raises OSError
    where this process cannot get at that memory.
    """
    return {
        file.name: brisk_native.map_pieces(mapping.path, file.pieces, file.size_bytes)
        for file in mapping.files
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its weights, ready for a forward pass."""

    model: PreTrainedModel
    report: brisk_native.LoadReport


class WeightLoad:
    """One load of a model; `run` it once, on an executor's thread."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        progress: Callable[[int, int], None],
        *,
        reserve: Callable[[int], None],
        pool: brisk_native.Pool | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """`progress` gets the bytes of all files so far and in all, on another thread.

        `reserve` gets the bytes that the weights are about to take; see `start_loading`. They are
        used in `buffers`, which hold the files by name, or are read: to `pool` if they fit there,
        else to fresh memory.
        """
        self._folder, self._files, self._pool = folder, files, pool
        self._buffers = buffers
        self._progress, self._reserve = progress, reserve
        self._cancel = brisk_native.CancelToken()

    def give_up(self) -> None:
        """End `run` within one chunk. From any thread."""
        self._cancel.cancel()

    def run(self) -> LoadedModel:
        """Return the model. Blocks. Raises what `refusals` makes of it."""
        with refusals():
            try:
                loaded = self._load(self._pool)
            except brisk_native.PoolFullError as error:
                log.info("the pool has no room", free=error.free_bytes, needed=error.needed_bytes)
                loaded = self._load(None)
        report = loaded.report
        log.info(
            "read",
            seconds=report.read_s,
            is_in_pool=report.in_pool,
            is_direct=report.direct,
            is_huge=report.huge_pages,
            is_verified=report.verified,
            bytes_copied=report.copied_bytes,
            bytes_mapped=report.mapped_bytes,
            implementation=brisk_native.IMPLEMENTATION,
        )
        return loaded

    def _load(self, pool: brisk_native.Pool | None) -> LoadedModel:
        with brisk_native.start_loading(
            self._folder,
            files=self._files if self._buffers is None else None,
            pool=pool,
            progress=self._progress,
            cancel=self._cancel,
            buffers=self._buffers,
            require_manifest=True,  # a store's model always has one
            reserve=self._reserve,
        ) as loading:
            log.info("reading", bytes=loading.weights.file_bytes, groups=len(loading.groups))
            return LoadedModel(model=loading.result(), report=loading.report)
