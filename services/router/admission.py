"""Who gets in, who waits, and who is refused at once with a time to come back.

Two limits: requests in flight in this router, and requests of one model that wait for a slot or
for a start. A permit lives as long as the stream that it admitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from services.common.clock import monotonic_s
from services.common.errors import Reason, ResourceExhaustedError
from services.common.limits import AdmissionGate

RETRY_S_MIN = 0.05
RETRY_S_MAX = 30.0
_WINDOW = 64  # completions remembered


class FreeingRate:
    """How fast places become free, and when the next refused caller may expect one.

    Callers refused since the last place became free are given later and later times, one mean
    gap apart, so that they don't all come back for the same place.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._freed_s: deque[float] = deque(maxlen=_WINDOW)
        self._refused = 0

    def begin(self) -> None:
        """Start anew: there was nobody before now, so nothing before now counts."""
        self._freed_s.clear()
        self._freed_s.append(self._clock())
        self._refused = 0

    def freed(self) -> None:
        """Note that a place became free."""
        self._freed_s.append(self._clock())
        self._refused = max(0, self._refused - 1)

    def refuse(self) -> float:
        """Return the seconds after which the caller being refused may expect a place."""
        self._refused += 1
        gap_s = RETRY_S_MIN
        if self._freed_s:
            # Up to now, not to the last one: a standstill makes the gap grow.
            gap_s = (self._clock() - self._freed_s[0]) / max(1, len(self._freed_s) - 1)
        return min(max(gap_s * self._refused, RETRY_S_MIN), RETRY_S_MAX)


class Admission:
    """The router's permits."""

    def __init__(
        self, *, requests_max: int, queue_max: int, clock: Callable[[], float] = monotonic_s
    ) -> None:
        self._queue_max = queue_max
        self._clock = clock
        self._requests = _Place(requests_max, "requests in flight", clock)
        self._queues: dict[str, _Place] = {}  # only models that someone waits for
        self._waiting = 0

    @property
    def requests(self) -> int:
        """Requests in flight, waiting ones included."""
        return self._requests.used

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot or a start."""
        return self._waiting

    @contextmanager
    def admit(self, count: int = 1) -> Iterator[None]:
        """Hold `count` permits for the block, one for each answer's whole stream.

        Raises ResourceExhaustedError (QUEUE_FULL) at once.
        """
        with ExitStack() as permits:
            for _ in range(count):
                permits.enter_context(self._requests.hold())
            yield

    @contextmanager
    def queue(self, model: str) -> Iterator[None]:
        """Hold a place in a model's queue for the block.

        Raises ResourceExhaustedError (QUEUE_FULL) at once.
        """
        place = self._queues.get(model)
        if place is None:
            place = self._queues[model] = _Place(
                self._queue_max, f"requests waiting for {model}", self._clock
            )
        try:
            with place.hold():
                self._waiting += 1
                try:
                    yield
                finally:
                    self._waiting -= 1
        finally:
            if not place.used:
                self._queues.pop(model, None)


class _Place:
    """A bounded number of places and the rate at which they become free."""

    def __init__(self, limit: int, what: str, clock: Callable[[], float]) -> None:
        self._gate = AdmissionGate(limit, what=what)
        self._rate = FreeingRate(clock)
        self._what = what

    @property
    def used(self) -> int:
        return self._gate.used

    @contextmanager
    def hold(self) -> Iterator[None]:
        if not self._gate.try_enter():
            raise ResourceExhaustedError(
                f"{self._what} are limited to {self._gate.limit}, all taken",
                reason=Reason.QUEUE_FULL,
                retry_after_s=self._rate.refuse(),
            )
        if self._gate.used == 1:
            self._rate.begin()
        try:
            yield
        finally:
            self._gate.leave()
            self._rate.freed()
