"""How often a process that dies is started again, and how soon: pure, no clock inside."""

from __future__ import annotations

from collections import deque
from typing import Final

RESTARTS_MAX: Final = 5
WINDOW_S: Final = 60.0
PAUSE_FIRST_S: Final = 0.2
PAUSE_S_MAX: Final = 5.0


class RestartLimit:
    """At most five restarts a minute, each pause twice the one before."""

    def __init__(self) -> None:
        self._restarts_s: deque[float] = deque(maxlen=RESTARTS_MAX)

    def next_pause_s(self, now_s: float) -> float | None:
        """Count a death at `now_s`; return the pause before the restart, or None to give up."""
        while self._restarts_s and now_s - self._restarts_s[0] >= WINDOW_S:
            self._restarts_s.popleft()
        if len(self._restarts_s) == RESTARTS_MAX:
            return None
        pause_s = min(PAUSE_FIRST_S * 2.0 ** len(self._restarts_s), PAUSE_S_MAX)
        self._restarts_s.append(now_s)
        return pause_s
