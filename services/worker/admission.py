"""Which sequences of an instance are decoded, wait or are refused: pure, first come first served.

A sequence needs a slot. Where each sequence has memory of its own, it needs room for the keys and
values of all its tokens, too: room is set aside when it is admitted, so that it cannot run out
half-way. Where sequences share memory in blocks, the device's thread gives them blocks as they
grow, and lets some wait if there are too few; here it only counts that each could fit alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from services.common.errors import Reason, ResourceExhaustedError


@dataclass(frozen=True, slots=True)
class _Waiting:
    ticket: str
    kv_bytes: int


class Admission:
    """The slots and the key/value budget of one instance. Owned by the event loop."""

    def __init__(
        self, *, slots: int, kv_bytes: int, waiting_max: int, shares_memory: bool = False
    ) -> None:
        """Set nothing aside if the instance `shares_memory` among its sequences."""
        self._slots = slots
        self._shares_memory = shares_memory
        self._kv_bytes = kv_bytes
        self._kv_free = kv_bytes
        self._waiting_max = waiting_max
        self._running: dict[str, int] = {}
        self._waiting: deque[_Waiting] = deque()

    @property
    def running(self) -> int:
        """Sequences admitted."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is no sequence at all."""
        return not self._running and not self._waiting

    def enter(self, ticket: str, kv_bytes: int, *, retry_after_s: float) -> bool:
        """Admit `ticket` and return True, or queue it and return False.

        Raises ResourceExhaustedError: INSUFFICIENT_MEMORY if it could never be admitted,
        QUEUE_FULL with `retry_after_s` if the queue is full; then nothing has changed.
        """
        if kv_bytes > self._kv_bytes:
            raise ResourceExhaustedError(
                f"the sequence's key/value cache needs {kv_bytes} bytes, "
                f"the instance has {self._kv_bytes}",
                reason=Reason.INSUFFICIENT_MEMORY,
                metadata={
                    "needed_bytes": str(kv_bytes),
                    "available_bytes": str(self._kv_bytes),
                },
            )
        if not self._waiting and self._fits(kv_bytes):
            self._admit(_Waiting(ticket, kv_bytes))
            return True
        self.refuse_if_full(retry_after_s=retry_after_s)
        self._waiting.append(_Waiting(ticket, kv_bytes))
        return False

    def refuse_if_full(self, *, retry_after_s: float) -> None:
        """Raise ResourceExhaustedError (QUEUE_FULL) if nobody else can wait now."""
        if len(self._waiting) >= self._waiting_max:
            raise ResourceExhaustedError(
                f"at most {self._waiting_max} sequences wait for an instance, all places taken",
                reason=Reason.QUEUE_FULL,
                retry_after_s=retry_after_s,
            )

    def leave(self, ticket: str) -> tuple[str, ...]:
        """Remove `ticket`, wherever it is, and return those whose turn has come, in order."""
        if (kv_bytes := self._running.pop(ticket, None)) is not None:
            self._kv_free += kv_bytes
        else:
            self._waiting = deque(w for w in self._waiting if w.ticket != ticket)
        admitted: list[str] = []
        # Strictly in order: a short sequence must not overtake a long one for ever.
        while self._waiting and self._fits(self._waiting[0].kv_bytes):
            waiting = self._waiting.popleft()
            self._admit(waiting)
            admitted.append(waiting.ticket)
        return tuple(admitted)

    def audit(self) -> None:
        """Raise RuntimeError unless the budget adds up."""
        if not self._shares_memory and self._kv_free < 0:
            raise RuntimeError("key/value budget is overdrawn")
        if self._kv_free + sum(self._running.values()) != self._kv_bytes:
            raise RuntimeError("key/value budget does not add up")

    def _fits(self, kv_bytes: int) -> bool:
        has_room = self._shares_memory or kv_bytes <= self._kv_free
        return len(self._running) < self._slots and has_room

    def _admit(self, waiting: _Waiting) -> None:
        self._running[waiting.ticket] = waiting.kv_bytes
        self._kv_free -= waiting.kv_bytes
