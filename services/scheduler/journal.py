"""One log line for each decision, and what it means in numbers."""

from __future__ import annotations

from collections import Counter
from typing import Final

from services.common.log import get_logger
from services.common.placement import InstanceState
from services.scheduler import actions, events, metrics
from services.scheduler.actions import Action
from services.scheduler.deployment import Deployment
from services.scheduler.events import Event
from services.scheduler.state import State

log = get_logger("services.scheduler.decisions")

_FREQUENT = (events.WorkerReported, events.LoadProgressed, events.Tick, events.Released)
_IDS: Final = {
    "request_id": "request",
    "deployment": "deployment",
    "name": "deployment",
    "worker_id": "worker",
    "instance_id": "instance",
}
_Facts = dict[str, object]  # what a log line takes


def write(epoch: int, event: Event, done: tuple[Action, ...], took_s: float) -> None:
    """Log and count a decision; one that changes nothing is worth a debug line."""
    kind = type(event).__name__
    metrics.DECISIONS.labels(kind).inc()
    metrics.DECISION_SECONDS.observe(took_s)
    _count(event, done)
    told = [_brief(each) for each in done if not isinstance(each, actions.WakeAt)]
    is_dull = isinstance(event, _FREQUENT) and all(
        isinstance(each, actions.TellProgress | actions.WakeAt) for each in done
    )
    say = log.debug if is_dull else log.info
    say("decided", kind=kind, epoch=epoch, actions=told, took_us=round(took_s * 1e6), **_ids(event))


def export(state: State) -> None:
    """Set the gauges to what the core knows."""
    metrics.QUEUE_LENGTH.set(len(state.queue))
    metrics.WAITERS.set(len(state.waiting_for))
    metrics.WORKERS.set(len(state.workers))
    metrics.DEPLOYMENTS.set(len(state.deployments))
    counts = Counter(instance.state for instance in state.instances.values())
    for each in (InstanceState.LOADING, InstanceState.READY, InstanceState.LEAVING):
        metrics.INSTANCES.labels(each.value).set(counts[each])


def _ids(event: Event) -> _Facts:
    """Return what `event` is about."""
    facts: _Facts = {}
    for attribute, label in _IDS.items():
        value = getattr(event, attribute, None)
        if value is not None:
            facts[label] = value.name if isinstance(value, Deployment) else value
    match event:
        case events.WorkerReported():
            facts["worker"] = event.worker.worker_id
        case events.LoadFailed() | events.UnloadFailed():
            facts |= {"reason": event.error.reason, "error": event.error.message}
        case _:
            pass
    return facts


def _brief(action: Action) -> _Facts:
    """Return what matters of `action` to someone who reads the log."""
    facts: _Facts = {"do": type(action).__name__}
    match action:
        case actions.StartLoad():
            facts |= {
                "instance": action.instance_id,
                "deployment": action.deployment,
                "revision": action.model.revision,
                "worker": action.worker_id,
                "device": action.device_id,
                "memory_bytes": action.memory_bytes,
            }
        case actions.StartUnload():
            facts |= {"instance": action.instance_id, "only_if_idle": action.only_if_idle}
        case actions.TellProgress():
            facts |= {"requests": len(action.request_ids), "phase": action.progress.phase.value}
            facts |= {"detail": action.progress.detail} if action.progress.detail else {}
        case actions.Grant():
            instance_id = action.route.instance_id
            facts |= {"request": action.request_id, "instance": instance_id}
            facts |= {"cold": action.start.cold}
        case actions.Refuse():
            facts |= {"request": action.request_id, "reason": action.error.reason}
        case actions.RouteUp():
            facts |= {"instance": action.route.instance_id}
        case actions.RouteDown() | actions.CancelLoad():
            facts |= {"instance": action.instance_id}
        case actions.WakeAt():
            facts |= {"at_s": action.at_s}
    return facts


def _count(event: Event, done: tuple[Action, ...]) -> None:
    if isinstance(event, events.AcquireCancelled):
        metrics.ACQUIRES.labels("cancelled").inc()
    elif isinstance(event, events.LoadSucceeded):
        metrics.STARTS.labels("ready").inc()
    elif isinstance(event, events.LoadFailed):
        metrics.STARTS.labels(event.error.reason).inc()
    for action in done:
        match action:
            case actions.CancelLoad():
                metrics.STARTS.labels("cancelled").inc()
            case actions.Grant():
                metrics.ACQUIRES.labels("cold" if action.start.cold else "warm").inc()
                if action.start.cold:
                    for each in action.start.phases:
                        phase = metrics.START_PHASE_SECONDS.labels(each.phase.value)
                        phase.observe(each.duration_s)
            case actions.Refuse():
                metrics.ACQUIRES.labels(action.error.reason).inc()
            case _:
                pass
