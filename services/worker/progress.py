"""How far a load has come: only the newest state matters, so slow readers skip what is between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from services.common.model import StartProgress


class ProgressFeed:
    """One writer, one reader. `post` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: StartProgress | None = None
        self._over = asyncio.Event()
        self._changed = asyncio.Event()

    def post(self, progress: StartProgress) -> None:
        """Replace the newest state."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._set, progress)

    def close(self) -> None:
        """End the reader's iteration, after the newest state. On the loop."""
        self._over.set()
        self._changed.set()

    async def read(self, pause_s: float) -> AsyncGenerator[StartProgress]:
        """Yield the newest state whenever it changed, at most once per `pause_s`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            latest, self._latest = self._latest, None
            if latest is not None:
                yield latest
            if self._over.is_set():
                return
            with suppress(TimeoutError):  # the end is not held back by the pause
                async with asyncio.timeout(pause_s):
                    await self._over.wait()

    def _set(self, progress: StartProgress) -> None:
        self._latest = progress
        self._changed.set()
