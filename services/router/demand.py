"""Tell the leading scheduler how many requests wait for a slot, so that it can start instances.

A hint and nothing else: no request waits for it, and while nobody leads nobody is told.
"""

from __future__ import annotations

import asyncio
from typing import Final, Never

from services.common.deadline import Deadline
from services.common.errors import BriskError
from services.common.log import get_logger
from services.router.dispatch import Dispatcher
from services.router.ports import Scheduler

log = get_logger(__name__)

_PAUSE_S: Final = 0.1  # changes closer together share a report
_REPEAT_S: Final = 2.0  # while there are lines
_CALL_S_MAX: Final = 2.0
LINES_MAX: Final = 10_000


async def report_demand(scheduler: Scheduler, dispatcher: Dispatcher) -> Never:
    """Report for ever. Cancelling ends it; the scheduler forgets what it was told within 5 s."""
    told: dict[str, int] = {}
    while True:
        try:
            async with asyncio.timeout(_REPEAT_S if told else None):
                await dispatcher.lines_changed.wait()
        except TimeoutError:
            pass
        dispatcher.lines_changed.clear()
        lines = dispatcher.lines(LINES_MAX)
        if lines or told:
            try:
                await scheduler.report_demand(lines, Deadline.after(_CALL_S_MAX))
            except BriskError as error:
                log.debug("demand not told", reason=error.reason)
            told = lines
        await asyncio.sleep(_PAUSE_S)
