"""The comparison policies: each is one function from a cluster to where a model starts.

random         any device that has room or something idle to evict: availability decides
locality       the nodes of the best tier only; while their devices are busy, it waits
preempt        the shortest start; if a busy device is in the way, it is killed and restarted
               (as Shepherd* in the ServerlessLLM paper)
serverlessllm  the shortest start; if a busy device is in the way, it is migrated, where that
               is estimated to be faster than all else (the paper's section 5)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.common.model import Tier
from sim.policies.cluster import Cluster, Kept, Slot

RESTED_S: Final = 1.0  # an instance that serves for less is not preempted or migrated
RANDOM_TRIES: Final = 4  # devices without the model that are compared as well


@dataclass(frozen=True, slots=True)
class Place:
    """Load here, after evicting what is idle as far as needed."""

    device: Slot


@dataclass(frozen=True, slots=True)
class Move:
    """Migrate an instance to another device, then load where it was."""

    victim: Kept
    to: Slot


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill an instance with its sequences, then load where it was."""

    victim: Kept


Choice = Place | Move | Kill | None  # None: wait
Policy = Callable[[Cluster, str, float], Choice]


def by_availability(cluster: Cluster, deployment: str, _: float) -> Choice:
    """Return any device with room."""
    slot = cluster.any_with_room(cluster.need_bytes(deployment))
    return None if slot is None else Place(slot)


def by_locality(cluster: Cluster, deployment: str, now_s: float) -> Choice:
    """Return a device of a node that has the model in the best tier anyone has it in."""
    need_bytes = cluster.need_bytes(deployment)
    for tier in (Tier.DRAM, Tier.SSD):
        nodes = cluster.holders(deployment, tier)
        if not nodes:
            continue
        slots = list(cluster.with_room(nodes, need_bytes))
        if not slots:
            return None
        return Place(
            min(slots, key=lambda each: (cluster.start_s(each, deployment, now_s), each.key))
        )
    return by_availability(cluster, deployment, now_s)


def _best_place(
    cluster: Cluster, deployment: str, now_s: float, besides: str = ""
) -> tuple[float, Slot] | None:
    """Return the device with room where a model starts soonest, and how soon."""
    need_bytes = cluster.need_bytes(deployment)
    found: list[tuple[float, Slot]] = []
    for tier in (Tier.DRAM, Tier.SSD):
        nodes = [each for each in cluster.holders(deployment, tier) if each != besides]
        found.extend(
            (cluster.start_s(slot, deployment, now_s), slot)
            for slot in cluster.with_room(nodes, need_bytes)
        )
    for _ in range(RANDOM_TRIES):
        slot_or_none = cluster.any_with_room(need_bytes)
        if slot_or_none is None:
            break
        if slot_or_none.key.node_id != besides:
            found.append((cluster.start_s(slot_or_none, deployment, now_s), slot_or_none))
    return min(found, key=lambda each: (each[0], each[1].key), default=None)


def _victims(cluster: Cluster, deployment: str, now_s: float) -> list[Kept]:
    """Return busy instances, each of which alone would make room on a node of a good tier."""
    need_bytes = cluster.need_bytes(deployment)
    slots = (
        slot
        for tier in (Tier.DRAM, Tier.SSD)
        for node_id in cluster.holders(deployment, tier)
        for slot in cluster.nodes.get(node_id, ())
    )
    return [
        kept
        for slot in slots
        for kept in slot.instances.values()
        if kept.is_busy
        and kept.deployment != deployment
        and now_s - kept.ready_s >= RESTED_S
        and slot.reclaimable_bytes + kept.memory_bytes >= need_bytes
    ]


def with_preemption(cluster: Cluster, deployment: str, now_s: float) -> Choice:
    """Return the place of the shortest start, killing what is in the way.

    A victim must have a place to begin again, or preemptions would go on for ever.
    """
    place, best = _contest(cluster, deployment, now_s, is_charged=False)
    if best is not None:
        return Kill(best.victim)
    return None if place is None else Place(place)


def with_migration(cluster: Cluster, deployment: str, now_s: float) -> Choice:
    """Return the place of the shortest start, counting the time to migrate what is in the way."""
    place, best = _contest(cluster, deployment, now_s, is_charged=True)
    if best is not None:
        return best
    return None if place is None else Place(place)


def _contest(
    cluster: Cluster, deployment: str, now_s: float, *, is_charged: bool
) -> tuple[Slot | None, Move | None]:
    """Return the best place with room, and the move that would be faster than it, if any.

    `is_charged`: a start at a victim's place begins when the victim is ready elsewhere.
    """
    place = _best_place(cluster, deployment, now_s)
    best: tuple[float, float, str, Move] | None = None
    destinations: dict[tuple[str, str], tuple[float, Slot] | None] = {}
    for victim in _victims(cluster, deployment, now_s):
        start_s = cluster.start_s(victim.device, deployment, now_s)
        if place is not None and start_s >= place[0]:
            continue
        home = victim.device.key.node_id
        asked = (victim.deployment, home)
        if asked not in destinations:
            destinations[asked] = _best_place(cluster, victim.deployment, now_s, besides=home)
        destination = destinations[asked]
        if destination is None:
            continue
        cost_s = start_s + (destination[0] if is_charged else 0.0)
        # Of equals, the one that has done the least work.
        ranked = (cost_s, -victim.ready_s, victim.instance_id, Move(victim, destination[1]))
        if best is None or ranked[:3] < best[:3]:
            best = ranked
    is_better = best is not None and (place is None or best[0] < place[0])
    return None if place is None else place[1], best[3] if best and is_better else None


POLICIES: Final[dict[str, Policy]] = {
    "random": by_availability,
    "locality": by_locality,
    "preempt": with_preemption,
    "serverlessllm": with_migration,
}
