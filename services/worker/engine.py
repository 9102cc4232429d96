"""The decode loop of one device: its own thread, one step of each sequence in turn.

All state belongs to the thread; others send it orders. A sequence that fails takes nobody with it:
not its neighbours, not the worker. Knows nothing of torch: models come as `Decoder`s.
"""

from __future__ import annotations

import gc
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Never, TypeAlias

import structlog

from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    InternalError,
    Reason,
    UnavailableError,
)
from services.common.log import get_logger
from services.worker.ports import Decoder, Job, Strand
from services.worker.sampler import choose
from services.worker.text import Decoded

log = get_logger(__name__)

PREFILL_TOKENS_MAX: Final = (
    512  # bounds how long a step takes: cancelling and neighbours wait for it
)

_RETRY_AFTER_S: Final = 0.5  # by then the caller's routes should name another worker


@dataclass(frozen=True, slots=True)
class _Load:
    instance_id: str
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class _Unload:
    instance_id: str
    done: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Cancel:
    ticket: str
    error: BriskError | None


@dataclass(frozen=True, slots=True)
class _Wake:
    pass


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Order: TypeAlias = _Load | _Unload | Job | _Cancel | _Wake | _Stop


class _Running:
    """A sequence being decoded: `seen` of its tokens are in the cache, `pending` are not."""

    __slots__ = ("job", "pending", "seen", "strand")

    def __init__(self, job: Job, strand: Strand) -> None:
        self.job = job
        self.strand = strand
        self.seen = 0
        self.pending = job.prompt

    def advance(self) -> Decoded | None:
        """Take one step; return the token, or None if there is more of the prompt to see."""
        shown = self.pending[:PREFILL_TOKENS_MAX]
        logits = self.strand.step(shown)
        self.seen += len(shown)
        self.pending = self.pending[len(shown) :]
        if self.pending:
            return None
        token_id = choose(logits, self.job.sampling, self.seen)
        self.pending = (token_id,)
        return self.job.continuation.accept(token_id)

    def close(self) -> None:
        """Free the cache, also while somebody up the stack still refers to us."""
        del self.strand


class DeviceEngine:
    """An Engine: see `ports`. `start` it once, `close` it once."""

    def __init__(self, device_id: str) -> None:
        # Unbounded, but never long: each order comes from a load or a sequence already admitted.
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._decoders: dict[str, Decoder] = {}
        self._running: dict[str, _Running] = {}
        self._is_stopping = False
        # Gets the exception that ended the thread, which is our bug; else stays open.
        self.death: Future[Never] = Future()
        self._thread = threading.Thread(
            target=self._run_or_die, name=f"engine {device_id}", daemon=True
        )

    def start(self) -> None:
        """Start the device's thread."""
        self._thread.start()

    def load(self, instance_id: str, decoder: Decoder) -> None:
        """Make a model ready for sequences."""
        self._orders.put(_Load(instance_id, decoder))

    def unload(self, instance_id: str, done: Callable[[], None]) -> None:
        """Drop a model, end what sequences it has, and call `done` from the device's thread."""
        self._orders.put(_Unload(instance_id, done))

    def add(self, job: Job) -> None:
        """Decode a sequence until it ends."""
        self._orders.put(job)

    def cancel(self, ticket: str, error: BriskError | None = None) -> None:
        """End a sequence within one decode step."""
        self._orders.put(_Cancel(ticket, error))

    def wake(self) -> None:
        """Look again at sequences whose sink had no room."""
        self._orders.put(_Wake())

    def close(self, timeout_s: float) -> bool:
        """End everything after the current step; return whether the thread ended in time."""
        self._orders.put(_Stop())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run_or_die(self) -> None:
        try:
            self._run()
        except BaseException as error:  # the thread's boundary: its sequences hang from now on
            if not self.death.cancelled():
                self.death.set_exception(error)
            raise

    def _run(self) -> None:
        while not self._is_stopping:
            has_moved = self._step_each()
            self._take_orders(wait=not has_moved)
        for ticket in tuple(self._running):
            self._end(ticket, shutting_down())
        self._decoders.clear()

    def _step_each(self) -> bool:
        """Give each sequence that can go on one step; return whether any could."""
        has_moved = False
        for ticket in tuple(self._running):
            running = self._running.get(ticket)
            if running is not None and running.job.sink.has_room():
                has_moved = True
                self._advance(running)
                self._take_orders(wait=False)
        return has_moved

    def _take_orders(self, *, wait: bool) -> None:
        # No order is kept in a variable: while we wait, it would keep a model alive.
        with suppress(queue.Empty):
            self._obey(self._orders.get(block=wait))
            while True:
                self._obey(self._orders.get_nowait())

    def _obey(self, order: _Order) -> None:
        match order:
            case Job():
                self._begin(order)
            case _Cancel(ticket, error):
                if ticket in self._running:
                    self._end(ticket, error)
            case _Load(instance_id, decoder):
                self._decoders[instance_id] = decoder
            case _Unload(instance_id, done):
                self._drop(instance_id)
                done()
            case _Stop():
                self._is_stopping = True
            case _Wake():
                pass  # being awake is enough

    def _begin(self, job: Job) -> None:
        decoder = self._decoders.get(job.instance_id)
        if self._is_stopping or decoder is None:
            job.sink.end(shutting_down() if self._is_stopping else _gone())
            return
        try:
            self._running[job.ticket] = _Running(job, decoder.open())
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            job.sink.end(_failed(job, error))

    def _advance(self, running: _Running) -> None:
        decoded: Decoded | None = None
        failure: BriskError | None = None
        try:
            decoded = running.advance()
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            failure = _failed(running.job, error)
        if failure is not None:
            self._end(running.job.ticket, failure)
        elif decoded is not None and decoded.finish_reason is not None:
            self._end(running.job.ticket, None, decoded)
        elif decoded is not None:
            running.job.sink.put(decoded)

    def _end(self, ticket: str, error: BriskError | None, last: Decoded | None = None) -> None:
        """Free what a sequence holds, then say so together with its last token."""
        running = self._running.pop(ticket)
        running.close()
        running.job.sink.end(error, last)

    def _drop(self, instance_id: str) -> None:
        for ticket, running in tuple(self._running.items()):
            if running.job.instance_id == instance_id:
                self._end(ticket, _gone())
        if self._decoders.pop(instance_id, None) is not None:
            gc.collect()  # modules of a model may refer to one another in circles


def shutting_down() -> UnavailableError:
    """Return what a sequence ends with that the worker cannot finish before it stops."""
    return UnavailableError(
        "the worker is shutting down", reason=Reason.SHUTTING_DOWN, retry_after_s=_RETRY_AFTER_S
    )


def _gone() -> FailedPreconditionError:
    return FailedPreconditionError("the instance is not here", reason=Reason.INSTANCE_GONE)


def _failed(job: Job, error: Exception) -> BriskError:
    """Log what a model's code raised; the caller learns no more than that it did."""
    with structlog.contextvars.bound_contextvars(request_id=job.request_id):
        # As text: a log handler that keeps the error itself would keep the cache with it.
        trace = "".join(traceback.format_exception(error))
        log.error("sequence failed", instance=job.instance_id, exception=trace)
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, BriskError):
        return error
    return InternalError("the model failed on this sequence", reason=Reason.ENGINE_FAILED)
