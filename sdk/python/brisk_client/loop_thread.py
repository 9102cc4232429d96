"""An event loop in a background thread, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_JOIN_S_MAX = 5.0


class LoopThread:
    """Runs coroutines for synchronous callers. Close it, or it ends with the process."""

    def __init__(self, name: str) -> None:
        # Not the policy's loop: child processes need one that works outside the main thread.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns or raise what it raises.

        An interrupt (Ctrl-C) in the calling thread cancels the coroutine.
        """
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("closed, or called from its own event loop")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` in the loop soon, without waiting for it."""
        self._loop.call_soon_threadsafe(function)

    @property
    def is_open(self) -> bool:
        """Return whether coroutines can be run."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Cancel what runs and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_JOIN_S_MAX)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
