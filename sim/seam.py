"""What the simulator asks of a scheduler, and the product's core as one that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.scheduler.actions import Explain, Outcome
from services.scheduler.core import decide, new_state
from services.scheduler.state import Limits, State
from sim.facts import Deed, Happening, Moved, TierChanged


class Scheduler(Protocol):
    """Decides; what it decided is done by the world, in order."""

    name: str

    def decide(self, happening: Happening) -> Sequence[Deed]:
        """Return what is to be done about `happening`."""


class Brisk:
    """The core that runs in the service, fed with exactly what the service feeds it."""

    name = "brisk"

    def __init__(self, limits: Limits | None = None) -> None:
        self.state: State = new_state(epoch=1, now_s=0.0, limits=limits)

    def decide(self, happening: Happening) -> Sequence[Deed]:
        """Return the core's actions."""
        if isinstance(happening, TierChanged | Moved):
            return ()
        self.state, deeds = decide(self.state, happening)
        return [each for each in deeds if not isinstance(each, Explain | Outcome)]  # for people
