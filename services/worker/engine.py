"""The decode loop of one device: its own thread, step after step over all models there.

All state belongs to the thread; others send it orders. A sequence that fails takes nobody with it:
not its neighbours, not the worker. Knows nothing of torch: models come as `Decoder`s.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Never, TypeAlias

from services.common.clock import monotonic_s
from services.common.errors import (
    BriskError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from services.worker.ports import Decoder, Job
from services.worker.roster import Roster

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


class DeviceEngine:
    """An Engine: see `ports`. `start` it once, `close` it once."""

    def __init__(self, device_id: str) -> None:
        # Unbounded, but never long: each order comes from a load or a sequence already admitted.
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._rosters: dict[str, Roster] = {}
        self._begun = 0  # sequences so far
        self._is_stopping = False
        self._step_began_s: float | None = None  # None between steps
        # Gets the exception that ended the thread, which is our bug; else stays open.
        self.death: Future[Never] = Future()
        self._thread = threading.Thread(
            target=self._run_or_die, name=f"engine {device_id}", daemon=True
        )

    @property
    def step_s(self) -> float:
        """Return for how long the step under way has lasted, 0 if there is none. Any thread."""
        began_s = self._step_began_s
        return 0.0 if began_s is None else monotonic_s() - began_s

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
        for roster in self._rosters.values():
            roster.close(shutting_down())
        self._rosters.clear()

    def _step_each(self) -> bool:
        """Give each sequence that can go on one step; return whether any could."""
        has_moved = False
        for roster in tuple(self._rosters.values()):
            for turns in roster.plan():
                has_moved = True
                self._step_began_s = monotonic_s()
                roster.run(turns)
                self._step_began_s = None
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
                any(roster.end(ticket, error) for roster in self._rosters.values())
            case _Load(instance_id, decoder):
                self._rosters[instance_id] = Roster(decoder)
            case _Unload(instance_id, done):
                self._drop(instance_id)
                done()
            case _Stop():
                self._is_stopping = True
            case _Wake():
                pass  # being awake is enough

    def _begin(self, job: Job) -> None:
        roster = self._rosters.get(job.instance_id)
        if self._is_stopping or roster is None:
            job.sink.end(shutting_down() if self._is_stopping else _gone())
            return
        self._begun += 1
        roster.begin(job, self._begun)

    def _drop(self, instance_id: str) -> None:
        roster = self._rosters.pop(instance_id, None)
        if roster is not None:
            roster.close(_gone())
            gc.collect()  # modules of a model may refer to one another in circles


def shutting_down() -> UnavailableError:
    """Return what a sequence ends with that the worker cannot finish before it stops."""
    return UnavailableError(
        "the worker is shutting down", reason=Reason.SHUTTING_DOWN, retry_after_s=_RETRY_AFTER_S
    )


def _gone() -> FailedPreconditionError:
    return FailedPreconditionError("the instance is not here", reason=Reason.INSTANCE_GONE)
