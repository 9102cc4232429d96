"""What the simulator asks of a scheduler, and the product's core as one that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.common.model import ModelRef, Tier
from services.scheduler import events
from services.scheduler.core import decide, new_state
from services.scheduler.deployment import Deployment
from services.scheduler.residency import Stored
from services.scheduler.state import Limits, State
from sim.facts import Deed, Happening, Moved, StoreTold, TierChanged


class Scheduler(Protocol):
    """Decides; what it decided is done by the world, in order."""

    name: str
    hears_lines: bool  # how long routers' lines are; else each request in line asks it

    def decide(self, happening: Happening) -> Sequence[Deed]:
        """Return what is to be done about `happening`."""


class Brisk:
    """The core that runs in the service, fed with exactly what the service feeds it."""

    name = "brisk"
    hears_lines = True

    def __init__(self, limits: Limits | None = None) -> None:
        self.state: State = new_state(epoch=1, now_s=0.0, limits=limits)
        self._models: dict[str, Deployment] = {}
        self._stored: dict[tuple[str, str], Stored] = {}  # by node and model

    def decide(self, happening: Happening) -> Sequence[Deed]:
        """Return the core's actions."""
        event: events.Event
        match happening:
            case Moved():
                return ()
            case StoreTold():
                event = self._store_told(happening)
            case TierChanged():
                event = self._tier_changed(happening)
            case events.DeploymentPut():
                self._models[happening.deployment.name] = happening.deployment
                event = happening
            case _:
                event = happening
        self.state, deeds = decide(self.state, event)
        return deeds

    def _store_told(self, told: StoreTold) -> events.StoreReported:
        for name in told.on_ssd:
            self._stored[told.node_id, name] = Stored(self._ref(name))
        stored = tuple(self._stored[told.node_id, name] for name in told.on_ssd)
        return events.StoreReported(now_s=told.now_s, node_id=told.node_id, stored=stored)

    def _tier_changed(self, told: TierChanged) -> events.StoreChanged:
        key, ref = (told.node_id, told.model), self._ref(told.model)
        before = self._stored.pop(key, Stored(ref, 0, is_on_ssd=False))
        if told.tier is Tier.SSD:
            after = before._replace(is_on_ssd=told.is_there)
        else:
            size = self._models[told.model].model.weight_bytes
            after = before._replace(dram_bytes=size if told.is_there else 0)
        if not (after.is_on_ssd or after.dram_bytes):
            return events.StoreChanged(now_s=told.now_s, node_id=told.node_id, removed=(ref,))
        self._stored[key] = after
        return events.StoreChanged(now_s=told.now_s, node_id=told.node_id, stored=(after,))

    def _ref(self, name: str) -> ModelRef:
        return self._models[name].model.ref
