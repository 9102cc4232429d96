"""Where a start goes: a device with room, else one where idle instances can make room, else wait.

In this order, devices by their keys:

1. the first device with room;
2. the first one that will have room once the unloads under way are done;
3. the device whose idle instances make room, those idle for longest first;
4. none: claim a device that is large enough, so that later starts leave its bytes alone.

Starts wait in order of arrival. A later one may pass an earlier one only with bytes that the
earlier one has no claim on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from services.common.errors import (
    BriskError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress
from services.common.placement import InstanceState
from services.scheduler import actions
from services.scheduler.first_fit import DeviceKey, FirstFit
from services.scheduler.instance import Instance
from services.scheduler.leaving import evict
from services.scheduler.starts import (
    refuse_all,
    tell,
    tell_queued,
    unclaim,
    worker_lost,
)
from services.scheduler.state import Start, State, Turn
from services.scheduler.timers import Kind

NO_WORKER_RETRY_AFTER_S: Final = 2.0
_ROUNDS_MAX: Final = 3  # a refusal gives a claim up, which may help a start that was looked at


def place_waiting(turn: Turn) -> None:
    """Look at the starts without a place, in order of arrival."""
    for _ in range(_ROUNDS_MAX):
        turn.is_room_changed = False
        for _, deployment in tuple(turn.state.queue[: turn.state.limits.window]):
            if (start := turn.state.starts.get(deployment)) is not None:
                place(turn, start)
        if not turn.is_room_changed:
            return


def place_new(turn: Turn, start: Start) -> None:
    """Look at a start that has just come: those before it have found nothing better."""
    if len(turn.state.queue) <= turn.state.limits.window:
        place(turn, start)


def place(turn: Turn, start: Start) -> None:
    """Order the load of a start, make room for it, let it wait, or refuse it."""
    state = turn.state
    if turn.now_s < state.learning_until_s:
        tell_queued(turn, start, "waiting for workers")
        state.timers.push(state.learning_until_s, Kind.QUEUE, "")
        return
    need_bytes = state.deployments[start.deployment].device_bytes
    if (error := _hopeless(state, start, need_bytes)) is not None:
        refuse_all(turn, start, error)
        return
    if _take_place(turn, start, need_bytes, avoid=True):
        return
    if start.avoided:
        if turn.now_s < start.retry_s:
            tell_queued(turn, start, "waiting to try again")
            state.timers.push(start.retry_s, Kind.QUEUE, start.deployment)
            return
        if _take_place(turn, start, need_bytes, avoid=False):
            return
    _wait_for_room(turn, start, need_bytes)


def _hopeless(state: State, start: Start, need_bytes: int) -> BriskError | None:
    """Return why no device could ever hold the model, if so."""
    budgets = state.ledger.budgets
    if len(budgets) and need_bytes <= budgets.largest():
        return None
    if start.has_lost_worker:
        return worker_lost(start)
    if not len(budgets):
        return UnavailableError(
            "no worker is registered that could load a model",
            reason=Reason.NO_WORKER,
            retry_after_s=NO_WORKER_RETRY_AFTER_S,
        )
    return ResourceExhaustedError(
        f"{start.deployment} needs {need_bytes} bytes of device memory; "
        f"the largest device has {budgets.largest()}",
        reason=Reason.INSUFFICIENT_MEMORY,
        metadata={
            "needed_bytes": str(need_bytes),
            "available_bytes": str(budgets.largest()),
        },
    )


def _take_place(turn: Turn, start: Start, need_bytes: int, *, avoid: bool) -> bool:
    """Load at once or make room; False if neither is possible now."""
    ledger = turn.state.ledger
    avoided = start.avoided if avoid else {}
    own = None if start.claim is None else ledger.devices[start.claim]
    if own is not None and own.key.worker_id in avoided:
        own = None
    if own is not None and own.free_bytes(start.deployment) >= need_bytes:
        _load(turn, start, own.key, need_bytes)
        return True
    if (key := _first(ledger.free, need_bytes, avoided)) is not None:
        _load(turn, start, key, need_bytes)
        return True
    if own is not None and own.soon_bytes(start.deployment) >= need_bytes:
        _make_room(turn, start, own.key, need_bytes, ())
        return True
    if (key := _first(ledger.soon, need_bytes, avoided)) is not None:
        _make_room(turn, start, key, need_bytes, ())
        return True
    may_evict = ledger.reclaimable.largest() >= need_bytes or (
        own is not None and own.reclaimable_bytes(start.deployment) >= need_bytes
    )
    if may_evict and (found := _victims(turn.state, start, need_bytes, avoided)) is not None:
        _make_room(turn, start, found[0], need_bytes, found[1])
        return True
    return False


def _first(index: FirstFit, need_bytes: int, avoided: dict[str, None]) -> DeviceKey | None:
    key = index.first(need_bytes)
    while key is not None and key.worker_id in avoided:
        key = index.first(need_bytes, after=key)
    return key


def _load(turn: Turn, start: Start, key: DeviceKey, need_bytes: int) -> None:
    state = turn.state
    deployment = state.deployments[start.deployment]
    instance = Instance(
        instance_id=state.new_instance_id(),
        deployment=start.deployment,
        model=deployment.model.ref,
        device=key,
        memory_bytes=need_bytes,
        slots=deployment.spec.slots,
        state=InstanceState.LOADING,
    )
    unclaim(turn, start)
    state.dequeue(start)
    state.add(instance)
    start.instance_id, start.load_s = instance.instance_id, turn.now_s
    start.attempts += 1
    if start.chosen_s is None:
        start.chosen_s = turn.now_s
    tell(turn, start, StartProgress(phase=StartPhase.PLACEMENT))
    turn.do(
        actions.StartLoad(
            instance_id=instance.instance_id,
            deployment=start.deployment,
            model=deployment.model.ref,
            worker_id=key.worker_id,
            address=state.address_of(key.worker_id),
            device_id=key.device_id,
            slots=deployment.spec.slots,
            context_tokens_max=deployment.spec.context_tokens_max,
            memory_bytes=need_bytes,
            request_id=next(iter(start.waiters)),
        )
    )


def _make_room(
    turn: Turn, start: Start, key: DeviceKey, need_bytes: int, victims: tuple[Instance, ...]
) -> None:
    """Evict `victims` and wait for their memory with a claim on it."""
    _claim(turn, start, key, need_bytes)
    if start.chosen_s is None:
        start.chosen_s = turn.now_s
    tell(turn, start, StartProgress(phase=StartPhase.PLACEMENT, detail="making room"))
    for victim in victims:
        evict(turn, victim)


def _victims(
    state: State, start: Start, need_bytes: int, avoided: dict[str, None]
) -> tuple[DeviceKey, tuple[Instance, ...]] | None:
    """Return the device that the longest idle instances make room on, and which have to go."""
    ledger = state.ledger
    idle: dict[DeviceKey, list[Instance]] = {}
    for instance_id in ledger.idle_instances():
        instance = state.instances[instance_id]
        key = instance.device
        if key.worker_id in avoided:
            continue
        found = idle.setdefault(key, [])
        found.append(instance)
        lacking_bytes = need_bytes - ledger.devices[key].soon_bytes(start.deployment)
        if sum(each.memory_bytes for each in found) >= lacking_bytes:
            return key, _fewest(found, lacking_bytes)
    return None


def _fewest(idle: list[Instance], lacking_bytes: int) -> tuple[Instance, ...]:
    """Return as few of `idle` as free `lacking_bytes`: the largest, of equals the longest idle."""
    taken: list[Instance] = []
    for instance in sorted(idle, key=lambda each: -each.memory_bytes):
        if lacking_bytes <= 0:
            break
        taken.append(instance)
        lacking_bytes -= instance.memory_bytes
    return tuple(taken)


def _wait_for_room(turn: Turn, start: Start, need_bytes: int) -> None:
    """Claim a device; when patience ends, evict there what is idle although it is not enough."""
    state = turn.state
    start.chosen_s = None
    if start.claim is None:
        _claim(turn, start, _best_claim(state, start, need_bytes), need_bytes)
    tell_queued(turn, start, "waiting for an idle device")
    patience_ends_s = start.waits_since_s + state.limits.patience_s
    if turn.now_s < patience_ends_s:
        state.timers.push(patience_ends_s, Kind.QUEUE, start.deployment)
        return
    for victim in tuple(_idle_on(state, start.claim)):
        evict(turn, victim)


def _idle_on(state: State, key: DeviceKey | None) -> Iterator[Instance]:
    found = (state.instances[instance_id] for instance_id in state.ledger.idle_instances())
    return (instance for instance in found if instance.device == key)


def _best_claim(state: State, start: Start, need_bytes: int) -> DeviceKey:
    """Return the device to wait at: few others wait there, and much of it could be reclaimed.

    A scan, but only once for each start that waits.
    """
    large = (
        device
        for device in state.ledger.devices.values()
        if device.is_open and device.memory_bytes >= need_bytes
    )
    best = min(
        large,
        key=lambda device: (
            device.key.worker_id in start.avoided,
            len(device.claims),
            -device.reclaimable_bytes(),
            device.key,
        ),
    )
    return best.key


def _claim(turn: Turn, start: Start, key: DeviceKey, need_bytes: int) -> None:
    if start.claim != key:
        unclaim(turn, start)
        turn.state.ledger.claim(key, start.deployment, need_bytes)
        start.claim = key
