"""Who reads from a device next, and when all that is queued will have been read.

One job reads at a time, slice by slice, so that a device is never asked for two things at once and
an urgent job waits for one slice at most. Bandwidth is measured at every slice; what was predicted
when a job came is compared with what became of it, so that the error of predictions is a metric.
One owner: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import IntEnum
from typing import Final

from services.common.clock import monotonic_s

SLICE_BYTES: Final = 64 << 20  # tens of milliseconds on a good disk
_WEIGHT_BYTES: Final = 256 << 20  # what was read last counts half after so many bytes


class IoPriority(IntEnum):
    """Why something is read; the least goes first."""

    REQUEST = 0
    PREFETCH = 1
    BACKGROUND = 2


class IoJob:
    """Bytes to read. `slice` waits for its turn."""

    def __init__(self, queue: IoQueue, number: int, priority: IoPriority, size_bytes: int) -> None:
        self.priority = priority
        self.left_bytes = size_bytes
        self._queue = queue
        self._number = number

    @property
    def place(self) -> tuple[IoPriority, int]:
        """What jobs are ordered by: urgency, then age."""
        return self.priority, self._number

    def hurry(self, priority: IoPriority) -> None:
        """Be at least so urgent from now on."""
        self.priority = min(self.priority, priority)
        self._queue.reorder()

    @asynccontextmanager
    async def slice(self, size_bytes: int) -> AsyncIterator[None]:
        """Have the device for the block, which reads `size_bytes`."""
        await self._queue.enter(self)
        began_s = monotonic_s()
        try:
            yield
        except BaseException:
            self.left_bytes = 0  # it will not go on
            self._queue.leave()
            raise
        self._queue.measure(size_bytes, monotonic_s() - began_s)
        self.left_bytes -= size_bytes
        self._queue.leave()


class IoQueue:
    """The jobs of one device."""

    def __init__(self, on_prediction: Callable[[float, float], None] = lambda _, __: None) -> None:
        """`on_prediction` gets what a job was predicted to take and what it took, in seconds."""
        self._on_prediction = on_prediction
        self._jobs: set[IoJob] = set()
        self._waiting: dict[IoJob, asyncio.Future[None]] = {}
        self._is_busy = False
        self._numbers = 0
        self._bytes_per_s = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The moving estimate of what the device reads; 0 until something was read."""
        return self._bytes_per_s

    @property
    def queued_bytes(self) -> int:
        """What is being read or waits to be."""
        return sum(job.left_bytes for job in self._jobs)

    def busy_s(self, priority: IoPriority = IoPriority.BACKGROUND, more_bytes: int = 0) -> float:
        """Return how long jobs up to `priority` will take, and `more_bytes` behind them."""
        ahead = sum(job.left_bytes for job in self._jobs if job.priority <= priority)
        return self._seconds(ahead + more_bytes)

    @contextmanager
    def job(self, priority: IoPriority, size_bytes: int) -> Iterator[IoJob]:
        """Queue a job for the block."""
        predicted_s = self.busy_s(priority, size_bytes)
        began_s = monotonic_s()
        self._numbers += 1
        job = IoJob(self, self._numbers, priority, size_bytes)
        self._jobs.add(job)
        try:
            yield job
        finally:
            self._jobs.discard(job)
            self.reorder()
        if predicted_s:
            self._on_prediction(predicted_s, monotonic_s() - began_s)

    async def enter(self, job: IoJob) -> None:
        """Wait until the device is free and nobody more urgent wants it. Use `IoJob.slice`."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[job] = turn
        self.reorder()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(job, None)
            if turn.done() and not turn.cancelled():  # our turn had just come
                self.leave()
            raise

    def leave(self) -> None:
        """Let the next one have the device."""
        self._is_busy = False
        self.reorder()

    def reorder(self) -> None:
        """Give a free device to the most urgent job, once it waits.

        One that is between two slices will ask in a moment: nobody less urgent gets in there.
        """
        while self._waiting and not self._is_busy:
            job = min(self._waiting, key=lambda each: each.place)
            if any(each.left_bytes and each.place < job.place for each in self._jobs):
                return
            turn = self._waiting.pop(job)
            if not turn.done():  # else it was cancelled a moment ago
                self._is_busy = True
                turn.set_result(None)

    def measure(self, size_bytes: int, seconds: float) -> None:
        """Take how long a slice took."""
        if seconds <= 0 or size_bytes <= 0:
            return
        now = size_bytes / seconds
        weight = 1 - 0.5 ** (size_bytes / _WEIGHT_BYTES) if self._bytes_per_s else 1.0
        self._bytes_per_s += weight * (now - self._bytes_per_s)

    def _seconds(self, size_bytes: int) -> float:
        return size_bytes / self._bytes_per_s if self._bytes_per_s else 0.0
