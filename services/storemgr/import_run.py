"""One import under way: a thread does the work, the event loop watches and can stop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import BriskError, Reason
from services.common.log import get_logger
from services.storemgr.importer import Importer, ImportOrder
from services.storemgr.manifest import Manifest
from services.storemgr.metrics import IMPORT_SECONDS, IMPORTS
from services.storemgr.ports import Job, JobStoppedError
from services.storemgr.progress import ImportProgress
from services.storemgr.threads import begin, finish, wait_for_end

log = get_logger(__name__)

PROGRESS_S: Final = 0.1  # two reports are at least this far apart


class ImportRun:
    """Starts at once. Only the latest report is kept, so a slow reader holds up nothing.

    `on_stored` hears of the model as soon as it is published, whether or not anyone still waits.
    """

    def __init__(
        self,
        importer: Importer,
        order: ImportOrder,
        job: Job,
        *,
        threads: Executor,
        on_stored: Callable[[Manifest], None],
    ) -> None:
        self._order = order
        self._job = job
        self._on_stored = on_stored
        self._loop = asyncio.get_running_loop()
        self._began_at_s = monotonic_s()
        self._latest: ImportProgress | None = None
        self._news = asyncio.Event()  # of the next report; all who wait hear of it
        self._result = begin(threads, importer.run, order, job, self._report)
        self._result.add_done_callback(self._ended)

    async def progress(self) -> AsyncGenerator[ImportProgress]:
        """Yield how far it is until it ends, the last state included. Any number may listen."""
        shown: ImportProgress | None = None
        while not self._result.done():
            if self._latest is None or self._latest is shown:
                await self._news.wait()
                continue
            shown = self._latest
            yield shown
            await asyncio.wait((self._result,), timeout=PROGRESS_S)
        if self._latest is not None and self._latest is not shown:
            yield self._latest

    async def result(self) -> Manifest:
        """Return what is stored now, or raise why it is not. Cancelling this stops the import."""
        return await finish(self._result, stop=self._job.stop)

    async def stop(self) -> None:
        """Stop it if it still runs, and wait until its thread has cleaned up."""
        self._job.stop()
        await wait_for_end(self._result)

    def _report(self, progress: ImportProgress) -> None:
        """Take news from the thread."""
        self._latest = progress
        self._loop.call_soon_threadsafe(self._announce)

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _ended(self, result: asyncio.Future[Manifest]) -> None:
        error = result.exception()
        elapsed_s = monotonic_s() - self._began_at_s
        outcome = _outcome(error)
        IMPORTS.labels(outcome).inc()
        IMPORT_SECONDS.labels(outcome).observe(elapsed_s)
        if error is None:
            manifest = result.result()
            log.info(
                "model imported",
                model=manifest.name,
                revision=manifest.revision,
                file_bytes=manifest.file_bytes,
                elapsed_s=elapsed_s,
            )
            self._on_stored(manifest)
        else:
            log.info(
                "import ended without a model",
                model=self._order.source.name,
                outcome=outcome,
                problem=str(error),
            )
        self._announce()


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "stored"
    if isinstance(error, JobStoppedError):
        return "cancelled"
    if isinstance(error, BriskError):
        return "disk_full" if error.reason == Reason.DISK_FULL else "refused"
    return "failed"
