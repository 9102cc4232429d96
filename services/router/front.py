"""One generation from admission to its last token, whatever protocol it came by.

A face parses a request into a Job and says where the events go; all else is the same for every
face: who gets in, how long it may take, what is measured and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from services.common.errors import BriskError
from services.common.log import bind_request_id, get_logger
from services.common.model import StartProgress, StartReport
from services.common.wire import finish_name
from services.router.admission import Admission
from services.router.dispatch import Dispatcher
from services.router.farewell import Farewell
from services.router.job import Job
from services.router.metrics import RequestMeter
from services.router.ports import TokenChunk, Workers
from services.router.relay import RelayConfig, relay

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What serves a request."""

    admission: Admission
    farewell: Farewell
    dispatcher: Dispatcher
    workers: Workers
    relay: RelayConfig
    request_s_default: float


class Sink(Protocol):
    """Where the events of one generation go. Waiting in it slows the generation down."""

    async def progress(self, progress: StartProgress) -> None:
        """Tell how far the model's start has come; only before the first chunk."""

    async def chunk(self, chunk: TokenChunk, start: StartReport | None) -> None:
        """Pass the next tokens on; `start` says with the first ones how the request got there."""


async def generate(front: Front, parse: Callable[[], Job], sink: Sink) -> None:
    """Run one generation to its end. Cancelling it frees everything behind it.

    Raises what `parse` raises, ResourceExhaustedError (QUEUE_FULL), DeadlineError, UnavailableError
    (SHUTTING_DOWN) and what scheduler and worker answer.
    """
    meter = RequestMeter()
    try:
        with front.admission.admit():
            job = parse()
            bind_request_id(job.request_id)
            async with front.farewell.stream(job.deadline):
                reason = await _stream(front, job, sink, meter)
    except BriskError as error:
        meter.failed(error.reason)
        log.info("generation refused", reason=error.reason, seconds=meter.seconds)
        raise
    except asyncio.CancelledError:
        meter.cancelled()
        log.info("generation cancelled", seconds=meter.seconds)
        raise
    meter.finished(reason)
    log.info("generation finished", reason=reason, seconds=meter.seconds)


async def _stream(front: Front, job: Job, sink: Sink, meter: RequestMeter) -> str:
    """Pass the job's events on and return why it finished."""
    start: StartReport | None = None
    last: TokenChunk | None = None
    async with aclosing(relay(job, front.dispatcher, front.workers, front.relay)) as events:
        async for event in events:
            if isinstance(event, StartProgress):
                if job.want_progress:
                    await sink.progress(event)
            elif isinstance(event, StartReport):
                meter.first_token(is_cold=event.cold)
                start = event
            else:
                if start is None:
                    meter.tokens(len(event.token_ids))
                await sink.chunk(event, start)
                start, last = None, event
    return "NONE" if last is None else finish_name(last.finish_reason)
