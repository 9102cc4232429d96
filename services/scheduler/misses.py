"""How far off predictions were: predicted minus actual, phase by phase."""

from __future__ import annotations

from typing import Final, NamedTuple

from services.common.model import StartPhase, StartReport
from services.scheduler.choice import Candidate

MOVED: Final = (StartPhase.FETCH, StartPhase.LOAD)


class Miss(NamedTuple):
    """What was predicted of a part of a start, and what it took."""

    phase: str
    predicted_s: float
    actual_s: float

    @property
    def error_s(self) -> float:
        """Return predicted minus actual."""
        return self.predicted_s - self.actual_s


def misses(expected: Candidate, report: StartReport) -> tuple[Miss, ...]:
    """Return the parts that the worker has measured: transfer with its wait, init, both together.

    The load was ordered when there was room, so the time until then is no part of it.
    """
    estimate = expected.estimate
    parts = (
        ("transfer", (estimate.queue_ms + estimate.transfer_ms) / 1e3, spent_s(report, *MOVED)),
        ("init", estimate.init_ms / 1e3, spent_s(report, StartPhase.INIT)),
    )
    found = [Miss(phase, said_s, took_s) for phase, said_s, took_s in parts if took_s is not None]
    if len(found) == len(parts):
        total = Miss("start", sum(e.predicted_s for e in found), sum(e.actual_s for e in found))
        found.append(total)
    return tuple(found)


def spent_s(report: StartReport, *phases: StartPhase) -> float | None:
    """Return the time spent in `phases`; None if none of them was measured."""
    spent = [each.duration_s for each in report.phases if each.phase in phases]
    return sum(spent) if spent else None
