"""Bring a checkpoint's weights into a model: read once, verified on the way, used in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import brisk_native

from services.common.log import get_logger
from services.worker.checkpoint import refusals

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)


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
        pool: brisk_native.Pool | None = None,
    ) -> None:
        """`progress` gets the bytes of all files so far and in all, on another thread.

        The weights go to `pool` if they fit there, else to fresh memory.
        """
        self._folder, self._files, self._pool = folder, files, pool
        self._progress = progress
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
            implementation=brisk_native.IMPLEMENTATION,
        )
        return loaded

    def _load(self, pool: brisk_native.Pool | None) -> LoadedModel:
        with brisk_native.start_loading(
            self._folder,
            files=self._files,
            pool=pool,
            progress=self._progress,
            cancel=self._cancel,
        ) as loading:
            log.info("reading", bytes=loading.weights.file_bytes, groups=len(loading.groups))
            return LoadedModel(model=loading.result(), report=loading.report)
