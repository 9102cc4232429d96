"""Grants: which request may use which instance, and that the instance stays meanwhile."""

from __future__ import annotations

from itertools import islice
from typing import Final

from services.common.model import PhaseDuration, StartPhase, StartReport, Tier
from services.common.placement import InstanceState
from services.scheduler import actions
from services.scheduler.habits import stays_until_s
from services.scheduler.instance import Instance
from services.scheduler.state import Start, State, Turn, Waiter
from services.scheduler.timers import Kind

IDLE_WAVER_S: Final = 0.25  # reports travel for some time, so what they say about times wavers


def warm_report(waited_s: float = 0.0) -> StartReport:
    """Return how a request got an instance that was there already."""
    queued = PhaseDuration(phase=StartPhase.QUEUE, duration_s=waited_s)
    return StartReport(cold=False, source=Tier.DEVICE, phases=(queued,))


def grant(turn: Turn, instance: Instance, request_id: str, start: StartReport) -> None:
    """Give a request its instance and pin that."""
    state = turn.state
    instance.grants[request_id] = turn.now_s
    state.granted[request_id] = instance.instance_id
    set_idle(turn, instance, None)
    state.timers.push(turn.now_s + state.limits.grant_s, Kind.GRANT, request_id)
    turn.do(actions.Grant(request_id=request_id, route=state.route_of(instance), start=start))


def release(turn: Turn, request_id: str) -> None:
    """Take a grant back, if there is one."""
    state = turn.state
    if (instance_id := state.granted.pop(request_id, None)) is None:
        return
    instance = state.instances[instance_id]
    granted_s = instance.grants.pop(request_id)
    instance.released_s = turn.now_s
    # What the worker said before the grant says nothing about the sequence that came of it.
    idle_since_s = instance.reported_idle_since_s
    if idle_since_s is not None and idle_since_s > granted_s + IDLE_WAVER_S:
        refresh_idle(turn, instance)


def expire(turn: Turn, request_id: str) -> None:
    """Take a grant back if it is as old as a grant may get."""
    state = turn.state
    if (instance_id := state.granted.get(request_id)) is None:
        return
    due_s = state.instances[instance_id].grants[request_id] + state.limits.grant_s
    if due_s <= turn.now_s:
        release(turn, request_id)
    else:  # the id was used again
        state.timers.push(due_s, Kind.GRANT, request_id)


def refresh_idle(turn: Turn, instance: Instance) -> None:
    """Work out since when an instance is idle from its grants and its worker's word."""
    since_s = instance.reported_idle_since_s
    is_free = instance.state is InstanceState.READY and not instance.grants
    if not is_free or since_s is None or _is_kept(turn.state, instance):
        set_idle(turn, instance, None)
    else:
        set_idle(turn, instance, max(since_s, instance.released_s))


def refresh_kept(turn: Turn, deployment: str) -> None:
    """After instances have come or gone: others of them may be those that always stay."""
    known = turn.state.deployments.get(deployment)
    if known is not None and known.spec.min_replicas > 0:
        for instance in turn.state.instances_of(deployment):
            refresh_idle(turn, instance)


def _is_kept(state: State, instance: Instance) -> bool:
    """Whether an instance is one of those that its deployment always has."""
    known = state.deployments.get(instance.deployment)
    if known is None or known.spec.min_replicas == 0:
        return False
    ready = (
        each.instance_id
        for each in state.instances_of(instance.deployment)
        if each.state is InstanceState.READY
    )
    return instance.instance_id in tuple(islice(ready, known.spec.min_replicas))


def set_idle(turn: Turn, instance: Instance, since_s: float | None) -> None:
    """Enter since when an instance may be evicted; None: it may not."""
    was_s = instance.idle_since_s
    if was_s == since_s:
        return
    instance.idle_since_s = since_s
    turn.state.ledger.count(instance)
    if since_s is not None:
        if was_s is None:
            turn.changed[instance.device] = None
        remind_of_keep_alive(turn.state, instance)


def remind_of_keep_alive(state: State, instance: Instance) -> None:
    """Have an idle instance looked at when its time is up."""
    due_s = keep_alive_ends_s(state, instance)
    if due_s is not None:
        state.timers.push(due_s, Kind.KEEP_ALIVE, instance.instance_id)


def keep_alive_ends_s(state: State, instance: Instance) -> float | None:
    """Return when an instance is unloaded for idleness; None if it is busy or kept for ever."""
    deployment = state.deployments.get(instance.deployment)
    if deployment is None or instance.idle_since_s is None:
        return None
    if deployment.spec.learns_keep_alive:
        until_s = stays_until_s(state, deployment, instance.idle_since_s)
        if until_s is not None:
            return until_s
    keep_alive_s = deployment.spec.keep_alive_s
    return None if keep_alive_s is None else instance.idle_since_s + keep_alive_s


def cold_report(turn: Turn, start: Start, waiter: Waiter, loaded: StartReport) -> StartReport:
    """Return how `waiter` got its instance: the start's phases, as far as it waited for them."""
    chosen_s = start.load_s if start.chosen_s is None else start.chosen_s
    spans = [
        (StartPhase.QUEUE, start.asked_s, chosen_s),
        (StartPhase.PLACEMENT, chosen_s, start.load_s),
    ]
    at_s = start.load_s
    for phase in loaded.phases:
        spans.append((phase.phase, at_s, at_s + phase.duration_s))
        at_s += phase.duration_s
    phases = tuple(
        PhaseDuration(
            phase=phase, duration_s=max(0.0, min(end_s, turn.now_s) - max(begin_s, waiter.asked_s))
        )
        for phase, begin_s, end_s in spans
    )
    return StartReport(cold=True, source=loaded.source, phases=phases)
