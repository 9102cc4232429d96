"""The walk through the chunks of a job, for the loader in plain Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from brisk_native._chunks import ChunkPlace, all_chunks
from brisk_native._types import ReadCancelledError

if TYPE_CHECKING:
    from brisk_native._fallback import CancelToken

_PROGRESS_S: Final = 0.02


class Job:
    """The walk through chunks: obeys the token, reports progress."""

    def __init__(
        self, size: int, progress: Callable[[int], None] | None, cancel: CancelToken | None
    ) -> None:
        self._size, self._progress, self._cancel = size, progress, cancel

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Yield number, offset and length of each chunk of one file."""
        for _, chunk, offset, length in self.walk(all_chunks([self._size])):
            yield chunk, offset, length

    def walk(self, places: Iterable[ChunkPlace]) -> Iterator[ChunkPlace]:
        """Yield each of the chunks; a chunk is done when asked for more."""
        reported_s = time.monotonic()
        done = 0
        self._report(0)
        self._obey(0)
        for place in places:
            if done:
                if time.monotonic() - reported_s >= _PROGRESS_S:
                    self._report(done)
                    reported_s = time.monotonic()
                self._obey(done)
            yield place
            done += place[3]
        self._report(self._size)

    def _obey(self, bytes_done: int) -> None:
        if self._cancel is not None and self._cancel.cancelled:
            raise ReadCancelledError(bytes_done)

    def _report(self, bytes_done: int) -> None:
        if self._progress is not None:
            self._progress(bytes_done)


class Milestones:
    """Tells each of the milestones once, in order."""

    def __init__(
        self, milestones: Sequence[int], on_milestone: Callable[[int], None] | None
    ) -> None:
        self._left, self._on_milestone = list(reversed(milestones)), on_milestone

    def tell(self, done: int) -> None:
        """Tell those that `done` leading chunks reach."""
        while self._left and self._left[-1] <= done:
            milestone = self._left.pop()
            if self._on_milestone is not None:
                self._on_milestone(milestone)
