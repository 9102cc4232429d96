"""What the simulated cluster tells and can do beyond the product's own events and actions.

The comparison policies use all of it. A scheduler that has no use for a fact ignores it.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.model import Tier
from services.scheduler.actions import Action, StartLoad
from services.scheduler.events import Event


@dataclass(frozen=True, slots=True)
class TierChanged:
    """A node's store has got a model in a tier, or has lost it."""

    now_s: float
    node_id: str
    model: str
    tier: Tier
    is_there: bool


@dataclass(frozen=True, slots=True)
class StoreTold:
    """A node's store has told all that it has; its memory is empty."""

    now_s: float
    node_id: str
    on_ssd: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """A migration is over: its sequences run at the destination, or had ended before."""

    now_s: float
    instance_id: str  # the one that they left


@dataclass(frozen=True, slots=True)
class Migrate:
    """Load a model elsewhere, move an instance's sequences there, then unload the instance."""

    instance_id: str
    load: StartLoad  # the destination, answered as any load; Moved follows


@dataclass(frozen=True, slots=True)
class Preempt:
    """Kill an instance; its sequences begin again somewhere. Answered by UnloadSucceeded."""

    instance_id: str


Happening = Event | TierChanged | StoreTold | Moved
Deed = Action | Migrate | Preempt
