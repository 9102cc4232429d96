"""The ways to start a model on a device, each with its estimate: what policies choose from.

Every function looks at one device, or yields a number of devices that does not grow with the
cluster. Nothing here changes the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from services.common.model import Tier
from services.common.placement import InstanceState
from services.scheduler.choice import Ask, Candidate, Estimate, Reach, Way
from services.scheduler.first_fit import DeviceKey
from services.scheduler.instance import Exit, Instance
from services.scheduler.ledger import DeviceLedger
from services.scheduler.state import State
from services.scheduler.victims import cheapest

DRAM_MAX: Final = 8  # nodes looked at that have some of the model in DRAM
PER_NODE: Final = 2  # devices of one node
SSD_MAX: Final = 8  # and on SSD, where not all have it
RANKS_MAX: Final = 2  # of nodes with room: the fastest, and those done soonest
IDLE_MAX: Final = 12  # instances looked at that are idle for longest
FALLBACKS_MAX: Final = 4
LARGE_MAX: Final = 128  # devices looked at to wait at, when somebody waits at each
CANNOT_MIGRATE: Final = "workers cannot migrate sequences"

_FREE_IO: Final = frozenset({Tier.DRAM, Tier.DEVICE})  # whose bytes pass no queue of the node
_MS: Final = 1000.0
_RELOAD_HOLDS_S: Final = 10.0  # an estimate of what an eviction costs
_STAYS: Final = 3.0  # times its start that an instance stays which was evicted lately


def at(state: State, ask: Ask, key: DeviceKey) -> Candidate | None:
    """Return the gentlest way to start on a device: room, eviction, or waiting. None: too small."""
    device = state.ledger.devices[key]
    if not device.is_open or device.memory_bytes < ask.need_bytes:
        return None
    soon_bytes = device.soon_bytes(ask.claimant)
    if soon_bytes >= ask.need_bytes:
        return free(state, ask, device)
    if soon_bytes + device.idle_bytes >= ask.need_bytes:
        found = evict(state, ask, device)
        if found is not None:
            return found
    return wait(state, ask, device)


def free(state: State, ask: Ask, device: DeviceLedger) -> Candidate:
    """Return the start on a device that has room, or will have once its unloads are done."""
    is_now = device.free_bytes(ask.claimant) >= ask.need_bytes
    room_s = 0.0 if is_now else state.estimates.unload_s()
    return _candidate(state, ask, device.key, Way.FREE, room_s=room_s)


def evict(state: State, ask: Ask, device: DeviceLedger) -> Candidate | None:
    """Return the start on a device where the cheapest set of idle instances makes room.

    None if some of them were evicted a moment ago and have only just come back.
    """
    idle = [
        each
        for each in device.instances.values()
        if each.idle_since_s is not None and may_go(state, each, ask.now_s)
    ]
    lacking_bytes = ask.need_bytes - device.soon_bytes(ask.claimant)
    if sum(each.memory_bytes for each in idle) < lacking_bytes:
        return None
    victims, loss_ms = cheapest(
        [(each, loss_ms_of(state, each, ask.now_s)) for each in idle], lacking_bytes
    )
    return _candidate(
        state,
        ask,
        device.key,
        Way.EVICT,
        room_s=state.estimates.unload_s(),
        loss_ms=loss_ms,
        victims=victims,
    )


def wait(state: State, ask: Ask, device: DeviceLedger) -> Candidate:
    """Return the start on a device once enough of its busy instances are likely to be idle."""
    lacking_bytes = ask.need_bytes - device.soon_bytes(ask.claimant)
    ends = sorted(
        (free_in_s(state, each, ask.now_s), each.instance_id)
        for each in device.instances.values()
        if not each.is_gone_soon
    )
    victims: list[Instance] = []
    room_s = 0.0
    for end_s, instance_id in ends:
        if lacking_bytes <= 0:
            break
        instance = device.instances[instance_id]
        victims.append(instance)
        lacking_bytes -= instance.memory_bytes
        room_s = end_s
    if lacking_bytes > 0:  # the rest is promised to starts that came before
        room_s += state.estimates.busy_s(ask.deployment)
    loss_ms = sum(loss_ms_of(state, each, ask.now_s) for each in victims)
    room_s += state.estimates.unload_s()
    return _candidate(
        state, ask, device.key, Way.WAIT, room_s=room_s, loss_ms=loss_ms, victims=victims
    )


def migrate(state: State, ask: Ask, device: DeviceLedger) -> Candidate | None:
    """Return the start on a device whose busy instances go on elsewhere.

    Each victim keeps serving until it has started at its destination; then its sequences are
    resumed there. None if there is no room for all of them.
    """
    lacking_bytes = ask.need_bytes - device.soon_bytes(ask.claimant)
    ready = [
        (each, loss_ms_of(state, each, ask.now_s) if each.idle_since_s is not None else 0.0)
        for each in device.instances.values()
        if each.state is InstanceState.READY
    ]
    victims, loss_ms = cheapest(ready, lacking_bytes)
    busy = [each for each in victims if each.idle_since_s is None]
    room_s, taken = 0.0, {device.key}
    destinations: list[DeviceKey] = []
    for victim in busy:
        deployment = state.deployments.get(victim.deployment)
        if deployment is None:
            return None
        inner = Ask(
            claimant="",
            deployment=victim.deployment,
            model=deployment.model,
            need_bytes=victim.memory_bytes,
            now_s=ask.now_s,
            asked_s=ask.now_s,
            avoided={},
        )
        found = [
            candidate
            for key in roomy(state, inner)
            if key not in taken
            and (candidate := at(state, inner, key)) is not None
            and candidate.way is Way.FREE
        ]
        if not found:
            return None
        best = min(found, key=cost)
        taken.add(best.device)
        destinations.append(best.device)
        resume_s = state.estimates.resume_s(deployment.spec.context_tokens_max)
        room_s = max(room_s, best.estimate.total_ms / _MS + resume_s)
    if not victims:
        return None
    made = _candidate(
        state,
        ask,
        device.key,
        Way.MIGRATE,
        room_s=room_s + state.estimates.unload_s(),
        loss_ms=loss_ms,
        victims=victims,
    )
    refused = "" if state.limits.can_migrate else CANNOT_MIGRATE
    return made._replace(destinations=tuple(destinations), refused=refused)


def cost(candidate: Candidate) -> tuple[float, int, DeviceKey]:
    """Return what to choose by: the cost, then how few have to go, then the device's name."""
    return round(candidate.cost_ms, 3), len(candidate.victims), candidate.device


# --- which devices to look at ---


def near(state: State, ask: Ask) -> Iterator[DeviceKey]:
    """Yield the claimed device and those of nodes that have the model in a good tier."""
    if ask.claim is not None:
        yield ask.claim
    ref, turn = ask.model.ref, state.turn
    for node_id in state.residency.in_dram(ref, DRAM_MAX, turn):
        yield from _of_node(state, ask, node_id)
    for node_id in state.residency.on_ssd(ref, SSD_MAX, turn):
        yield from _of_node(state, ask, node_id)


def _of_node(state: State, ask: Ask, node_id: str) -> Iterator[DeviceKey]:
    """Yield the device of a node with the least room that suffices, else some that may get it."""
    fits: tuple[int, DeviceKey] | None = None
    others: list[tuple[float, DeviceKey]] = []
    for key in state.ledger.of_node(node_id):
        device = state.ledger.devices[key]
        free_bytes = device.free_bytes(ask.claimant)
        if free_bytes < ask.need_bytes:
            others.append((_rest_since_s(device), key))
        elif fits is None or free_bytes < fits[0]:
            fits = (free_bytes, key)
    if fits is None:
        yield from (key for _, key in sorted(others)[:PER_NODE])
    else:
        yield fits[1]


def _rest_since_s(device: DeviceLedger) -> float:
    """Return since when the longest idle instance of a device is idle: there little is lost."""
    return min(
        (each.idle_since_s for each in device.instances.values() if each.idle_since_s is not None),
        default=math.inf,
    )


def roomy(state: State, ask: Ask) -> Iterator[DeviceKey]:
    """Yield devices with room: of the fastest nodes, and of those whose loads are done soonest."""
    ledger, need_bytes = state.ledger, ask.need_bytes
    is_found = False
    for index in (ledger.free_at_rest, ledger.free_at_work):
        for key in index.best(need_bytes, ranks=RANKS_MAX):
            is_found = is_found or key.worker_id not in ask.avoided
            yield key
    if not is_found:
        yield from _some(state, ask)


def _some(state: State, ask: Ask) -> Iterator[DeviceKey]:
    """Yield the first devices that have room or soon will: an exact answer, where classes miss."""
    found, key = 0, state.ledger.soon.first(ask.need_bytes)
    while key is not None and found < FALLBACKS_MAX:
        if key.worker_id not in ask.avoided:
            found += 1
            yield key
        key = state.ledger.soon.first(ask.need_bytes, after=key)


def longest_idle(state: State, ask: Ask) -> Iterator[DeviceKey]:
    """Yield devices of the instances that are idle for longest, where evictions make room."""
    ledger = state.ledger
    if not len(ledger.reclaimable):
        return
    is_found = False
    for instance_id in islice(ledger.idle_instances(), IDLE_MAX):
        key = state.instances[instance_id].device
        device = ledger.devices[key]
        if (
            key.worker_id not in ask.avoided
            and device.is_open
            and device.reclaimable_bytes(ask.claimant) >= ask.need_bytes
        ):
            is_found = True
            yield key
    if is_found:
        return
    found, first = 0, ledger.reclaimable.first(ask.need_bytes)
    while first is not None and found < FALLBACKS_MAX:
        if first.worker_id not in ask.avoided:
            found += 1
            yield first
        first = ledger.reclaimable.first(ask.need_bytes, after=first)


def to_wait_at(state: State, ask: Ask) -> DeviceKey:
    """Return the device to wait at: nobody else waits, and much of it could be reclaimed.

    There must be a device that is large enough.
    """
    ledger = state.ledger
    key = ledger.unclaimed.argmax()
    device = ledger.devices[key]
    is_large = device.memory_bytes >= ask.need_bytes
    if is_large and not device.claims and key.worker_id not in ask.avoided:
        return key
    large = list(islice(_large(state, ask.need_bytes), LARGE_MAX))
    devices = [ledger.devices[each] for each in large]
    best = min(
        devices,
        key=lambda device: (
            device.key.worker_id in ask.avoided,
            len(device.claims),
            -device.reclaimable_bytes(),
            device.key,
        ),
    )
    return best.key


def _large(state: State, need_bytes: int) -> Iterator[DeviceKey]:
    key = state.ledger.budgets.first(need_bytes)
    while key is not None:
        yield key
        key = state.ledger.budgets.first(need_bytes, after=key)


# --- figures ---


def may_go(state: State, instance: Instance, now_s: float) -> bool:
    """Whether an idle instance may be evicted for others.

    One that was evicted lately and is back stays for some times as long as its start has taken: so
    models that take turns serve for longer than they load, and the wait for it is bounded.
    """
    limits = state.limits
    if now_s - state.evicted_s.get(instance.deployment, -math.inf) >= limits.rest_s:
        return True
    start_s = _reload_ms(state, instance, now_s) / _MS
    return now_s - instance.ready_s >= min(limits.rest_s, _STAYS * start_s)


def loss_ms_of(state: State, instance: Instance, now_s: float) -> float:
    """Return what evicting an instance is likely to cost those who ask for it next.

    Its own start again, times how likely it is to be asked for within the horizon: one that is
    idle for as long as the horizon already is as likely to be as not.
    """
    start_ms = _reload_ms(state, instance, now_s)
    if instance.idle_since_s is None or now_s <= instance.idle_since_s:
        return start_ms
    horizon_s = state.limits.reuse_s
    return start_ms * horizon_s / (horizon_s + now_s - instance.idle_since_s)


def _reload_ms(state: State, instance: Instance, now_s: float) -> float:
    """Return what a start of an instance's model on its node would take, as of lately."""
    if now_s < instance.reload_until_s:
        return instance.reload_ms
    deployment = state.deployments.get(instance.deployment)
    if deployment is None:
        return 0.0
    model, node_id = deployment.model, instance.device.node_id
    source = state.residency.source(node_id, model.ref, model.weight_bytes)
    start_s = state.estimates.init_s(model.ref)
    start_s += state.estimates.transfer_s(node_id, source.tier, model.ref, source.missing_bytes)
    instance.reload_ms, instance.reload_until_s = start_s * _MS, now_s + _RELOAD_HOLDS_S
    return instance.reload_ms


def free_in_s(state: State, instance: Instance, now_s: float) -> float:
    """Return when an instance is likely to be idle or gone."""
    if instance.idle_since_s is not None:
        return 0.0
    if instance.state is InstanceState.LEAVING and instance.exit is not Exit.DRAINED:
        return state.estimates.unload_s()
    busy_for_s = 0.0 if instance.busy_since_s is None else max(0.0, now_s - instance.busy_since_s)
    left_s = state.estimates.left_s(instance.deployment, busy_for_s)
    if instance.state is InstanceState.LOADING and instance.expected is not None:
        left_s += instance.expected.estimate.total_ms / _MS
    return left_s


def reach(state: State, ask: Ask, node_id: str) -> Reach:
    """Return how soon a node would have the model on a device with room."""
    found = ask.nodes.get(node_id)
    if found is None:
        model = ask.model
        source = state.residency.source(node_id, model.ref, model.weight_bytes)
        transfer_s = state.estimates.transfer_s(
            node_id, source.tier, model.ref, source.missing_bytes
        )
        wait_s = 0.0
        if source.tier not in _FREE_IO and (io := state.io.get(node_id)) is not None:
            wait_s = io.wait_s(ask.now_s)
        init_s = state.estimates.init_s(model.ref)
        found = Reach(source.tier, wait_s * _MS, transfer_s * _MS, init_s * _MS)
        ask.nodes[node_id] = found
    return found


def _candidate(
    state: State,
    ask: Ask,
    key: DeviceKey,
    way: Way,
    *,
    room_s: float,
    loss_ms: float = 0.0,
    victims: Iterable[Instance] = (),
) -> Candidate:
    there = reach(state, ask, key.node_id)
    room_ms = room_s * _MS
    queue_ms = max(0.0, there.wait_ms - room_ms)
    estimate = Estimate(room_ms, queue_ms, there.transfer_ms, there.init_ms)
    ids = tuple(each.instance_id for each in victims)
    return Candidate(way, key, there.tier, estimate, loss_ms, ids)
