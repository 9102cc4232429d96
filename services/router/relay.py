"""Carry one generation from workers to its client.

A worker keeps nothing about a request, so until the first token any other instance will do just as
well, and the relay moves on to one unseen by the client. From then on it remembers the prompt's
tokens and all that it has delivered, by absolute index: what a continuation needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    InternalError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.common.model import StartPhase, StartProgress, StartReport
from services.common.placement import Route
from services.router.dispatch import Dispatcher, Seat
from services.router.job import Job
from services.router.ports import TokenChunk, WorkerMessage, Workers
from services.router.routes import NOTHING_EXCLUDED
from services.router.start import Milestones

log = get_logger(__name__)

_LOST_RETRY_S: Final = 1.0
_TRAILER_S_MAX: Final = 1.0  # how long a worker may take to end a stream after its last token

RelayEvent: TypeAlias = StartProgress | StartReport | TokenChunk
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """The limits of one stream."""

    moves_max: int = 3  # instances a request may be turned away from before its client is told
    silence_s_max: float = 30.0  # longest gap between two messages; the first has the deadline


class Transcript:
    """What is known of a sequence: the prompt's tokens and those delivered."""

    __slots__ = ("delivered", "is_finished", "prompt")

    def __init__(self) -> None:
        self.prompt: tuple[int, ...] = ()
        self.delivered: list[int] = []
        self.is_finished = False

    def accept(self, message: WorkerMessage) -> TokenChunk | None:
        """Take a message in and return its chunk, or None if it has nothing for the client.

        Raises InternalError if the worker left tokens out or sent some twice.
        """
        if not self.delivered and not self.prompt:
            self.prompt = tuple(message.prompt_tokens.ids)
        chunk = message.chunk
        token_ids = chunk.token_ids
        if not token_ids and not chunk.finish_reason:
            return None
        if chunk.first_index != len(self.delivered):
            raise InternalError(
                f"the worker sent token {chunk.first_index}, expected {len(self.delivered)}"
            )
        self.delivered.extend(token_ids)
        self.is_finished = bool(chunk.finish_reason)
        return chunk


async def relay(
    job: Job, dispatcher: Dispatcher, workers: Workers, config: RelayConfig
) -> AsyncGenerator[RelayEvent]:
    """Yield progress, then how the request got to its first token, then its chunks in order.

    Raises UnavailableError (WORKER_LOST) when a worker is lost after the first token or
    `moves_max` moves are spent, and otherwise what scheduler or worker answered. Closing it frees
    everything behind it at once. The caller sees to the job's deadline.
    """
    transcript = Transcript()
    milestones = Milestones()
    turned_away = NOTHING_EXCLUDED
    while not transcript.is_finished:
        seat = dispatcher.seat_now(job.model, turned_away)
        if seat is None:
            async with aclosing(dispatcher.seat(job, turned_away)) as events:
                async for event in events:
                    if isinstance(event, Seat):
                        seat = event
                    else:
                        yield event
        assert seat is not None  # noqa: S101 - `dispatcher.seat` ends with a seat or raises
        milestones.seated(seat.start)
        with seat:
            if seat.start is not None and seat.start.cold:
                yield StartProgress(phase=StartPhase.FIRST_TOKEN, source=seat.start.source)
            try:
                async with aclosing(workers.generate(seat.route, job)) as messages:
                    while not transcript.is_finished:
                        message = await _next(messages, transcript, config)
                        seat.release_grant()
                        is_first = not transcript.delivered
                        if (chunk := transcript.accept(message)) is None:
                            continue
                        if is_first:
                            yield milestones.report()
                        if transcript.is_finished:
                            seat.leave()  # the slot is free; what follows is only the status
                        yield chunk
                    await _see_out(messages)
            except BriskError as error:
                _note_loss(error, seat, dispatcher)
                if not _may_move(error, transcript, len(turned_away), config):
                    raise _told(error) from error
                turned_away |= {seat.route.instance_id}
                log.info(
                    "moved before the first token",
                    instance=seat.route.instance_id,
                    reason=error.reason,
                )


async def ask(
    job: Job,
    dispatcher: Dispatcher,
    config: RelayConfig,
    call: Callable[[Route], Awaitable[Answer]],
) -> Answer:
    """Return what `call` gets of an instance of the job's model; starts one if there is none.

    The call must be safe to repeat: like `relay`, this moves on from instances that are lost.
    Raises what scheduler or worker answered. The caller sees to the job's deadline.
    """
    turned_away = NOTHING_EXCLUDED
    while True:
        seat = dispatcher.visit(job.model, turned_away)
        if seat is None:
            async with aclosing(dispatcher.seat(job, turned_away)) as events:
                async for event in events:
                    if isinstance(event, Seat):
                        seat = event
        assert seat is not None  # noqa: S101 - `dispatcher.seat` ends with a seat or raises
        with seat:
            try:
                return await call(seat.route)
            except BriskError as error:
                _note_loss(error, seat, dispatcher)
                if not _may_move(error, Transcript(), len(turned_away), config):
                    raise _told(error) from error
                turned_away |= {seat.route.instance_id}


async def _next(
    messages: AsyncGenerator[WorkerMessage], transcript: Transcript, config: RelayConfig
) -> WorkerMessage:
    """Return the next message. A timeout must not span a yield (PEP 789), so it spans this one."""
    limit_s = config.silence_s_max if transcript.delivered else None
    try:
        async with asyncio.timeout(limit_s):
            message = await anext(messages, None)
    except TimeoutError as error:
        raise _lost(f"the worker was silent for {config.silence_s_max:g} s") from error
    if message is None:
        raise _lost("the worker ended the stream before its last token")
    return message


async def _see_out(messages: AsyncGenerator[WorkerMessage]) -> None:
    """Let the worker end its stream by itself. The client has it all, so a failure is no matter."""
    with suppress(BriskError, TimeoutError):
        async with asyncio.timeout(_TRAILER_S_MAX):
            await anext(messages, None)


def _is_gone(error: BriskError) -> bool:
    return isinstance(error, FailedPreconditionError) and error.reason == Reason.INSTANCE_GONE


def _note_loss(error: BriskError, seat: Seat, dispatcher: Dispatcher) -> None:
    """Keep others from going where this request was turned away."""
    if _is_gone(error):
        dispatcher.forget(seat.route)
    elif isinstance(error, UnavailableError):
        dispatcher.avoid(seat.route)


def _may_move(error: BriskError, transcript: Transcript, moves: int, config: RelayConfig) -> bool:
    """Return whether another instance may do it: nothing was delivered and a move is left."""
    if transcript.delivered or moves >= config.moves_max:
        return False
    return _is_gone(error) or isinstance(error, UnavailableError)


def _told(error: BriskError) -> BriskError:
    """Return what the client is told: which of our instances went away is no concern of it."""
    if error.reason == Reason.WORKER_LOST or not (
        _is_gone(error) or isinstance(error, UnavailableError)
    ):
        return error
    return _lost("the worker was lost")


def _lost(message: str) -> UnavailableError:
    return UnavailableError(message, reason=Reason.WORKER_LOST, retry_after_s=_LOST_RETRY_S)
