"""Keep the route table fed by whichever scheduler leads.

When the stream ends the table stays as it is and warm requests go on; nobody has to wait for a
leader to reach an instance that is known.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final, Never

from services.common.errors import BriskError
from services.common.log import get_logger
from services.router.backoff import Backoff
from services.router.dispatch import Dispatcher
from services.router.ports import RouteUpdate, Scheduler, Workers

log = get_logger(__name__)

_PAUSE_FIRST_S: Final = 0.1
_PAUSE_LONGEST_S: Final = 1.0  # half a second on average until a new leader's routes are known


async def watch_routes(scheduler: Scheduler, dispatcher: Dispatcher, workers: Workers) -> Never:
    """Watch for ever, from leader to leader. Cancelling ends the watch; the table stays."""
    backoff = Backoff(first_s=_PAUSE_FIRST_S, longest_s=_PAUSE_LONGEST_S)
    is_told = False  # of this interruption; the next tries are not news
    while True:
        try:
            async with aclosing(scheduler.watch_routes()) as updates:
                async for update in updates:
                    backoff.reset()
                    is_told = False
                    _take_in(update, dispatcher, workers)
        except BriskError as error:
            if not is_told:
                log.info("route watch interrupted", reason=error.reason)
            is_told = True
        await asyncio.sleep(backoff.pause_s())


def _take_in(update: RouteUpdate, dispatcher: Dispatcher, workers: Workers) -> None:
    if update.is_snapshot:
        log.info("routes known", count=len(update.upserted), epoch=update.leader_epoch)
    for route in update.upserted:
        workers.prepare(route)
    dispatcher.routes_changed(dispatcher.table.apply(update))
