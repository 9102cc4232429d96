"""How a request got to its first token, in phases that add up to the time it took."""

from __future__ import annotations

from services.common.clock import monotonic_s
from services.common.model import PhaseDuration, StartPhase, StartReport, Tier


class Milestones:
    """When a request arrived, got its seat and its first token."""

    def __init__(self) -> None:
        self._arrived_s = self._seated_s = monotonic_s()
        self._start: StartReport | None = None

    def seated(self, start: StartReport | None) -> None:
        """Note a seat; `start` is what the scheduler said, if it was asked."""
        self._seated_s = monotonic_s()
        self._start = start or self._start

    def report(self) -> StartReport:
        """Return the report, now that the first token is here."""
        return report(
            start=self._start,
            waited_s=self._seated_s - self._arrived_s,
            first_token_s=monotonic_s() - self._seated_s,
        )


def report(*, start: StartReport | None, waited_s: float, first_token_s: float) -> StartReport:
    """Return the scheduler's phases with the router's own time added.

    Whatever of `waited_s` the scheduler's phases do not account for was spent in a queue: in line
    for a slot, or looking for a leader. So the phases add up to what the caller waited.
    """
    first_token = PhaseDuration(phase=StartPhase.FIRST_TOKEN, duration_s=first_token_s)
    if start is None or not start.cold:
        queue = PhaseDuration(phase=StartPhase.QUEUE, duration_s=waited_s)
        return StartReport(cold=False, source=Tier.DEVICE, phases=(queue, first_token))
    rest = tuple(p for p in start.phases if p.phase is not StartPhase.QUEUE)
    queued_s = sum(p.duration_s for p in start.phases if p.phase is StartPhase.QUEUE)
    unaccounted_s = waited_s - queued_s - sum(p.duration_s for p in rest)
    queue = PhaseDuration(phase=StartPhase.QUEUE, duration_s=queued_s + max(0.0, unaccounted_s))
    return StartReport(cold=True, source=start.source, phases=(queue, *rest, first_token))
