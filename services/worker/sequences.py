"""The sequences of one instance: admitted to its device or waiting in order. Event loop's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.common.clock import monotonic_s
from services.common.errors import BriskError
from services.worker.admission import Admission
from services.worker.ports import Engine, Job
from services.worker.stream import TokenStream

_RETRY_AFTER_S_MIN: Final = 0.1
_RETRY_AFTER_S_MAX: Final = 60.0
_FIRST_GUESS_S: Final = 2.0  # how long a sequence takes, before any has ended
_WEIGHT: Final = 0.2  # of the newest duration in the running mean


@dataclass(slots=True, kw_only=True)
class _Open:
    job: Job
    stream: TokenStream
    opened_at_s: float
    is_admitted: bool


class Sequences:
    """Owned by the event loop. Each opened sequence ends exactly once, whatever happens."""

    def __init__(
        self, engine: Engine, admission: Admission, *, slots: int, changed: Callable[[], None]
    ) -> None:
        """Call `changed` whenever the instance turns busy or idle."""
        self._engine = engine
        self._admission = admission
        self._slots = slots
        self._changed = changed
        self._open: dict[str, _Open] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._idle_since_s = monotonic_s()
        self._duration_s = _FIRST_GUESS_S

    @property
    def running(self) -> int:
        """Sequences being decoded."""
        return self._admission.running

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._admission.waiting

    @property
    def idle_s(self) -> float | None:
        """Seconds since the last sequence ended, None while there is any."""
        return monotonic_s() - self._idle_since_s if self._idle.is_set() else None

    def refuse_if_full(self) -> None:
        """Raise ResourceExhaustedError (QUEUE_FULL) if `open` would, before work is put into it."""
        self._admission.refuse_if_full(retry_after_s=self._retry_after_s())

    def open(
        self, ticket: str, kv_bytes: int, job_for: Callable[[TokenStream], Job]
    ) -> TokenStream:
        """Admit a sequence or let it wait; its tokens come out of the stream that is returned.

        `job_for` makes the job whose sink is that stream. Raises ResourceExhaustedError
        (QUEUE_FULL, INSUFFICIENT_MEMORY).
        """
        is_admitted = self._admission.enter(ticket, kv_bytes, retry_after_s=self._retry_after_s())
        stream = TokenStream(
            asyncio.get_running_loop(),
            wake=self._engine.wake,
            ended=partial(self._on_end, ticket),
        )
        job = job_for(stream)
        self._open[ticket] = _Open(
            job=job, stream=stream, opened_at_s=monotonic_s(), is_admitted=is_admitted
        )
        if self._idle.is_set():
            self._idle.clear()
            self._changed()
        if is_admitted:
            self._engine.add(job)
        return stream

    def close(self, ticket: str, error: BriskError | None = None) -> None:
        """End a sequence whose client has left, within one decode step. Ended ones are ignored."""
        opened = self._open.get(ticket)
        if opened is None:
            return
        if opened.is_admitted:
            self._engine.cancel(ticket, error)
        else:
            opened.stream.fail(error)

    def abort_all(self, error: BriskError) -> None:
        """Tell all clients `error` at once, without waiting for a step under way to end."""
        for ticket, opened in tuple(self._open.items()):
            self._engine.cancel(ticket, error)
            opened.stream.fail(error)

    async def wait_idle(self) -> None:
        """Return once there is no sequence."""
        await self._idle.wait()

    def audit(self) -> None:
        """Raise RuntimeError unless the books add up."""
        self._admission.audit()

    def _on_end(self, ticket: str) -> None:
        opened = self._open.pop(ticket)
        if opened.is_admitted:
            lasted_s = monotonic_s() - opened.opened_at_s
            self._duration_s += _WEIGHT * (lasted_s - self._duration_s)
        for admitted in self._admission.leave(ticket):
            self._open[admitted].is_admitted = True
            self._engine.add(self._open[admitted].job)
        if not self._open:
            self._idle_since_s = monotonic_s()
            self._idle.set()
            self._changed()

    def _retry_after_s(self) -> float:
        """Return when a place in the queue should be free: one sequence of some slot ends."""
        return min(max(self._duration_s / self._slots, _RETRY_AFTER_S_MIN), _RETRY_AFTER_S_MAX)
