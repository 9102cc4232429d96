"""Try again what may pass, a bounded number of times, and stop at once when told to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from services.storemgr.ports import JobStoppedError
from services.storemgr.remotes.pace import Backoff
from services.storemgr.remotes.refusals import PassingError, unavailable

_LOOK_S: Final = 0.1  # how soon a pause notices that it is not wanted any more

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often something is tried. `over` ends the pauses of all who share it."""

    backoff: Backoff
    is_stopped: Callable[[], bool]
    over: threading.Event

    def run(self, what: str, work: Callable[[bool], Result]) -> Result:
        """Return what `work` returns, which hears whether this is the last try.

        Raises UnavailableError (SOURCE_UNAVAILABLE) naming `what` when it failed too often,
        JobStoppedError, and what `work` raises beside PassingError.
        """
        tries = 0
        while True:
            tries += 1
            self.check()
            try:
                return work(tries >= self.backoff.tries_max)
            except PassingError as fault:
                if tries >= self.backoff.tries_max:
                    raise unavailable(what, fault.problem, tries) from fault
                chance = random.random()  # noqa: S311 - only spreads the pauses
                self._wait(self.backoff.pause_s(tries, chance, fault.retry_after_s))

    def check(self) -> None:
        """Raise JobStoppedError if it is no use to go on."""
        if self.is_stopped() or self.over.is_set():
            raise JobStoppedError

    def _wait(self, pause_s: float) -> None:
        while pause_s > 0 and not self.over.wait(min(pause_s, _LOOK_S)):
            self.check()
            pause_s -= _LOOK_S
