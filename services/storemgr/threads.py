"""Blocking work on threads, without losing track of it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, ParamSpec, TypeVar

from services.common.log import get_logger

log = get_logger(__name__)

STOP_S_MAX: Final = 10.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def begin(
    threads: Executor,
    work: Callable[Arguments, Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> asyncio.Future[Result]:
    """Start `work` on a thread that logs with this task's request id."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(
        threads, lambda: context.run(work, *args, **kwargs)
    )


async def finish(
    future: asyncio.Future[Result], *, stop: Callable[[], None] | None = None
) -> Result:
    """Return what `future` returns. Cancelling calls `stop` and then waits for the thread's end.

    The wait is bounded: a thread that hangs in the kernel is left behind, and logged.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await wait_for_end(future)
        raise


async def wait_for_end(future: asyncio.Future[Result]) -> None:
    """Wait until `future` is done, for STOP_S_MAX at most."""
    _, running = await asyncio.wait((future,), timeout=STOP_S_MAX)
    if running:
        log.warning("thread does not end", limit_s=STOP_S_MAX)
    elif not future.cancelled():
        future.exception()  # looked at, so that nobody reports it as lost
