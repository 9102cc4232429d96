"""When a failed call is tried again: pure rules and one small budget, no I/O.

Only UNAVAILABLE is retried, only before the first message has arrived, at most three attempts,
never before the server's own RetryInfo, and only while the budget lasts: when most calls fail,
retrying them only adds to the load that made them fail.
"""

from __future__ import annotations

from dataclasses import dataclass

from brisk_client.errors import BriskError, UnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits of automatic retries."""

    attempts_max: int = 3
    backoff_first_s: float = 0.1
    backoff_factor: float = 3.0
    jitter: float = 0.2  # a pause is stretched or, without RetryInfo, shrunk by up to this part
    pause_s_max: float = 10.0  # a server that asks for more gets no automatic retry


class RetryBudget:
    """gRPC's retry throttle: each failure costs a token, each success earns a tenth back.

    Retries are allowed while more than half of the tokens are left.
    """

    TOKENS_MAX = 10.0
    EARNED_PER_SUCCESS = 0.1

    def __init__(self) -> None:
        self._tokens = self.TOKENS_MAX

    def succeeded(self) -> None:
        """Count a call that went well."""
        self._tokens = min(self._tokens + self.EARNED_PER_SUCCESS, self.TOKENS_MAX)

    def failed(self) -> None:
        """Count a call that ended with UNAVAILABLE."""
        self._tokens = max(self._tokens - 1.0, 0.0)

    @property
    def allows(self) -> bool:
        """Return whether a retry may be made now."""
        return self._tokens > self.TOKENS_MAX / 2


def pause_s(
    policy: RetryPolicy, error: BriskError, *, attempt: int, remaining_s: float, noise: float
) -> float | None:
    """Return how long to pause before the next attempt, or None to give up.

    `attempt` counts the attempts made, from 1; `noise` is uniform in [-1, 1].
    """
    if not isinstance(error, UnavailableError) or attempt >= policy.attempts_max:
        return None
    if error.retry_after_s is None:
        backoff = policy.backoff_first_s * policy.backoff_factor ** (attempt - 1)
        pause = backoff * (1 + policy.jitter * noise)
    else:
        pause = error.retry_after_s * (1 + policy.jitter * abs(noise))  # never too early
    if pause > policy.pause_s_max or pause >= remaining_s:
        return None
    return pause
