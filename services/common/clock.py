"""The only clock access: one clock for intervals, one for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    """Return seconds on a clock that never goes back. Only differences mean anything."""
    return time.monotonic()


def wall_clock() -> datetime:
    """Return the time of day in UTC, for people; never subtract two of them."""
    return datetime.now(UTC)
