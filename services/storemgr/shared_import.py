"""One import for all who ask for the same at once; it is stopped when the last of them has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from services.storemgr.import_run import ImportRun
from services.storemgr.manifest import Manifest
from services.storemgr.progress import ImportProgress


class SharedImport:
    """An import that waits for its turn, runs, or has just ended. One owner: the event loop."""

    def __init__(self, begin: Callable[[], AbstractAsyncContextManager[ImportRun]]) -> None:
        self.waiters = 0
        self._begun: asyncio.Future[ImportRun] = asyncio.get_running_loop().create_future()
        self._work = asyncio.create_task(self._carry_out(begin))

    @property
    def is_over(self) -> bool:
        """Return whether it has ended, however that was."""
        return self._work.done()

    async def told(self) -> AsyncGenerator[ImportProgress | Manifest]:
        """Yield how far it is and, as the last, what is stored then. Raises why it is not.

        Any number may listen, from any moment on. Closing this leaves the import alone.
        """
        await asyncio.wait((self._begun, self._work), return_when=asyncio.FIRST_COMPLETED)
        if self._begun.done():
            async with aclosing(self._begun.result().progress()) as news:
                async for progress in news:
                    yield progress
        yield await asyncio.shield(self._work)

    async def stop(self) -> None:
        """Stop it if it still runs and return when nothing is left of it."""
        self._work.cancel()
        await asyncio.wait((self._work,))
        if not self._work.cancelled():
            self._work.exception()  # looked at, so that nobody reports it as lost

    async def _carry_out(
        self, begin: Callable[[], AbstractAsyncContextManager[ImportRun]]
    ) -> Manifest:
        async with begin() as run:
            self._begun.set_result(run)
            return await run.result()
