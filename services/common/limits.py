"""Admission: so many at once, and everyone else is refused at once with a time to come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.common.errors import Reason, ResourceExhaustedError


class AdmissionGate:
    """A fixed number of permits. A permit lives as long as the stream that it admitted."""

    def __init__(self, limit: int, *, what: str = "requests") -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1. Given: {limit}")
        self._limit = limit
        self._what = what
        self._used = 0

    @property
    def limit(self) -> int:
        """Permits in all."""
        return self._limit

    @property
    def used(self) -> int:
        """Permits taken."""
        return self._used

    def try_enter(self) -> bool:
        """Take a permit and return True, or return False if none is left. Pair with `leave`."""
        if self._used >= self._limit:
            return False
        self._used += 1
        return True

    def leave(self) -> None:
        """Give a permit back."""
        if self._used == 0:
            raise RuntimeError("leave() without try_enter()")
        self._used -= 1

    @contextmanager
    def enter(self, *, retry_after_s: float = 1.0) -> Iterator[None]:
        """Hold a permit for the block. Raises ResourceExhaustedError (QUEUE_FULL) at once."""
        if not self.try_enter():
            raise ResourceExhaustedError(
                f"at most {self._limit} {self._what} at a time, all taken",
                reason=Reason.QUEUE_FULL,
                retry_after_s=retry_after_s,
            )
        try:
            yield
        finally:
            self.leave()
