"""Starts find their places: the policy chooses, this module does what it chose.

A start loads at once where there is room, evicts, or waits: with a claim on the device where it
expects room, so that later starts leave those bytes alone. Starts wait in order of arrival. A later
one may pass an earlier one only with bytes that the earlier one has no claim on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from services.common.errors import (
    BriskError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import StartPhase, StartProgress
from services.common.placement import InstanceState
from services.scheduler import actions, loads
from services.scheduler.candidates import free, loss_ms_of, may_go, to_wait_at
from services.scheduler.choice import Ask, Candidate, Choice, Way
from services.scheduler.first_fit import DeviceKey
from services.scheduler.instance import Exit, Instance
from services.scheduler.leaving import make_way, retire
from services.scheduler.ledger import DeviceLedger
from services.scheduler.starts import (
    drop,
    refuse_all,
    tell,
    tell_queued,
    unclaim,
    worker_lost,
)
from services.scheduler.state import Start, State, Turn
from services.scheduler.timers import Kind
from services.scheduler.victims import cheapest

NO_WORKER_RETRY_AFTER_S: Final = 2.0
_ROUNDS_MAX: Final = 4  # what one start gives up may help another
_OFFERED_MAX: Final = 4  # starts that a device is offered to which they have no claim on
_LOOK_AGAIN_S: Final = 1.0  # predictions of when others end get old
_PATIENT_S: Final = 5.0  # between two looks at a start that nobody waits for
_REST_S: Final = 0.05  # until what is left after so many rounds is looked at


def place_waiting(turn: Turn) -> None:
    """Look at the starts that what has changed may help, in order of arrival."""
    for _ in range(_ROUNDS_MAX):
        if not (turn.is_room_changed or turn.changed or turn.again):
            return
        affected = _affected(turn)
        turn.is_room_changed = False
        turn.changed.clear()
        turn.again.clear()
        for key in affected:
            start = turn.state.starts.get(key)
            if start is not None and start.instance_id is None:
                place(turn, start)
    if turn.is_room_changed or turn.changed or turn.again:
        turn.state.timers.push(turn.now_s + _REST_S, Kind.QUEUE, "")


def _affected(turn: Turn) -> tuple[str, ...]:
    """Return the starts to look at: all, or those that a device or they themselves concern.

    A device is offered to those that claim it, and what they leave to a few others, oldest first.
    """
    state = turn.state
    first = state.queue[: state.limits.window]
    if turn.is_room_changed:
        return _oldest(turn)
    found = dict(turn.again)
    for device_key in turn.changed:
        device = state.ledger.devices.get(device_key)
        if device is None or not device.is_open:
            continue
        found.update(dict.fromkeys(_served_first(device)))
        left_bytes = device.reclaimable_bytes()
        fitting = (
            key
            for _, _, key in first
            if key not in device.claims and _need_bytes(state, state.starts[key]) <= left_bytes
        )
        found.update(dict.fromkeys(islice(fitting, _OFFERED_MAX)))
    queued = (start for key in found if (start := state.starts.get(key)) is not None)
    return tuple(each.key for each in sorted(queued, key=lambda start: start.place))


def _served_first(device: DeviceLedger) -> Iterator[str]:
    """Yield those of a device's claimants that what it could give now is for, and the next one."""
    left_bytes = device.memory_bytes - device.used_bytes + device.coming_bytes + device.idle_bytes
    for key, need_bytes in device.claims.items():
        yield key
        left_bytes -= need_bytes
        if left_bytes < 0:
            return


def _oldest(turn: Turn) -> tuple[str, ...]:
    """Return the first starts of the queue, and the first that have no claim: of each so many."""
    state = turn.state
    window = state.limits.window
    first = {key: None for _, _, key in state.queue[:window]}
    later = (key for _, _, key in islice(state.queue, window, None))
    unclaimed = (
        key for key in later if state.starts[key].claim is None and state.starts[key].waiters
    )
    found = tuple(islice(unclaimed, window + 1))
    if len(found) > window:  # more than one decision should take on
        state.timers.push(turn.now_s + _REST_S, Kind.QUEUE, "")
    return (*first, *found[:window])


def place_new(turn: Turn, start: Start) -> None:
    """Look at a start that has just come: those before it have found nothing better."""
    place(turn, start)


def place(turn: Turn, start: Start) -> None:
    """Order the load of a start, make room for it, let it wait, or refuse it."""
    state = turn.state
    if turn.now_s < state.learning_until_s:
        tell_queued(turn, start, "waiting for workers")
        state.timers.push(state.learning_until_s, Kind.QUEUE, "")
        return
    need_bytes = _need_bytes(state, start)
    if (error := _hopeless(state, start, need_bytes)) is not None:
        if start.waiters:  # else it waits for a worker that may come
            refuse_all(turn, start, error)
        return
    choice = _made_room(turn, start, need_bytes) or _choose(turn, start, avoid=True)
    if start.avoided and not _is_at_once(choice):
        if turn.now_s < start.retry_s:
            tell_queued(turn, start, "waiting to try again")
            state.timers.push(start.retry_s, Kind.QUEUE, start.key)
            return
        choice = _choose(turn, start, avoid=False)
    _follow(turn, start, choice)


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


def _made_room(turn: Turn, start: Start, need_bytes: int) -> Choice | None:
    """Return the place that others have left for a start, if that is where it is."""
    if start.claim is None or start.chosen_s is None:
        return None
    device = turn.state.ledger.devices[start.claim]
    if start.claim.worker_id in start.avoided or device.free_bytes(start.key) < need_bytes:
        return None
    found = free(turn.state, _ask(turn, start, avoid=True), device)
    return Choice(found, (found,))


def _choose(turn: Turn, start: Start, *, avoid: bool) -> Choice:
    return turn.state.policy.choose(turn.state, _ask(turn, start, avoid=avoid))


def _ask(turn: Turn, start: Start, *, avoid: bool) -> Ask:
    deployment = turn.state.deployments[start.deployment]
    return Ask(
        claimant=start.key,
        deployment=start.deployment,
        model=deployment.model,
        need_bytes=deployment.device_bytes,
        now_s=turn.now_s,
        asked_s=start.asked_s,
        claim=start.claim,
        avoided=start.avoided if avoid else {},
    )


def _is_at_once(choice: Choice) -> bool:
    return choice.chosen is not None and choice.chosen.way is not Way.WAIT


def _follow(turn: Turn, start: Start, choice: Choice) -> None:
    """Do what the policy chose."""
    chosen = choice.chosen
    if not start.waiters and not _may_take(start, choice):  # it must not keep bytes from requests
        unclaim(turn, start)
        if start.is_ahead:
            drop(turn, start)
            return
        turn.state.timers.push(turn.now_s + _PATIENT_S, Kind.QUEUE, start.key)
        return
    if chosen is None:
        _wait_for_room(turn, start, to_wait_at(turn.state, _ask(turn, start, avoid=True)))
        return
    _explain(turn, start, choice, chosen)
    match chosen.way:
        case Way.FREE:
            device = turn.state.ledger.devices[chosen.device]
            need_bytes = _need_bytes(turn.state, start)
            if device.free_bytes(start.key) >= need_bytes:
                _load(turn, start, chosen, need_bytes)
            else:
                _make_room(turn, start, chosen)
        case Way.EVICT:
            _make_room(turn, start, chosen)
        case _:
            _wait_for_room(turn, start, chosen.device, chosen.estimate.room_ms / 1e3)


def _may_take(start: Start, choice: Choice) -> bool:
    """Whether a start that nobody waits for may do what was chosen."""
    if start.is_ahead:
        return choice.chosen is not None and choice.chosen.way is Way.FREE
    return _is_at_once(choice)


def _explain(turn: Turn, start: Start, choice: Choice, chosen: Candidate) -> None:
    """Tell why a start goes where it goes, once for each change of mind."""
    key = (chosen.way, chosen.device)
    if start.explained == key:
        return
    start.explained = key
    turn.do(
        actions.Explain(
            placement_id=start.placement_id,
            deployment=start.deployment,
            request_ids=tuple(start.waiters),
            choice=choice,
        )
    )


def _load(turn: Turn, start: Start, chosen: Candidate, need_bytes: int) -> None:
    state, key = turn.state, chosen.device
    deployment = state.deployments[start.deployment]
    instance = Instance(
        instance_id=state.new_instance_id(),
        deployment=start.deployment,
        model=deployment.model.ref,
        device=key,
        memory_bytes=need_bytes,
        slots=deployment.spec.slots,
        state=InstanceState.LOADING,
        placement_id=start.placement_id,
        start_key=start.key,
    )
    unclaim(turn, start)
    state.dequeue(start)
    state.add(instance)
    loads.begin(turn, instance, chosen, deployment.model)
    start.instance_id, start.load_s = instance.instance_id, turn.now_s
    start.attempts += 1
    start.explained = None
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
            request_id=next(iter(start.waiters), ""),
            placement_id=start.placement_id,
        )
    )


def _make_room(turn: Turn, start: Start, chosen: Candidate) -> None:
    """Evict the victims and wait for their memory with a claim on it."""
    _claim(turn, start, chosen.device)
    if start.chosen_s is None:
        start.chosen_s = turn.now_s
    tell(turn, start, StartProgress(phase=StartPhase.PLACEMENT, detail="making room"))
    for instance_id in chosen.victims:
        make_way(turn, turn.state.instances[instance_id])


def _wait_for_room(turn: Turn, start: Start, key: DeviceKey, room_s: float = _LOOK_AGAIN_S) -> None:
    """Claim a device; when patience ends, evict there what is idle although it is not enough."""
    state = turn.state
    start.chosen_s = None
    _claim(turn, start, key)
    tell_queued(turn, start, "waiting for an idle device")
    patience_ends_s = start.waits_since_s + state.limits.patience_s
    if turn.now_s < patience_ends_s:
        # What was predicted may not come true; then another way may be better.
        due_s = min(patience_ends_s, turn.now_s + max(room_s, _LOOK_AGAIN_S))
        state.timers.push(due_s, Kind.QUEUE, start.key)
        return
    for victim in tuple(state.ledger.devices[key].instances.values()):
        if victim.idle_since_s is None:
            continue
        if may_go(state, victim, turn.now_s):
            make_way(turn, victim)
        else:
            state.timers.push(turn.now_s + _LOOK_AGAIN_S, Kind.QUEUE, start.key)
    _take_turn(turn, start, key)


def _take_turn(turn: Turn, start: Start, key: DeviceKey) -> None:
    """When a start has waited for its turn, let busy instances finish what they have and go.

    Each has served for a while by then, so that models that take turns do not only load.
    """
    state, limits = turn.state, turn.state.limits
    due_s = start.asked_s + limits.turn_s
    if turn.now_s < due_s:
        state.timers.push(due_s, Kind.QUEUE, start.key)
        return
    device = state.ledger.devices[key]
    lacking_bytes = _need_bytes(state, start) - device.soon_bytes(start.key)
    lacking_bytes -= sum(
        each.memory_bytes for each in device.instances.values() if each.exit is Exit.DRAINED
    )
    busy = [each for each in device.instances.values() if each.state is InstanceState.READY]
    served = [
        (each, loss_ms_of(state, each, turn.now_s))
        for each in busy
        if not each.grants and turn.now_s - each.ready_s >= limits.serve_s
    ]
    if lacking_bytes > 0 and sum(each.memory_bytes for each, _ in served) >= lacking_bytes:
        for victim in cheapest(served, lacking_bytes)[0]:
            retire(turn, victim)
    elif lacking_bytes > 0:
        state.timers.push(turn.now_s + _LOOK_AGAIN_S, Kind.QUEUE, start.key)


def _need_bytes(state: State, start: Start) -> int:
    return state.deployments[start.deployment].device_bytes


def _claim(turn: Turn, start: Start, key: DeviceKey) -> None:
    if start.claim != key:
        unclaim(turn, start)
        need_bytes = _need_bytes(turn.state, start)
        turn.state.ledger.claim(key, start.key, need_bytes, start.place)
        start.claim = key
