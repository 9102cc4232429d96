"""One request from admission to its last token, whatever protocol it came by.

A face parses a request into a Job and says where the events go; all else is the same for every
face: who gets in, how long it may take, what is measured and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from services.common.errors import BriskError
from services.common.log import bind_request_id, get_logger
from services.common.model import StartProgress, StartReport, Tokenized
from services.common.wire_sequence import finish_name
from services.router.admission import Admission
from services.router.delivery import Delivery, Sink
from services.router.dispatch import Dispatcher
from services.router.farewell import Farewell
from services.router.job import Job
from services.router.metrics import RequestMeter
from services.router.ports import TokenChunk, Workers
from services.router.relay import RelayConfig, ask, relay

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
    unread_s_max: float


async def generate(front: Front, parse: Callable[[], Job], sink: Sink) -> None:
    """Run one request to its end. Cancelling it frees everything behind it.

    Raises what `parse` raises, ResourceExhaustedError (QUEUE_FULL), DeadlineError, UnavailableError
    (SHUTTING_DOWN), AbortedError (SLOW_CONSUMER) and what scheduler and worker answer.
    """
    meter = RequestMeter()
    try:
        with front.admission.admit():
            job = parse()
            bind_request_id(job.request_id)
            delivery = Delivery(sink, unread_s_max=front.unread_s_max)
            async with front.farewell.stream(job.deadline):
                reason = await _answer(front, job, delivery, meter)
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


async def tokenize(front: Front, parse: Callable[[], Job]) -> Tokenized:
    """Return the tokens of a job's prompt, starting the model if it is at zero.

    Raises what `generate` raises.
    """
    with front.admission.admit():
        job = parse()
        bind_request_id(job.request_id)
        async with front.farewell.stream(job.deadline):
            return await ask(
                job,
                front.dispatcher,
                front.relay,
                lambda route: front.workers.tokenize(route, job),
            )


async def _answer(front: Front, job: Job, delivery: Delivery, meter: RequestMeter) -> str:
    """Pass all answers on and return why the first one finished. One that fails ends all."""
    if job.choices == 1:
        return await _stream(front, job, 0, delivery, meter)
    try:
        with front.admission.admit(job.choices - 1):
            async with asyncio.TaskGroup() as group:
                first, *_ = [
                    group.create_task(_stream(front, job.choice(index), index, delivery, meter))
                    for index in range(job.choices)
                ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return first.result()


async def _stream(
    front: Front, job: Job, index: int, delivery: Delivery, meter: RequestMeter
) -> str:
    """Pass the events of one answer on and return why it finished."""
    start: StartReport | None = None
    last: TokenChunk | None = None
    pace = meter.answer()
    async with aclosing(relay(job, front.dispatcher, front.workers, front.relay)) as events:
        async for event in events:
            if isinstance(event, StartProgress):
                if job.want_progress and index == 0:  # all wait for the same start
                    await delivery.progress(event)
            elif isinstance(event, StartReport):
                pace.first_token(is_cold=event.cold)
                start = event
            else:
                if start is None:
                    pace.tokens(len(event.token_ids))
                await delivery.chunk(index, event, start)
                start, last = None, event
    return "NONE" if last is None else finish_name(last.finish_reason)
